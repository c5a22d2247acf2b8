"""A GGUF file read backwards: as a checkpoint whose tensors, configuration and tokenizer are those of a Hugging Face folder."""
