"""The facts of a model, whatever its format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from converters.header import TensorInfo

__all__ = ["Artifact"]

UNNAMED = {"model", "ggml-model", "pytorch_model", ""}
"""Names of files that name no model."""
SCHEMA = "edgeai.schema"
"""The key under which an ONNX file says what it takes and gives, as JSON."""
PASSPORT = "edgeai.passport."
"""Keys that say how the proof of a file ended."""
RANKING = 4
"""LLAMA_POOLING_TYPE_RANK, llama.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Facts of a model file.

    `context` is the trained context in tokens, `quant` what most of the block weights really are (see
    `claimed_quant`), `bpw` bits per weight over all tensors, `types` tensor type → number of tensors. `sha256` is
    None unless it is known without hashing. `metadata` has the scalar values and short arrays of the header, the values
    of each layer, and the length of longer arrays. `parent` names what it was made from: a repository, or the sha256 of
    the source. `tensors` are those of a GGUF file. The format `cloud` is a model that an endpoint has: there is no file.
    """

    path: Path
    name: str
    format: Literal["gguf", "hf", "onnx", "cloud"]
    arch: str
    params: int
    context: int | None
    quant: str
    bpw: float
    vocab: int
    bos: int | None
    eos: int | None
    template: str | None
    sha256: str | None = None
    parent: str | None = None
    size_bytes: int
    types: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[TensorInfo, ...] = field(default=(), repr=False)

    @property
    def embedding(self) -> bool:
        """Whether the file gives vectors or scores: it names how the vectors of tokens become one (mean, first, last, or a classifier)."""
        if self.format == "onnx":
            return (self.schema or {}).get("task") == "embedding"
        return self.metadata.get(f"{self.arch}.pooling_type") in (1, 2, 3, 4)  # enum llama_pooling_type

    @property
    def schema(self) -> dict[str, Any] | None:
        """What an ONNX model that is no language model takes and gives."""
        text = self.metadata.get(SCHEMA)
        return json.loads(text) if isinstance(text, str) else None

    @property
    def task(self) -> str:
        """What it does: `generation`, `embedding`, `ranking`, `classification`, `regression`; `arrays` where nothing is said."""
        if self.format == "onnx" and "genai.type" not in self.metadata:
            return str((self.schema or {}).get("task", "arrays"))
        if self.reranker:
            return "ranking"
        return "embedding" if self.embedding else "generation"

    @property
    def positions(self) -> int | None:
        """How many positions the model has learned, beyond which it cannot read; None where it computes them."""
        return next((tensor.shape[1] for tensor in self.tensors if tensor.name == "position_embd.weight"), None)

    @property
    def reranker(self) -> bool:
        """Whether it scores pairs of texts."""
        return self.metadata.get(f"{self.arch}.pooling_type") == RANKING
