"""Answers without a model: random logits, masked as a real answer's are, over a vocabulary whose tokens cross every border of JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from edgeai.engines.constraint import Grammars, TokenMask

PIECES = (
    '{"',
    '":',
    '":"',
    '",',
    '","',
    '"}',
    '"]',
    "]}",
    "}}",
    "],",
    "},",
    "[]",
    "{}",
    '""',
    '["',
    "\\n",
    '\\"',
    "\\u",
    "\\u00",
    "u0061",
    "true",
    "null",
    "0.",
    "00",
    "-1",
    "1e",
    "e9",
    "12",
    "19",
    "202",
    "-0",
    "ab",
    "name",
    "yes",
    "é",
    "日本",
    "😀"[:1],
    " ",
    "  ",
    "\n",
    "a,b",
    "://",
    "@a.b",
    "T0",
    "Z",
)


class _Bytes:
    """A tokenizer of single bytes and PIECES; id 256 ends an answer, and so does the last one."""

    def __init__(self) -> None:
        pieces = [piece.encode() for piece in dict.fromkeys(PIECES) if len(piece.encode()) > 1]
        self.tokens = (
            [bytes([byte]) for byte in range(256)] + [b"\xff<end>"] + pieces + ["日".encode()[:2], b"\xff<turn>"]
        )
        self.eos_token_id, self.bos_token_id = 256, None
        self.special_token_ids = [256, len(self.tokens) - 1]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


VOCABULARY = _Bytes()
ENDS = (256, len(VOCABULARY.tokens) - 1)


def grammars() -> Grammars:
    return Grammars(lambda: LLTokenizer(TokenizerWrapper(VOCABULARY), eos_token=list(ENDS)))


def answer(
    mask: TokenMask,
    seed: int,
    *,
    tokens: Sequence[bytes] = VOCABULARY.tokens,
    ends: Sequence[int] = ENDS,
    steps: int = 600,
) -> tuple[str, bool]:
    """Return a random answer under MASK and whether it came to its end; what closes it becomes ever likelier."""
    source, noise, drawn = random.Random(seed), np.random.default_rng(seed), bytearray()
    closing = [index for index, piece in enumerate(tokens) if piece in (b'"', b"]", b"}")] + list(ends)
    favourites = noise.standard_normal(len(tokens)) * source.choice((0, 1, 4))
    for step in range(steps):
        logits = (noise.standard_normal(len(tokens)) * 2 + favourites).astype(np.float32)
        logits[closing] += min(step / 20, 5)
        mask.apply(logits)
        token = int(np.argmax(logits))
        mask.accept(token)
        if token in ends:
            return drawn.decode("utf-8", "replace"), True
        drawn += tokens[token]
        if mask.finished:
            return drawn.decode("utf-8", "replace"), True
    return drawn.decode("utf-8", "replace"), False
