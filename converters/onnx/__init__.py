"""ONNX: what files hold (`header`), and how models become files."""
