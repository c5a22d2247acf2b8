"""GGUF models through libllama's low-level API."""

from edgeai.engines.llamacpp.embedding import EmbeddingEngine
from edgeai.engines.llamacpp.engine import LlamaCppEngine

__all__ = ["EmbeddingEngine", "LlamaCppEngine"]
