"""Models in ONNX that are no language models: pictures, rows, series, texts and arrays in, labels and values out."""

from edgeai.engines.onnx.engine import ClassifierEngine
from edgeai.engines.onnx.opening import load_model

__all__ = ["ClassifierEngine", "load_model"]
