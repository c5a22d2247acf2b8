"""The smallest sum of costs within a number of bytes: one option for each item, near-exact and always the same.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Item", "Option", "Selection", "choose", "frontier", "smallest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way of storing an item: its type, what it takes in bytes, what it costs in quality (here: expected KL in nats) and in time."""

    kind: str
    nbytes: int
    cost: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that gets exactly one of its options: a tensor, or several that must agree."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice for each item, and its sums. `bound` is a proven lower bound of the cost of any choice within the same limits."""

    kinds: Mapping[str, str]
    nbytes: int
    cost: float
    seconds: float
    bound: float


def choose(items: Sequence[Item], nbytes: int, *, seconds: float | None = None) -> Selection:
    """Return the choice of the least cost with at most NBYTES bytes and, where given, at most SECONDS.

    Raises ValueError where no choice is that small or that fast.
    """
    raise NotImplementedError


def smallest(items: Sequence[Item], cost: float, *, seconds: float | None = None) -> Selection:
    """Return the choice with the fewest bytes whose cost is at most COST. Raises ValueError where none is that good."""
    raise NotImplementedError


def frontier(items: Sequence[Item], *, seconds: float | None = None) -> tuple[Selection, ...]:
    """Return choices of growing size and falling cost, from the smallest to the best: the corners of the lower convex hull."""
    raise NotImplementedError
