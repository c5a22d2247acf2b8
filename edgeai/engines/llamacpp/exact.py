"""When an answer that begins with kept tokens is the same, to the bit, as one for which they were computed anew.

libggml adds in another order where a batch has another shape, and quantized models make large differences of the smallest: of twelve
greedy answers of SmolLM2 behind a kept system prompt eight were other ones. What it computes for a token on CPUs depends on

- whether the batch has 64 tokens or more (attention in tiles, ggml-cpu/ops.cpp, GGML_FA_TILE_Q) or fewer,
- whether the token is among the last few that do not fill a group of rows (matrices repacked for 4 or 8 rows at a time, repack.cpp),
- where its sequence is in the cache, and on nothing else of the batch.

So a request that is alone reads its prompt in parts of at least 64 tokens, or all at once where it has fewer; what it has read that
way is kept as exact; and another one that is alone takes a multiple of 8 tokens of it and leaves itself at least 64 to read. Both then
compute every token in the same way. Beside others an answer depends on them anyway: `deterministic` is for those to whom that matters.
"""

from __future__ import annotations

__all__ = ["LONG", "STEP", "exact_length", "part_of", "reusable"]

LONG = 64
"""Tokens from which on a batch is computed in tiles."""
STEP = 8
"""The rows of the largest group that matrices are repacked for."""


def part_of(pending: int, most: int, total: int) -> int:
    """Return how many of PENDING tokens of a prompt of TOTAL to read at once, MOST at the most: never are fewer than LONG left."""
    count = min(pending, most)
    if total >= LONG and 0 < pending - count < LONG:
        count = (pending - LONG) // STEP * STEP or count
    return count


def exact_length(computed: int, prompt: int) -> int:
    """Return how many tokens are exact of COMPUTED ones, when the prompt has PROMPT: tokens of an answer came one at a time."""
    return min(computed, prompt) // STEP * STEP


def reusable(shared: int, exact: int, *, long: bool, total: int) -> int:
    """Return how many tokens a prompt of TOTAL may take of one with which it has SHARED in common, of which EXACT are exact.

    LONG: whether that one was read in tiles. One of another kind gives nothing.
    """
    if long != (total >= LONG):
        return 0
    left = LONG if long else 2  # a single token is computed in another way than two
    return max(0, min(shared, exact, total - left)) // STEP * STEP
