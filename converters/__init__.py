"""Model files and number formats: what a checkpoint holds and how it becomes GGUF. Knows nothing of running models."""
