"""GGUF models through libllama's low-level API."""

from edgeai.engines.llamacpp.engine import LlamaCppEngine

__all__ = ["LlamaCppEngine"]
