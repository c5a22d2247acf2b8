"""What passes from the readers of inputs to the session: arrays for some items, and what has to be said of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from edgeai.types import Notice

__all__ = ["Batch", "Fill", "Place", "Reader", "groups", "never"]

T = TypeVar("T")
Fill = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of the graph for `count` items, and the notices of each of them."""

    feed: Mapping[str, Any]
    count: int
    notices: tuple[tuple[Notice, ...], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is, in words: a file, or which item of how many."""

    name: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        parts = [self.name]
        parts += [] if self.row is None else [f"row {self.row}"]
        parts += [] if self.column is None else [f"column {self.column!r}"]
        return ", ".join(parts)


class Reader(Protocol):
    """Makes arrays of what a user gives. `item_shape` is that of one item where it is always the same, () where it is not."""

    item_shape: tuple[int, ...]
    dtype: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of the graph that it fills."""

    def filler(self, into: Any) -> Fill:
        """Return what writes an item to the array INTO, (1, …), if that takes no more than arithmetic; else it returns False.

        It is called for one item alone, where each microsecond counts, and by one thread only.
        """

    def batches(self, items: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield ITEMS in batches of at most ROWS. Raises UsageError with the place of what is wrong."""


def never(item: Any) -> bool:  # noqa: ARG001
    """Return False, as the `filler` of a reader whose items always take more than arithmetic."""
    return False


def groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield ITEMS in parts of at most SIZE."""
    for at in range(0, len(items), size):
        yield items[at : at + size]
