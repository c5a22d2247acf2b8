"""Frames in a stream of bytes: a mark, two lengths, a JSON array [kind, id, value], and the bytes of arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeai.engines.worker.values import BrokenValue, from_json, to_json
from edgeai.errors import UsageError

__all__ = ["BrokenStream", "Frame", "FrameReader", "pack"]

MARK = b"eai1"
HEAD = struct.Struct("<4sII")
MAX_JSON = 1 << 28
MAX_RAW = 1 << 31
"""Bounds on one frame in bytes: garbage must not be taken for a frame of gigabytes that never comes."""


class BrokenStream(Exception):
    """What was read is no frame of this protocol."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `id` is that of the request it is about, 0 for none."""

    kind: str
    id: int
    value: Any


def pack(kind: str, request: int = 0, value: Any = None) -> bytes:
    """Return a frame as bytes. Raises TypeError for a value that may not travel, UsageError for one that is too large."""
    raw: list[bytes] = []
    text = json.dumps([kind, request, to_json(value, raw)], separators=(",", ":")).encode()
    size = sum(map(len, raw))
    if len(text) > MAX_JSON or size > MAX_RAW:
        raise UsageError(
            f"a request of {len(text) + size} bytes is too large", hint=f"at most {MAX_JSON} bytes go at once"
        )
    return b"".join((HEAD.pack(MARK, len(text), size), text, *raw))


class FrameReader:
    """Cuts frames from the bytes that it is fed."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that DATA completes. Raises BrokenStream; nothing can be read after that."""
        self._held += data
        at = 0
        while len(self._held) - at >= HEAD.size:
            mark, text, raw = HEAD.unpack_from(self._held, at)
            if mark != MARK or text > MAX_JSON or raw > MAX_RAW:
                raise BrokenStream(f"{bytes(self._held[at : at + 16])!r} does not begin a frame")
            end = at + HEAD.size + text + raw
            if len(self._held) < end:
                break
            frame = _frame(bytes(self._held[at + HEAD.size : end]), text)
            at = end
            yield frame
        del self._held[:at]


def _frame(data: bytes, size: int) -> Frame:
    """Return the frame whose JSON are the first SIZE bytes of DATA."""
    try:
        found = json.loads(data[:size])
        kind, request, value = found
        if not isinstance(kind, str) or not isinstance(request, int):
            raise BrokenStream(f"{str(found)[:60]!r} is no message")
        return Frame(kind, request, from_json(value, memoryview(data)[size:]))
    except (ValueError, TypeError, RecursionError, BrokenValue) as error:
        raise BrokenStream(f"{data[:size][:60]!r} is no message: {error}") from error
