"""ONNX language models through onnxruntime-genai."""

from edgeai.engines.genai.engine import GenaiEngine

__all__ = ["GenaiEngine"]
