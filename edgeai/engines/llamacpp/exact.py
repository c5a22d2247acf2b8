"""When an answer that begins with kept tokens is the same, to the bit, as one for which they were computed anew.

libggml adds in another order where a batch has another shape, and quantized models make large differences of the smallest: of twelve
greedy answers of SmolLM2 behind a kept system prompt eight were other ones. What it computes for a token on CPUs depends on

- whether the batch has 64 tokens or more (attention in tiles, ggml-cpu/ops.cpp, GGML_FA_TILE_Q) or fewer,
- whether the token is among the last few that do not fill a group of rows (matrices repacked for 4 or 8 rows at a time, repack.cpp),
- where its sequence is in the cache, and on nothing else of the batch.

So a request that is alone reads its prompt in batches of 64 rows at least and in whole groups, padded with tokens of nobody. What it has
read in this way is exact, and another one that is alone may begin with any of it and compute the rest in the same way. So near to the end
of the context that there is no room for the padding it is read from its first token on, as a fresh model would. Beside others
an answer depends on them anyway: `deterministic` is for those to whom that matters.
"""

from __future__ import annotations

__all__ = ["TILE", "padded", "padding"]

TILE = 64
"""Rows from which on attention is computed in tiles."""
GROUP = 8
"""The rows of the largest group that matrices are repacked for."""


def padding(count: int) -> int:
    """Return how many tokens of nobody go with COUNT tokens of a prompt."""
    return max(TILE, -(-count // GROUP) * GROUP) - count


def padded(count: int, context: int) -> bool:
    """Whether a prompt of COUNT tokens can be read to its end in this way, whatever parts it is read in, within a CONTEXT of so many."""
    return count + TILE <= context
