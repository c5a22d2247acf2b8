"""A text that is longer than the context, as windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Window", "windows"]


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens START to END of a text, read as if the text began there; those from FIRST on are scored."""

    start: int
    end: int
    first: int


def windows(count: int, size: int) -> Iterator[Window]:
    """Yield the windows that score the tokens 1 … COUNT - 1 of a text once each, SIZE tokens at a time.

    A text that fits is one window. Of a longer one, each window after the first repeats the half before it as context and scores its own
    second half, so that every token has at least SIZE / 2 tokens before it, or all there are. llama-perplexity scores second halves of
    windows that do not overlap, a quarter of the work for half of the tokens; transformers' guide to perplexity overlaps as here.
    """
    stride = max(1, size // 2)
    end = min(count, size)
    yield Window(0, end, 1)
    while end < count:
        first = end
        end = min(count, end + stride)
        yield Window(end - size, end, first)
