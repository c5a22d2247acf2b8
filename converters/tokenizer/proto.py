"""The little of Protocol Buffers that a SentencePiece `tokenizer.model` needs.

Messages and numbers are those of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The file is untrusted:
every length is checked, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from converters.errors import BrokenCheckpoint

__all__ = ["Piece", "PieceModel", "parse"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece; the numbers of its types are those of libllama."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceModel:
    """What a `tokenizer.model` says. `kind` is 1 for Unigram and 2 for BPE."""

    pieces: tuple[Piece, ...]
    kind: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def parse(data: bytes) -> PieceModel:
    """Return what the file DATA says. Raises BrokenCheckpoint for one that is damaged."""
    pieces, kind, charsmap, prefix, spaces = list[Piece](), UNIGRAM, b"", True, True
    try:
        for number, value in fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(piece(value))
            elif number == 2 and isinstance(value, bytes):  # trainer_spec
                kind = next((int(item) for key, item in fields(value) if key == 3 and isinstance(item, int)), kind)
            elif number == 3 and isinstance(value, bytes):  # normalizer_spec
                for key, item in fields(value):
                    charsmap = item if key == 2 and isinstance(item, bytes) else charsmap
                    prefix = bool(item) if key == 3 else prefix
                    spaces = bool(item) if key == 4 else spaces
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise BrokenCheckpoint(f"tokenizer.model is damaged: {error}", hint="copy or download it again") from error
    if not pieces:
        raise BrokenCheckpoint("tokenizer.model has no pieces", hint="copy or download it again")
    return PieceModel(
        pieces=tuple(pieces), kind=kind, charsmap=charsmap, add_dummy_prefix=prefix, remove_extra_whitespaces=spaces
    )


def piece(data: bytes) -> Piece:
    """Return one SentencePiece message."""
    text, score, kind = "", 0.0, 1
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of the message DATA; numbers of fixed size come as their bytes."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == LENGTH:
            size, at = varint(data, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"field {number} at byte {at} ends behind the file")
        yield number, data[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at AT and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"the number at byte {at} is too long")
