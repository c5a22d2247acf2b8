"""The tensors of a GGUF file as sources of weights: decoded row by row, in torch's order of dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Source, read_at
from converters.dequantize import decode
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families.rules import Transform
from converters.header import GGUFHeader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["Backwards", "StoredTensor", "check_whole", "stored_tensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a GGUF file. `shape` is torch's order; `kind` is the type that it is stored in."""

    name: str
    shape: tuple[int, ...]
    kind: str
    file: Path
    start: int
    nbytes: int

    @property
    def dtype(self) -> str:
        """How its values come out of `rows`."""
        return "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that holds it."""
        return (self.file,)

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) as float32, shape (last - first, *shape[1:]).

        Raises BrokenCheckpoint when the file has become shorter.
        """
        if len(self.shape) == 1:  # the blocks of a vector do not end at its items
            return self.read(0, self.nbytes, self.shape[0]).reshape(self.shape)[first:last]
        row_bytes = self.nbytes // self.shape[0]
        rows = self.read(first * row_bytes, (last - first) * row_bytes, self.shape[-1])
        return rows.reshape(last - first, *self.shape[1:])

    def read(self, offset: int, size: int, columns: int) -> F32:
        """Return SIZE bytes from OFFSET as rows of COLUMNS."""
        raw = read_at(self.file, self.start + offset, size)
        if len(raw) != size:
            raise BrokenCheckpoint(
                f"{str(self.file)!r} ends inside the tensor {self.name!r}", hint="copy or download the model again"
            )
        return decode(raw, self.kind, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backwards:
    """A stored tensor under its name in a checkpoint, with what the conversion did to it undone.

    `undo` works on blocks of `block_rows` rows. `stored` is stacked (one matrix for each expert) where `part` is not None.
    """

    name: str
    shape: tuple[int, ...]
    stored: Source
    undo: Transform | None = None
    block_rows: int = 1
    transposed: bool = False
    part: int | None = None

    @property
    def dtype(self) -> str:
        """How its values come out of `rows`."""
        return "F32"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it."""
        return self.stored.files

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) as float32, shape (last - first, *shape[1:])."""
        import numpy as np

        if self.transposed:
            whole = self.stored.rows(0, self.stored.shape[0])
            return np.ascontiguousarray(whole.T[first:last])
        if self.part is not None:
            matrix: F32 = self.stored.rows(self.part, self.part + 1)[0]
            return matrix[first:last]
        if self.undo is None:
            return self.stored.rows(first, last).reshape(last - first, *self.shape[1:])
        begin = first // self.block_rows * self.block_rows
        end = min(-(-last // self.block_rows) * self.block_rows, self.shape[0])
        rows = self.undo(self.stored.rows(begin, end), self.block_rows)
        return rows[first - begin : last - begin].reshape(last - first, *self.shape[1:])


def check_whole(header: GGUFHeader) -> None:
    """Raise UnsupportedModel for a GGUF file that is no whole model: a LoRA adapter, a projector, one part of several, another kind."""
    if not any(key.startswith(f"{header.arch}.") for key in header.kv) and header.kv.get("general.type") != "adapter":
        raise UnsupportedModel(
            f"{str(header.path)!r} is of the architecture {header.arch!r}, and has no settings of that",
            hint="name a file that llama.cpp runs",
        )
    kind, parts = header.kv.get("general.type", "model"), header.kv.get("split.count", 1)
    if kind == "adapter" or any(tensor.name.endswith((".lora_a", ".lora_b")) for tensor in header.tensors[:2]):
        raise UnsupportedModel(
            f"{str(header.path)!r} is an adapter, not a model", hint="convert its PEFT folder with --base, and --merge"
        )
    if kind != "model":
        raise UnsupportedModel(f"{str(header.path)!r} says that it is a {kind!r}, and a model is needed")
    if type(parts) is int and parts > 1:
        raise UnsupportedModel(
            f"{str(header.path)!r} is one of {parts} parts of a model",
            hint="join them first: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )


def stored_tensors(header: GGUFHeader) -> dict[str, StoredTensor]:
    """Return every tensor of the file by name; their shapes in torch's order."""
    return {
        tensor.name: StoredTensor(
            name=tensor.name,
            shape=tuple(reversed(tensor.shape)),
            kind=tensor.type,
            file=header.path,
            start=tensor.offset,
            nbytes=tensor.nbytes,
        )
        for tensor in header.tensors
    }
