"""Read the values of a GGUF file one after the other, each checked against the bytes that are there.

`converters.header` knows what follows what; this file knows strings, numbers and arrays, and the limits on them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from converters.errors import InvalidModel

__all__ = ["DAMAGED", "STRING", "TYPE_NAMES", "Cursor", "GGUFArray"]

MAX_STRING_BYTES = 1 << 24
"""ggml allows 1 GiB; the longest strings in real headers are chat templates of some 100 kB."""
MAX_TEXT_BYTES = 1 << 26
"""All scalar strings together, so that a thousand long ones do not fill the memory."""
MAX_ITEMS = 4_000_000
"""Items that are looked at one by one, in all arrays together: five times those of the largest known vocabulary."""
SHORT_ARRAY = 256
"""Numeric arrays up to this length are decoded at once: head counts per layer, rope sections."""
TYPE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
BOOL, STRING, ARRAY = 7, 8, 9
CODES: Mapping[int, str] = dict(enumerate("BbHhIif")) | {BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""Value type → struct code; a bool is one byte."""
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
DAMAGED = "the file is damaged or incomplete: download or convert it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFArray:
    """An array in the header that has been checked but not decoded; `GGUFHeader.array` decodes it."""

    item: str
    length: int
    start: int
    size: int


@dataclass(slots=True)
class Cursor:
    """A place in the header. Every read goes through here and is checked against the end of the file."""

    path: Path
    data: Any
    size: int
    base: int = 0
    at: int = 0
    text_left: int = MAX_TEXT_BYTES
    items_left: int = MAX_ITEMS
    types: dict[str, str] = field(default_factory=dict)

    def fail(self, what: str, hint: str = DAMAGED) -> NoReturn:
        """Raise InvalidModel with WHAT is wrong."""
        raise InvalidModel(f"{str(self.path)!r} {what}", hint=hint)

    def need(self, count: int, what: str) -> int:
        """Return the present position and go COUNT bytes on."""
        start, left = self.at, self.size - self.at
        if count > left:
            self.fail(f"ends in the middle of {what}: {count - left} of {count} bytes are missing")
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit integer."""
        return int(U32.unpack_from(self.data, self.need(4, what))[0])

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit integer."""
        return int(U64.unpack_from(self.data, self.need(8, what))[0])

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        """Read a length and that many bytes of UTF-8."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            self.fail(f"is not valid: {what} has {length} bytes, and at most {limit} are possible")
        start = self.need(length, what)
        self.text_left -= length
        if self.text_left < 0:
            self.fail(f"is not valid: its header holds more than {MAX_TEXT_BYTES} bytes of text")
        raw = bytes(self.data[start : start + length])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"is not valid: {what} is not UTF-8: {raw[:32]!r}")

    def value(self, kind: int, key: str) -> Any:
        """Read one value of type KIND: a scalar, a string or an array."""
        if kind == STRING:
            return self.string(f"the value of {key!r}")
        if kind == ARRAY:
            return self.array(key)
        if kind not in CODES:
            self.fail(f"is not valid: {key!r} has the value type {kind}, and 0 to {len(TYPE_NAMES) - 1} are known")
        return self.numbers(kind, 1, key)[0]

    def numbers(self, kind: int, count: int, key: str) -> tuple[Any, ...]:
        """Read COUNT numbers or bools of type KIND."""
        code = f"<{count}{CODES[kind]}"
        start = self.need(struct.calcsize(code), f"the value of {key!r}")
        values = struct.unpack_from(code, self.data, start)
        if kind != BOOL:
            return values
        if values and max(values) > 1:
            self.fail(f"is not valid: {key!r} has a bool of {max(values)}, and only 0 and 1 are possible")
        return tuple(map(bool, values))

    def array(self, key: str) -> tuple[Any, ...] | GGUFArray:
        """Read an array: short numeric ones as a tuple, others checked and left where they are."""
        item, length = self.u32(f"the item type of {key!r}"), self.u64(f"the length of {key!r}")
        if item == ARRAY:  # the specification allows them, ggml's reader does not, and no model has them
            self.fail(f"is not valid: {key!r} is an array of arrays")
        if item != STRING and item not in CODES:
            self.fail(f"is not valid: {key!r} is an array of type {item}, and 0 to {len(TYPE_NAMES) - 1} are known")
        width = 8 if item == STRING else struct.calcsize(f"<{CODES[item]}")
        start, left = self.at, self.size - self.at
        if length * width > left:
            self.fail(f"is not valid: {key!r} says it has {length} items, and {left} bytes are left in the file")
        if item == STRING or length <= SHORT_ARRAY:
            self.items_left -= length
            if self.items_left < 0:
                self.fail(f"is not valid: its header holds more than {MAX_ITEMS} array items, {key!r} has {length}")
        if item == STRING:
            self.skip_strings(length, key)
        elif length <= SHORT_ARRAY:
            return self.numbers(item, length, key)
        else:
            self.need(length * width, f"the items of {key!r}")
        return GGUFArray(item=TYPE_NAMES[item], length=length, start=self.base + start, size=self.at - start)

    def skip_strings(self, length: int, key: str) -> None:
        """Go past LENGTH strings, checking each length."""
        # The hot loop: a length beyond the end makes the next unpack fail, so only the last one needs its own check.
        at, data, unpack = self.at, self.data, U64.unpack_from
        try:
            for _ in range(length):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError):
            at = self.size + 1
        if at > self.size:
            self.fail(f"is not valid: a string in {key!r} goes beyond the end of the file")
        self.at = at
