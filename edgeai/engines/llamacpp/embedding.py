"""Embedding models: texts to vectors, with the pooling that the file names."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.handle import Handle
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ClosedError, ContextExceeded, EngineCrashed, UsageError
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["EmbeddingEngine"]


class EmbeddingEngine:
    """An embedding model in this process; see engines.base.Engine. It gives vectors and no text, and one call runs at a time."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        began = time.perf_counter()
        # Attention without a causal mask sees the whole text at once, so a text must fit one batch.
        self.artifact = artifact
        self._handle = Handle(artifact, replace(plan, batch=plan.context), embeddings=True)
        self.plan, self.placement = self._handle.plan, self._handle.placement
        self._vocab = Vocab(self._handle, normalizer=artifact.metadata.get("edgeai.tokenizer.normalizer"))
        self._lock = threading.Lock()
        self.backend = self.placement.backend
        self.load_s = time.perf_counter() - began

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        with self._lock:
            self._check_open()
            return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS."""
        with self._lock:
            self._check_open()
            return self._vocab.detokenize(ids)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32. Raises ContextExceeded for a text that is too long."""
        import numpy as np

        rows = [self._vector(text) for text in texts]
        found = np.stack(rows) if rows else np.zeros((0, self._handle.n_embd), np.float32)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.where(norms == 0, 1, norms)).astype(np.float32)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        import numpy as np

        with self._lock:
            self._check_open()
            ids = self._vocab.tokenize(text, add_special=True)
            if not ids:
                raise UsageError("the text is empty", hint="give at least one character")
            if len(ids) > self._handle.n_ctx:
                raise ContextExceeded(
                    f"the text has {len(ids)} tokens and the model takes {self._handle.n_ctx}",
                    hint="embed it in pieces",
                )
            lib, context = self._handle.lib, self._handle.context
            if memory := lib.llama_get_memory(context):
                lib.llama_memory_clear(memory, False)
            self._handle.decode(ids)
            pointer: Any = lib.llama_get_embeddings_seq(context, 0)
            if not pointer:
                raise EngineCrashed("the native library gave no vector", hint="edgeai doctor")
            size = self._handle.n_embd
            vector = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * size)).contents
            return np.array(vector, np.float32)

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:  # noqa: ARG002
        """Raise UsageError: there is no text to come."""
        self._no_text()

    def score(self, text: str) -> list[float]:  # noqa: ARG002
        """Raise UsageError: there are no probabilities."""
        self._no_text()

    def _no_text(self) -> NoReturn:
        raise UsageError(f"{self.artifact.name} is an embedding model: it gives vectors, not text", hint="use embed")

    def _check_open(self) -> None:
        if self._handle.model is None:
            raise ClosedError(f"{self.artifact.name!r} has been closed", hint="load it again")

    def close(self) -> None:
        """Free the model. Calling it twice is fine."""
        with self._lock:
            self._handle.free()
