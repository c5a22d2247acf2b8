"""Merge a LoRA adapter into its base while the tensors are read: nothing is written, and memory stays at a slab of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint, Source
from converters.errors import UnsupportedModel
from converters.lora import ADAPTER_CONFIG, Adapter, Pair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["Merged", "merge"]

EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A tensor of the base with its change added."""

    base: Source
    pair: Pair
    config: Path

    @property
    def name(self) -> str:
        """The name in the base."""
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The sum is not rounded to the type of the base."""
        return "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the base and of the adapter."""
        return (*self.base.files, *self.pair.a.files, self.config)

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) of the sum; products are added up in float64 and rounded once."""
        import numpy as np

        a, b = self.pair.matrices()
        if self.pair.embedding or self.pair.turned:
            change = a[:, first:last].T.astype(np.float64) @ b.T
        else:
            change = b[first:last].astype(np.float64) @ a
        rows = self.base.rows(first, last) + self.pair.scale * change
        if self.pair.magnitude is not None:
            lengths = self.pair.magnitude.rows(0, self.pair.magnitude.shape[0]).reshape(-1)[first:last]
            rows *= (lengths / np.linalg.norm(rows, axis=1))[:, None]
        return rows.astype(np.float32)


def merge(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return BASE with ADAPTER merged into its tensors; raises UnsupportedModel where that is another model than PEFT runs."""
    tensors: dict[str, Source] = dict(base.tensors)
    if base.config.get("tie_word_embeddings", True) and "lm_head.weight" not in tensors:
        check_tied([*adapter.pairs, *adapter.replaced])
    for name, source in adapter.replaced.items():
        tensors[name] = Renamed(name=name, source=source)
    for name, pair in adapter.pairs.items():
        tensors[name] = Merged(base=tensors[name], pair=pair, config=adapter.path / ADAPTER_CONFIG)
    return replace(base, tensors=tensors, adapter=adapter.path)


def check_tied(changed: Sequence[str]) -> None:
    """Raise UnsupportedModel where the embeddings change, which are the output matrix too and stay there as they were in training."""
    if found := [name for name in changed if name.endswith(EMBEDDINGS)]:
        raise UnsupportedModel(
            f"the adapter changes {found[0]!r}, which is the output matrix of the base model too",
            hint="train it on a base whose lm_head is a matrix of its own",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A tensor of the adapter under the name that it has in the base."""

    name: str
    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """That of the tensor."""
        return self.source.dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of the adapter."""
        return self.source.files

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included)."""
        return self.source.rows(first, last)
