"""Guesses at the next tokens, which the model then checks all at once: right ones are tokens for the price of none.

A guess never decides: each token is sampled from the model's own logits, and the guesses after the first wrong one are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Guesser", "Lookup", "Pace"]

LONGEST, SHORTEST = 4, 2  # tokens that must repeat; prompt lookup decoding (Saxena 2023) uses 3 and fewer


class Guesser(Protocol):
    """Guesses for one request; used by one thread."""

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to MOST tokens that may follow TOKENS, which only ever grow between two calls."""

    def close(self) -> None:
        """Free what the guesses took."""


class Lookup:
    """Guesses that what followed the last few tokens before will follow again."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what followed the latest earlier place of the longest ending of TOKENS that has one."""
        # The ending itself is looked up before it is noted, or it would find itself.
        for end in range(max(self._seen, SHORTEST), len(tokens)):
            for size in range(SHORTEST, LONGEST + 1):
                if end >= size:
                    self._after[tuple(tokens[end - size : end])] = end
        self._seen = len(tokens)
        for size in range(LONGEST, SHORTEST - 1, -1):
            at = self._after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if at is not None:
                return list(tokens[at : at + most])
        return []

    def close(self) -> None:
        """Nothing is held."""


class Pace:
    """How many tokens to guess: more while guesses are right, fewer while they are wrong."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = max(1, most // 2)

    def learn(self, guessed: int, right: int) -> None:
        """Take note that RIGHT of GUESSED tokens were right."""
        if guessed and right == guessed:
            self.count = min(self._most, 2 * self.count)
        elif guessed:
            self.count = max(1, right + 1)
