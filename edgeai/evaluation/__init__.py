"""What a model file is worth: logits against its source, the passport, benchmarks."""
