"""What libllama writes for the state of a sequence, read in Python: native code gets a state only when every size in it is right.

The layout is that of `state_write` in llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp and
llama-memory-hybrid.cpp: a magic number and the sequence, then one part for each memory of the model. What a model's parts and rows are is
learned from a state that this library has just made with this model, so a layout that is not known here is refused, never guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgeai.errors import InvalidModel

__all__ = ["Layout", "Part", "read_state"]

Kind = Literal["attention", "recurrent"]
MEMORIES: tuple[tuple[Kind, ...], ...] = (
    ("attention",),
    ("attention", "attention"),
    ("recurrent",),
    ("attention", "recurrent"),
    ("attention", "attention", "recurrent"),
)
"""The parts of a plain cache, one with sliding windows, a recurrent one, a hybrid, and a hybrid with sliding windows."""
MAGIC = 0xAF143CD8  # io_magic, llama-context.cpp
MOST_LAYERS, MOST_STREAMS, MOST_CELLS = 4096, 256, 1 << 24
SCALES: Mapping[int, tuple[str, int]] = {
    0: ("<f4", 0), 1: ("<f2", 0), 30: ("<u2", 0),
    2: ("<f2", 18), 3: ("<f2", 20), 6: ("<f2", 22), 7: ("<f2", 24), 8: ("<f2", 34), 20: ("<f2", 18),
}  # fmt: skip
"""enum ggml_type → the numbers that must be finite, and the bytes of the block that they begin (0: all are numbers); ggml-common.h."""
TWO_SCALES = (3, 7)
"""Types whose block begins with a scale and a minimum."""
BF16 = 30


class Foreign(Exception):
    """The bytes are not of the layout that is tried."""


@dataclass(frozen=True, slots=True)
class Row:
    """The data of one tensor: its type, what its size is counted in, and where its bytes are."""

    kind: int
    sizes: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """The state of one memory: the positions of its cells, and its tensors.

    `streams`: how many caches the memory is divided into; a sequence is in one of them. `start`, `stop`: where its bytes are, and `first`:
    where those of the sequence's own cache begin; it ends at `last`.
    """

    kind: Kind
    start: int
    first: int
    last: int
    stop: int
    streams: int
    positions: tuple[int, ...]
    turned: int
    rows: tuple[Row, ...]

    @property
    def shape(self) -> tuple[object, ...]:
        """What does not depend on the text: equal for all states of one model and one type of cache."""
        return self.kind, self.turned, tuple((row.kind, row.sizes) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole state, part by part."""

    parts: tuple[Part, ...]

    def check(self, other: Layout, data: bytes, tokens: int, window: int | None) -> None:
        """Raise InvalidModel unless OTHER, the layout of DATA, is that of a state of TOKENS tokens of the model that made this one.

        WINDOW is the model's sliding window, in tokens.
        """
        if [part.shape for part in self.parts] != [part.shape for part in other.parts]:
            raise InvalidModel("the state is of another model or another kind of KV cache", hint=AGAIN)
        for index, part in enumerate(other.parts):
            cells = sorted(part.positions)
            if part.kind == "recurrent":
                right = cells == [tokens - 1]
            elif index == 0:
                right = cells == list(range(tokens))
            else:
                right = len(cells) >= min(tokens, window or 1) and cells == list(range(tokens - len(cells), tokens))
            if not right:
                raise InvalidModel(f"the state has {len(cells)} cells, and not those of {tokens} tokens", hint=AGAIN)
            for row in part.rows:
                check_finite(row, data)

    def rewritten(self, other: Layout, data: bytes) -> bytes:
        """Return DATA, whose layout is OTHER, for a memory that is divided as this one's: in one cache, or one for each sequence."""
        found = data[: other.parts[0].start]
        for mine, part in zip(self.parts, other.parts, strict=True):
            if part.kind == "attention":
                empty = struct.pack("<I", 0) * (mine.streams - 1)
                found += struct.pack("<I", mine.streams) + data[part.first : part.last] + empty
            else:
                found += data[part.start : part.stop]
        return found


AGAIN = "save the prompt again with this model"


def read_state(data: bytes) -> Layout:
    """Return the layout of DATA. Raises InvalidModel for bytes that have none, whatever is in them."""
    for kinds in MEMORIES:
        reader = Reader(data)
        try:
            if reader.u32() != MAGIC:
                break
            reader.i32()  # the sequence it was saved from
            parts = tuple(attention(reader) if kind == "attention" else recurrent(reader) for kind in kinds)
        except Foreign:
            continue
        if reader.at == len(data):
            return Layout(parts)
    raise InvalidModel("the state is not laid out as libllama does it for a model that is known here", hint=AGAIN)


@dataclass(slots=True)
class Reader:
    """Takes numbers from `data`; Foreign where it ends too soon."""

    data: bytes
    at: int = 0

    def take(self, size: int) -> int:
        """Skip SIZE bytes and return where they begin."""
        start, self.at = self.at, self.at + size
        if size < 0 or self.at > len(self.data):
            raise Foreign
        return start

    def number(self, form: str, most: int) -> int:
        """Return the next number, in struct's FORM and at most MOST."""
        start = self.take(struct.calcsize(form))
        value = int(struct.unpack_from(form, self.data, start)[0])
        if value > most:
            raise Foreign
        return value

    def u32(self, most: int = 2**32) -> int:
        """Return the next u32."""
        return self.number("<I", most)

    def i32(self) -> int:
        """Return the next i32."""
        return self.number("<i", 2**31)

    def row(self, cells: int) -> Row:
        """Return a tensor of CELLS rows: its type, the bytes of a row, the rows."""
        kind, size = self.i32(), self.number("<Q", len(self.data))
        start = self.take(cells * size)
        return Row(kind, (size,), start, self.at)

    def columns(self, cells: int) -> Row:
        """Return a tensor that is kept the other way round: its type, the bytes of a number, how many to a cell, the numbers."""
        kind, size, count = self.i32(), self.u32(8), self.u32(1 << 24)
        start = self.take(cells * size * count)
        return Row(kind, (size, count), start, self.at)


def attention(reader: Reader) -> Part:
    """Read a KV cache. The rows of V may be kept turned, where there is no flash attention."""
    start, streams = reader.at, reader.u32(MOST_STREAMS)
    first = last = reader.at
    positions: tuple[int, ...] = ()
    turned, rows = 0, list[Row]()
    for _ in range(streams):
        at, count = reader.at, reader.u32(MOST_CELLS)
        if not count:
            continue
        if positions:
            raise Foreign  # one sequence lives in one stream
        first = at
        positions = tuple(cell(reader, of=1) for _ in range(count))
        turned, layers = reader.u32(1), reader.u32(MOST_LAYERS)
        rows += [reader.row(count) for _ in range(layers)]
        rows += [reader.columns(count) if turned else reader.row(count) for _ in range(layers)]
        last = reader.at
    return Part("attention", start, first, last, reader.at, streams, positions, turned, tuple(rows))


def recurrent(reader: Reader) -> Part:
    """Read a recurrent state, which is always the last part: tensors follow to the end, of those layers that have any."""
    start, count = reader.at, reader.u32(1)
    positions = tuple(cell(reader, of=0) for _ in range(count))
    turned, layers = reader.u32(0), reader.u32(MOST_LAYERS)
    rows: list[Row] = []
    while reader.at < len(reader.data):
        rows.append(reader.row(count))
        if len(rows) > 2 * layers:
            raise Foreign
    return Part("recurrent", start, start, reader.at, reader.at, 1, positions, turned, tuple(rows))


def cell(reader: Reader, of: int) -> int:
    """Return the position of the next cell, which is of OF sequences."""
    position = reader.i32()
    if reader.u32(of) != of:
        raise Foreign
    reader.take(4 * of)
    return position


def check_finite(row: Row, data: bytes) -> None:
    """Raise InvalidModel where a number or the scale of a block is no number: it would spoil every answer after it."""
    import numpy as np

    if row.kind not in SCALES:
        raise InvalidModel(f"the state has numbers of ggml's type {row.kind}, which is not known here", hint=AGAIN)
    form, block = SCALES[row.kind]
    values = np.frombuffer(data, np.uint8, row.stop - row.start, row.start)
    if block:
        scales = 2 if row.kind in TWO_SCALES else 1
        whole = len(values) // block * block
        values = np.ascontiguousarray(values[:whole].reshape(-1, block)[:, : 2 * scales])
    whole = values.size // np.dtype(form).itemsize * np.dtype(form).itemsize
    numbers = values.reshape(-1)[:whole].view(form)
    finite = (numbers & 0x7F80) != 0x7F80 if row.kind == BF16 else np.isfinite(numbers)
    if not finite.all():
        raise InvalidModel("the state has a number that is not finite", hint=AGAIN)
