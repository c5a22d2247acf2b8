"""What is done to one tensor between a checkpoint and a GGUF file: the rule, the plan made of it, and the transforms by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters.checkpoint import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = [
    "INVERSE",
    "Rule",
    "TensorPlan",
    "Transform",
    "add_one",
    "interleave_halves",
    "separate_halves",
    "subtract_one",
]

Transform = Callable[["F32", int], "F32"]
"""Gets a block of rows and the family's number for it (for `interleave_halves`: the head size)."""


def interleave_halves(rows: F32, head_dim: int) -> F32:
    """Reorder the rows of each head from (first half, second half) to adjacent pairs.

    Hugging Face rotates element i of a head with element i + head_dim/2; ggml's NORM rope rotates 2i with 2i + 1. So row i goes to 2i
    and row i + head_dim/2 to 2i + 1. ROWS is (n · head_dim, …): a weight or a bias. Source: `LlamaModel.permute` in llama.cpp's
    converter and GGML_ROPE_TYPE_NORMAL in ggml.h.
    """
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])  # (head, half, i, columns)
    return heads.swapaxes(1, 2).reshape(rows.shape)


def separate_halves(rows: F32, head_dim: int) -> F32:
    """Undo `interleave_halves`."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])  # (head, i, half, columns)
    return heads.swapaxes(1, 2).reshape(rows.shape)


def add_one(rows: F32, _head_dim: int) -> F32:
    """Add one: Gemma's norms multiply by 1 + weight, ggml's by the weight (`Gemma3RMSNorm` in transformers)."""
    return rows + 1


def subtract_one(rows: F32, _head_dim: int) -> F32:
    """Undo `add_one`."""
    return rows - 1


INVERSE: Mapping[Transform, Transform] = {interleave_halves: separate_halves, add_one: subtract_one}
"""Transform → the one that takes a GGUF tensor back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One tensor of the GGUF file: the name there, the name in the checkpoint, the sizes by name, what is done to it.

    In the names `{i}` stands for the layer and `{p}` for the prefix that the checkpoint uses (`Family.prefixes`). A source with `{e}`
    is one matrix for each expert, stacked to three dimensions; `shape` then begins with "experts". `shape` is that of the result, in
    numpy's order. `transposed`: the checkpoint holds (in, out), as GPT-2's Conv1D does. `squeezed`: the checkpoint's shape, where it
    has dimensions of size 1 besides. `skip_rows`: the name of the number of rows at the top that are left out. `when` names a fact of
    the configuration, or of the layer, that must hold for the tensor to be there. `factor` names a number in `Facts.factors` that the
    result is multiplied by.
    """

    target: str
    source: str
    shape: tuple[str, ...]
    transform: Transform | None = None
    when: str | None = None
    transposed: bool = False
    squeezed: tuple[str, ...] | None = None
    skip_rows: str | None = None
    factor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor to write: `shape` in numpy's order; the data comes from `sources` or is `constant`.

    Matrices of experts are `stacked` from several sources: then a row is a whole expert. A transform works on blocks of `block_rows`
    rows, so a large tensor can be read in slabs; a transposed one is read whole. A transposed tensor has no transform. All is
    multiplied by `factor` at the end.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...] = ()
    constant: F32 | None = None
    transform: Transform | None = None
    block_rows: int = 1
    transposed: bool = False
    stacked: bool = False
    first_row: int = 0
    factor: float = 1.0

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def shown_name(self) -> str:
        """The name in the checkpoint, for messages."""
        return self.sources[0].name if self.sources else self.name

    def rows(self, first: int, last: int) -> F32:
        """Return the finished rows FIRST to LAST, shape (last - first, *shape[1:]); both must be multiples of `block_rows` (or the end)."""
        import numpy as np

        if self.constant is not None:
            return self.constant[first:last]
        if self.stacked:
            rows = np.stack([source.rows(0, source.shape[0]) for source in self.sources[first:last]])
        elif self.transposed:
            (source,) = self.sources
            rows = np.ascontiguousarray(source.rows(0, source.shape[0]).T[first:last])
        else:
            (source,) = self.sources
            rows = source.rows(self.first_row + first, self.first_row + last)
        rows = rows.reshape(last - first, *self.shape[1:])
        rows = self.transform(rows, self.block_rows) if self.transform else rows
        return rows if self.factor == 1.0 else rows * np.float32(self.factor)
