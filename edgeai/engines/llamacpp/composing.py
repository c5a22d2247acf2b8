"""What the next batch computes: one token of each answer, and parts of prompts in what is left. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence

from edgeai.engines.llamacpp.exact import TILE

__all__ = ["STALL_S", "PromptPace", "in_turns", "places", "share_out"]

STALL_S = 0.1
"""Seconds that prompts of others may hold up a running answer between two of its tokens."""

SMALLEST = 32
"""Tokens of prompts that every batch has room for, however many answers are in it."""


class PromptPace:
    """How many tokens of prompts a batch may have so that running answers wait no longer than STALL_S; learned while running.

    On a GPU llama_decode returns before a batch is computed, and only who reads logits waits for it: what batches without logits take
    is known with the next one that has some.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._per_token = 0.0  # seconds
        self._unknown_tokens, self._unknown_s = 0, 0.0

    def learn(self, prompt_tokens: int, seconds: float, *, computed: bool) -> None:
        """Take note that a batch with PROMPT_TOKENS tokens of prompts took SECONDS, in which it was COMPUTED to its end, or only begun."""
        self._unknown_tokens += prompt_tokens
        self._unknown_s += seconds
        if not computed:
            return
        tokens, seconds = self._unknown_tokens, self._unknown_s
        self.interrupted()
        if tokens >= SMALLEST:
            found = seconds / tokens
            self._per_token = found if not self._per_token else 0.5 * (self._per_token + found)

    def interrupted(self) -> None:
        """Forget batches of which it is not known how long they took: what came after them was not computed."""
        self._unknown_tokens, self._unknown_s = 0, 0.0

    def allowance(self, answering: int) -> int:
        """Return how many tokens of prompts the next batch may have while ANSWERING others wait for their next token.

        Together they fill whole tiles: 32 tokens behind 4000 others take nearly as long as 64 (410 and 502 ms with SmolLM2 on two
        cores, 946 ms for 63), since libggml has a faster attention for these.
        """
        fitting = int(STALL_S / self._per_token) if self._per_token else TILE
        rows = max(TILE, (answering + fitting) // TILE * TILE)
        return min(self._batch, max(SMALLEST, rows - answering))


def places(capacity: int, *, reading: bool) -> int:
    """Return how many answers may have a token in a batch of CAPACITY; where prompts are being READ, some of it is left to them."""
    return capacity - min(SMALLEST, capacity // 2) if reading else capacity


def share_out(pending: Sequence[int], allowance: int) -> list[int]:
    """Return how many tokens of each prompt go into a batch of ALLOWANCE; PENDING is what they lack, the oldest request first.

    The oldest gets at least half, so that it is never starved; what is left goes to the shortest first, so that a short question
    does not wait for a long one to be read.
    """
    shares = [0] * len(pending)
    if not pending or allowance < 1:
        return shares
    shares[0] = min(pending[0], max(1, allowance // 2))
    left = allowance - shares[0]
    for index in sorted(range(1, len(pending)), key=lambda at: (pending[at], at)):
        shares[index] = min(pending[index], left)
        left -= shares[index]
    shares[0] += min(pending[0] - shares[0], left)
    return shares


def in_turns(pending: Sequence[int], allowance: int, *, shortest: bool) -> list[int]:
    """Return the same where a prompt is computed by itself, and slowly in small parts: one gets all it can take, then the next.

    The oldest is first, or the SHORTEST; who asks takes turns between the two, for the reasons that `share_out` has.
    """
    shares, left = [0] * len(pending), allowance
    if not pending:
        return shares
    by_length = sorted(range(1, len(pending)), key=lambda at: (pending[at], at))
    for index in (*by_length, 0) if shortest else (0, *by_length):
        shares[index] = min(pending[index], left)
        left -= shares[index]
    return shares
