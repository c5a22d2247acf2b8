"""The smallest sum of costs within a number of bytes: one option for each item, near-exact and always the same.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11); `converters.knapsack_search` solves it.
The order of the items and of their options changes nothing. Sums of costs and of seconds are correctly rounded (`math.fsum`).
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from converters.knapsack_relaxation import NEAR, Problem, hull_steps
from converters.knapsack_search import minimise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.intp]

__all__ = ["Item", "Option", "Selection", "choose", "frontier", "smallest"]

ROUNDING = 1e-12
"""What a running sum of costs or of seconds may be off by, as a share."""
CORNERS = 64
"""Most corners of a frontier with a limit of time, each of which takes two searches of its own."""
EXACT = 1 << 1074
"""Every float is a multiple of 1 / EXACT."""
LEAST = {"nbytes": 0.0, "cost": -math.inf, "seconds": 0.0}
"""The numbers of an option, and the least that each may be."""
WORDS = {"nbytes": "{!r} bytes", "cost": "a cost of {!r}", "seconds": "{!r} seconds"}
"""How errors speak of their sums."""


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
    """A choice for each item, and its sums.

    `bound` is a proven lower bound of what was minimised, within the same limits: of the cost of any choice of `choose` and, within its
    own number of bytes, of `frontier`; of the bytes for `smallest`. Where it is the sum, but for rounding, no choice is better.
    """

    kinds: Mapping[str, str]
    nbytes: int
    cost: float
    seconds: float
    bound: float


def choose(items: Sequence[Item], nbytes: int, *, seconds: float | None = None) -> Selection:
    """Return the choice of the least cost with at most NBYTES bytes and, where given, at most SECONDS.

    Raises ValueError where no choice is that small or that fast.
    """
    table = _Table(items)
    return table.selection(*_best(table, "cost", {"nbytes": nbytes, "seconds": seconds}))


def smallest(items: Sequence[Item], cost: float, *, seconds: float | None = None) -> Selection:
    """Return the choice with the fewest bytes whose cost is at most COST and which takes, where given, at most SECONDS.

    Raises ValueError where none is that good or that fast.
    """
    table = _Table(items)
    return table.selection(*_best(table, "nbytes", {"cost": cost, "seconds": seconds}))


def frontier(items: Sequence[Item], *, seconds: float | None = None) -> tuple[Selection, ...]:
    """Return choices of growing size and falling cost, from the smallest to the best: the corners of the lower convex hull.

    Without SECONDS these are all corners, and each is the best choice of its size. With it they are near-exact, and at most `CORNERS`.
    Raises ValueError where no choice is that fast.
    """
    table = _Table(items)
    return _corners(table) if seconds is None or seconds == math.inf else _timed_corners(table, seconds)


class _Table:
    """Items in the order of their names: `columns` has the numbers of their options, (items, options), `real` tells where there are any."""

    def __init__(self, items: Sequence[Item]) -> None:
        import numpy as np

        ordered = sorted(items, key=lambda item: item.name)
        self.names = [item.name for item in ordered]
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is the name of several items; give each a name of its own")
        self.options = [_checked(item) for item in ordered]
        shape = len(ordered), max(map(len, self.options), default=1)
        self.columns: dict[str, F64] = {field: np.zeros(shape) for field in LEAST}
        self.real = np.zeros(shape, dtype=bool)
        for row, options in enumerate(self.options):
            self.real[row, : len(options)] = True
            for field, column in self.columns.items():
                column[row, : len(options)] = [getattr(option, field) for option in options]

    def chosen(self, picks: Ints) -> list[Option]:
        """Return the options at PICKS."""
        return [options[pick] for options, pick in zip(self.options, picks.tolist(), strict=True)]

    def total(self, field: str, picks: Ints) -> float:
        """Return the sum of FIELD over PICKS; a whole number of bytes."""
        values = [getattr(option, field) for option in self.chosen(picks)]
        return sum(values) if field == "nbytes" else math.fsum(values)

    def least(self, *fields: str) -> Ints:
        """Return the choice of the least sum of the first of FIELDS; of equal options, the one with the least of the next, and so on."""
        import numpy as np

        left = self.real
        for field in fields:
            column = np.where(left, self.columns[field], np.inf)
            left = left & (column == column.min(axis=1, keepdims=True))
        picks: Ints = left.argmax(axis=1)
        return picks

    def selection(self, picks: Ints, bound: float) -> Selection:
        """Return PICKS as a selection."""
        chosen = self.chosen(picks)
        return Selection(
            kinds={name: option.kind for name, option in zip(self.names, chosen, strict=True)},
            nbytes=sum(option.nbytes for option in chosen),
            cost=math.fsum(option.cost for option in chosen),
            seconds=math.fsum(option.seconds for option in chosen),
            bound=bound,
        )


def _checked(item: Item) -> list[Option]:
    """Return the options of ITEM in an order that does not depend on theirs, the smallest first."""
    if not item.options:
        raise ValueError(f"{item.name!r} has no options; give it at least one type")
    for option in item.options:
        for field, least in LEAST.items():
            value = getattr(option, field)
            if not (math.isfinite(value) and value >= least):
                wanted = "a finite number" if least else "a finite number of 0 or more"
                raise ValueError(f"{field} of {item.name!r} as {option.kind!r} is {value!r}; give {wanted}")
    if twice := [kind for kind, count in Counter(option.kind for option in item.options).items() if count > 1]:
        raise ValueError(f"{item.name!r} has several options {twice[0]!r}; give each kind once")
    return sorted(item.options, key=lambda option: (option.nbytes, option.cost, option.seconds, option.kind))


def _best(
    table: _Table, field: str, limits: Mapping[str, float | None], *, values: F64 | None = None
) -> tuple[Ints, float]:
    """Return the choice of the least sum of FIELD within LIMITS, and a lower bound of it; of VALUES instead where they are given."""
    import numpy as np

    for name, limit in limits.items():
        if limit is not None and math.isnan(limit):
            raise ValueError(f"{WORDS[name].format(limit)} is no limit; give a number")
    real = {name: limit for name, limit in limits.items() if limit is not None and limit != math.inf}
    start = _start(table, field, real)
    values = table.columns[field] if values is None else values

    def total(picks: Ints) -> float:
        """Return the sum of the values at PICKS."""
        return math.fsum(values[np.arange(len(picks)), picks].tolist())

    best, floor = start, -math.inf
    for slack in (ROUNDING, -ROUNDING):  # what the first passes wrongly is checked here; what is right, it passes
        problem = Problem(
            values=np.where(table.real, values, np.inf),
            weights=np.array([table.columns[name] for name in real]).reshape(len(real), *values.shape),
            limits=np.array([limit + abs(limit) * slack * (name != "nbytes") for name, limit in real.items()]),
        )
        found = minimise(problem, start)
        floor = max(floor, found.floor) if slack > 0 else floor
        if all(table.total(name, found.picks) <= limit for name, limit in real.items()):
            best = min(best, found.picks, key=total)
            break
    return best, min(floor, total(best))


def _start(table: _Table, field: str, limits: Mapping[str, float]) -> Ints:
    """Return a choice within LIMITS, with little of FIELD where that is easy. Raises ValueError with what is possible instead."""
    for name, limit in limits.items():
        if (least := table.total(name, table.least(name))) > limit:
            within, possible = (WORDS[name].format(number) for number in (limit, least))
            raise ValueError(f"no choice stays within {within}: the least possible is {possible}")
    if len(limits) < 2:
        return table.least(*limits, field)
    orders = tuple(limits), tuple(limits)[::-1]
    for name, other in orders:
        picks = table.least(name, other, field)
        if table.total(other, picks) <= limits[other]:
            return picks
    texts = {name: WORDS[name].format(limit) for name, limit in limits.items()}
    found: list[str] = []
    for name, other in orders:
        picks, _ = _best(table, name, {other: limits[other]})
        if (least := table.total(name, picks)) <= limits[name]:
            return picks
        found.append(f"within {texts[other]} the least found is {WORDS[name].format(least)}")
    raise ValueError(f"no choice was found within both {' and '.join(texts.values())}: {'; '.join(found)}")


class _Stage(Mapping[str, str]):
    """The kinds at one corner of a frontier: item → the steps at which its kind changed, and the kinds; all corners share them."""

    __slots__ = ("_changes", "_step")

    def __init__(self, changes: Mapping[str, tuple[list[int], list[str]]], step: int) -> None:
        self._changes = changes
        self._step = step

    def __getitem__(self, name: str) -> str:
        steps, kinds = self._changes[name]
        return kinds[bisect.bisect_right(steps, self._step) - 1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def __repr__(self) -> str:
        return repr(dict(self))


def _corners(table: _Table) -> tuple[Selection, ...]:
    """Return all corners: the steps along the hulls of the items, the steepest first; equal ones are taken together."""
    import numpy as np

    steps = hull_steps(np.where(table.real, table.columns["cost"], np.inf), table.columns["nbytes"])
    chosen = table.chosen(steps.base)
    changes = {name: ([0], [option.kind]) for name, option in zip(table.names, chosen, strict=True)}
    nbytes = sum(option.nbytes for option in chosen)
    cost, seconds = sum(_exact(option.cost) for option in chosen), sum(_exact(option.seconds) for option in chosen)
    found = [_corner(changes, 0, nbytes, cost, seconds)]
    items, options, slopes = steps.items.tolist(), steps.options.tolist(), [*steps.slopes.tolist(), 0.0]
    for step, (item, option) in enumerate(zip(items, options, strict=True), 1):
        old, new = chosen[item], table.options[item][option]
        chosen[item] = new
        changed, kinds = changes[table.names[item]]
        changed.append(step)
        kinds.append(new.kind)
        nbytes += new.nbytes - old.nbytes
        cost += _exact(new.cost) - _exact(old.cost)
        seconds += _exact(new.seconds) - _exact(old.seconds)
        if slopes[step] < slopes[step - 1] and cost / EXACT < found[-1].cost:
            found.append(_corner(changes, step, nbytes, cost, seconds))
    return tuple(found)


def _corner(
    changes: Mapping[str, tuple[list[int], list[str]]], step: int, nbytes: int, cost: int, seconds: int
) -> Selection:
    """Return the selection after STEP, with its sums of COST and SECONDS in units of 1 / EXACT."""
    total = cost / EXACT  # correctly rounded, as is any quotient of two whole numbers
    return Selection(kinds=_Stage(changes, step), nbytes=nbytes, cost=total, seconds=seconds / EXACT, bound=total)


def _exact(value: float) -> int:
    """Return VALUE in units of 1 / EXACT, in which sums have no rounding."""
    numerator, denominator = float(value).as_integer_ratio()
    return numerator * (EXACT // denominator)


def _timed_corners(table: _Table, seconds: float) -> tuple[Selection, ...]:
    """Return corners of the choices that take at most SECONDS: again and again one below the line between the two that are furthest apart.

    Aneja and Nair, Bicriteria transportation problem, Management Science 25, 1979.
    """
    limit = {"seconds": seconds}
    picks, _ = _best(table, "nbytes", limit)
    first = table.selection(*_best(table, "cost", limit | {"nbytes": table.total("nbytes", picks)}))
    picks, bound = _best(table, "cost", limit)
    picks, _ = _best(table, "nbytes", limit | {"cost": table.total("cost", picks)})
    last = table.selection(picks, bound)
    found, gaps = [first, last], [(first.nbytes - last.nbytes, first.nbytes, first, last)]
    while gaps and len(found) < CORNERS:
        _, _, low, high = heappop(gaps)
        if low.nbytes >= high.nbytes or low.cost <= high.cost:
            continue
        slope = _slope(low, high)
        values = table.columns["cost"] + slope * table.columns["nbytes"]
        picks, floor = _best(table, "cost", limit, values=values)
        middle = table.selection(picks, 0.0)
        line = low.cost + slope * low.nbytes
        gained = line - (middle.cost + slope * middle.nbytes)
        if gained > NEAR * abs(line) and low.nbytes < middle.nbytes < high.nbytes:
            middle = replace(middle, bound=min(middle.cost, floor - slope * middle.nbytes))
            found.append(middle)
            for left, right in ((low, middle), (middle, high)):
                heappush(gaps, (left.nbytes - right.nbytes, left.nbytes, left, right))
    return _convex(found)


def _slope(small: Selection, large: Selection) -> float:
    """Return how much cost a byte more saves between two selections."""
    return (small.cost - large.cost) / (large.nbytes - small.nbytes)


def _convex(found: Sequence[Selection]) -> tuple[Selection, ...]:
    """Return those of FOUND that are corners of their lower convex hull, as far as costs fall."""
    hull: list[Selection] = []
    for point in sorted(found, key=lambda point: (point.nbytes, point.cost)):
        if hull and point.cost >= hull[-1].cost:
            continue
        while len(hull) > 1:
            before, last = hull[-2:]
            if _slope(before, last) > _slope(last, point):
                break
            hull.pop()
        hull.append(point)
    return tuple(hull)
