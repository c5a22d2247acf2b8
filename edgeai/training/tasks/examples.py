"""Examples as a source gives them, before anything is learned from them; and how they are dealt out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgeai.errors import RecipeError
from edgeai.types import Notice

__all__ = ["Column", "Examples", "Split", "split"]

LEAST_OF_A_CLASS = 5
"""Different examples: one of them is held out for the test, and one may be looked at on the way."""
BINS = 10
"""Targets that are numbers are dealt out evenly by tenths of their range."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: numbers (float64), or the texts of categories."""

    name: str
    numbers: npt.NDArray[np.float64] | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The rows of a source: their inputs in one of three forms, and their classes or target values.

    `images` is (rows, channels, height, width) uint8. `classes` holds the index of each row's label in `labels`;
    a regression has `values` (rows, targets) float64 instead, and the names of the `targets`.
    """

    source: str
    images: npt.NDArray[np.uint8] | None = None
    columns: tuple[Column, ...] = ()
    texts: tuple[str, ...] = ()
    classes: Indices | None = None
    labels: tuple[str, ...] = ()
    values: npt.NDArray[np.float64] | None = None
    targets: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = field(default=())

    def __len__(self) -> int:
        """Return the number of rows."""
        answers = self.classes if self.classes is not None else self.values
        assert answers is not None  # noqa: S101 - every source fills one
        return len(answers)

    def row_bytes(self, row: int) -> bytes:
        """Return what the model gets to see of ROW; equal rows have equal bytes."""
        if self.images is not None:
            pixels: bytes = self.images[row].tobytes()
            return pixels
        if self.texts:
            return " ".join(self.texts[row].split()).casefold().encode()
        parts = [
            column.numbers[row].tobytes() if column.numbers is not None else column.texts[row].encode()
            for column in self.columns
        ]
        return b"\0".join(parts)

    @property
    def sha256(self) -> str:
        """Hash of all inputs and answers."""
        digest = hashlib.sha256(repr((self.labels, self.targets, [column.name for column in self.columns])).encode())
        for row in range(len(self)):
            digest.update(hashlib.sha256(self.texts[row].encode() if self.texts else self.row_bytes(row)).digest())
        for answers in (self.classes, self.values):
            if answers is not None:
                digest.update(answers.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are trained on, looked at on the way, and kept for the end; no row is in two, each part is shuffled."""

    train: Indices
    val: Indices
    test: Indices


def split(examples: Examples, *, test_fraction: float, val_fraction: float, seed: int) -> Split:
    """Deal EXAMPLES out by SEED, each class (or tenth of the values) in the same shares.

    Rows with equal inputs stay together: a copy of a test row that was trained on would be no test.
    Raises RecipeError where a class is too small to be in every part.
    """
    strata = _strata(examples)
    groups: dict[bytes, list[int]] = {}
    for row in range(len(examples)):
        groups.setdefault(examples.row_bytes(row), []).append(row)
    by_stratum: dict[int, list[list[int]]] = {}
    for rows in groups.values():
        by_stratum.setdefault(int(strata[rows[0]]), []).append(rows)
    _check_sizes(examples, by_stratum)
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for stratum in sorted(by_stratum):
        members = by_stratum[stratum]
        order = [members[index] for index in rng.permutation(len(members))]
        count = sum(map(len, members))
        for name, fraction in (("test", test_fraction), ("val", val_fraction)):
            quota = max(round(count * fraction), 1)
            while quota > 0 and len(order) > 1:
                rows = order.pop()
                parts[name] += rows
                quota -= len(rows)
        parts["train"] += [row for rows in order for row in rows]
    shuffled = {name: rng.permutation(np.array(rows, dtype=np.int64)) for name, rows in parts.items()}
    return Split(**shuffled)


def _strata(examples: Examples) -> Indices:
    if examples.classes is not None:
        return examples.classes
    assert examples.values is not None  # noqa: S101 - every source fills one
    ranks = examples.values[:, 0].argsort(kind="stable").argsort(kind="stable")
    bins = min(BINS, max(len(ranks) // LEAST_OF_A_CLASS, 1))
    return (ranks * bins // len(ranks)).astype(np.int64)


def _check_sizes(examples: Examples, by_stratum: dict[int, list[list[int]]]) -> None:
    if examples.classes is None:
        if len(examples) < 2 * LEAST_OF_A_CLASS:
            raise RecipeError(
                f"{examples.source!r} has {len(examples)} rows, too few to learn from and to test on",
                hint=f"give at least {2 * LEAST_OF_A_CLASS}",
            )
        return
    check_classes(examples.source, examples.labels)
    for index, label in enumerate(examples.labels):
        count = len(by_stratum.get(index, ()))
        if count < LEAST_OF_A_CLASS:
            raise RecipeError(
                f"the class {label!r} of {examples.source!r} has {count} different examples, too few to learn and to test",
                hint=f"give at least {LEAST_OF_A_CLASS} of each class, or take that class out; "
                'if the answers are amounts: task.kind = "regression"',
            )


def check_classes(source: str, labels: Sequence[str]) -> None:
    """Raise RecipeError unless there are at least two LABELS."""
    if len(labels) < 2:
        raise RecipeError(
            f"{source!r} has one class alone: {', '.join(map(repr, labels)) or 'none'}",
            hint="there is nothing to tell apart: give examples of at least two classes",
        )
