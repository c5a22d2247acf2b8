"""Protocol buffer messages read field by field, each checked against the bytes that are there.

The wire format: https://protobuf.dev/programming-guides/encoding/. Nothing is copied but what is asked for, so that a file with
hundreds of megabytes of weights is looked through in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from converters.errors import InvalidModel

__all__ = ["DAMAGED", "Message"]

DAMAGED = "the file is damaged or incomplete: download or convert it again"
MAX_DEPTH = 48
"""Graphs in attributes of nodes of graphs …; protobuf's own limit is 100 messages."""
MAX_STRING_BYTES = 1 << 26
VARINT, I64, LEN, I32 = 0, 1, 2, 5
MOST = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Message:
    """The bytes START to END of DATA, a message of the file PATH; `depth` messages around it."""

    path: Path
    data: Any
    start: int
    end: int
    depth: int = 0

    def fail(self, what: str, hint: str = DAMAGED) -> NoReturn:
        """Raise InvalidModel with WHAT is wrong with the file."""
        raise InvalidModel(f"{str(self.path)!r} {what}", hint=hint)

    def fields(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, a, b): of a number a is its value, of anything with a length it is the bytes a to b."""
        at, end = self.start, self.end
        while at < end:
            key, at = self.varint(at)
            number, kind = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                self.fail(f"is not valid: a field has the number {number}")
            if kind == LEN:
                size, at = self.varint(at)
                if size > end - at:
                    self.fail(f"ends in the middle of a field: {size - (end - at)} of {size} bytes are missing")
                yield number, kind, at, at + size
                at += size
            elif kind == VARINT:
                value, at = self.varint(at)
                yield number, kind, value, at
            elif kind in (I64, I32):
                size = 8 if kind == I64 else 4
                if size > end - at:
                    self.fail("ends in the middle of a number")
                yield number, kind, int.from_bytes(self.data[at : at + size], "little"), at
                at += size
            else:
                self.fail(f"is not valid: a field is of the wire type {kind}, and 0, 1, 2 and 5 are known")

    def varint(self, at: int) -> tuple[int, int]:
        """Return the number at AT and where the next thing begins."""
        value, shift, data, end = 0, 0, self.data, self.end
        while at < end:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & MOST, at
            shift += 7
            if shift > 63:
                self.fail("is not valid: a number has more than ten bytes")
        return self.fail("ends in the middle of a number")

    def inner(self, start: int, end: int) -> Message:
        """Return the message in the bytes START to END of this one."""
        if self.depth >= MAX_DEPTH:
            self.fail(f"is not valid: more than {MAX_DEPTH} messages are inside each other")
        return Message(self.path, self.data, start, end, self.depth + 1)

    def text(self, start: int, end: int, what: str, limit: int = MAX_STRING_BYTES) -> str:
        """Return the bytes START to END as text."""
        if end - start > limit:
            self.fail(f"is not valid: {what} has {end - start} bytes, and at most {limit} are possible")
        try:
            return bytes(self.data[start:end]).decode()
        except UnicodeDecodeError:
            self.fail(f"is not valid: {what} is not UTF-8")

    def numbers(self, kind: int, a: int, b: int) -> list[int]:
        """Return the signed numbers of a repeated field, of which this is one (kind 0) or a packed run of them."""
        if kind == VARINT:
            return [signed(a)]
        if kind != LEN:
            self.fail("is not valid: a whole number is written as something else")
        found, packed = [], Message(self.path, self.data, a, b, self.depth)
        while a < b:
            value, a = packed.varint(a)
            found.append(signed(value))
        return found


def signed(value: int) -> int:
    """Return VALUE, 64 bits, as a signed number."""
    return value - (1 << 64) if value >> 63 else value
