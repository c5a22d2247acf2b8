"""Lagrangian relaxation of a multiple-choice knapsack, on arrays: the best bound, and the choices around it.

With a multiplier for each limit, a choice costs `floor + sum of reduced costs + sum of multiplier · what is left of the limit`, where no
term after the first is below 0: the floor is a lower bound, and the rest is the gap of a choice (Kellerer, Pferschy and Pisinger,
Knapsack Problems, 2004, section 11.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.intp]

__all__ = [
    "Problem",
    "Relaxed",
    "Steps",
    "filled",
    "fits",
    "hull_steps",
    "left",
    "prepared",
    "reduced_costs",
    "relax",
    "repaired",
    "spread",
    "value",
]

NEAR = 1e-9
"""A gap of this share of the value counts as none."""
STEPS = 100
"""Most steps to the second multiplier; 10 to 30 are enough."""
NOTHING = 2.0**-60
"""A weight of this share of the heaviest is as good as none: all of them are less than the sum may be off by."""
MARGIN = 1e-14
"""What a bound may be off by, as a share of the sums that it is the difference of."""
TINY = 5e-324
"""The smallest float above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One option of each row is wanted: the least sum of `values`, and sums of `weights` within `limits`.

    `values` is (items, options), inf where a row has fewer options; `weights` (limits, items, options), 0 there.
    """

    values: F64
    weights: F64
    limits: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """From the lightest choice to the one of least value along the convex hull of each item, the steepest step first.

    `base` (items,) is the lightest choice; step k gives item `items[k]` its option `options[k]` instead of `leaves[k]`, which is
    `slopes[k]` less value for each unit of weight. Slopes do not grow.
    """

    base: Ints
    items: Ints
    leaves: Ints
    options: Ints
    slopes: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """A solution of the relaxed problem: a multiplier for each limit, a choice that is best with them, and the bound that they prove."""

    multipliers: F64
    picks: Ints
    floor: float
    ends: Ints
    """The other choices that the best mixed solution is made of, (choices, items)."""
    slope: float = 0.0
    """By how much the mixed solution exceeds the second limit, which is the slope of the bound along its multiplier."""

    def torn(self, problem: Problem) -> int:
        """Return the item that the mixed solution splits between options furthest apart, as a share of all that can change in a weight."""
        import numpy as np

        rows = np.arange(len(self.picks))
        apart = abs(problem.weights[:, rows, self.picks][:, None] - problem.weights[:, rows, self.ends])
        widest = apart.max(axis=1)  # (limits, items)
        return int((widest / spread(problem)[:, None]).max(axis=0).argmax())


def prepared(problem: Problem, start: Ints) -> tuple[Problem, float]:
    """Return PROBLEM without what cannot or need not be chosen, START excepted, in numbers near 1; and the unit of its values.

    Weights count from the lightest option of their item. Units are powers of 2, so nothing is rounded by them.
    """
    import numpy as np

    real = np.isfinite(problem.values)
    lightest = np.where(real, problem.weights, np.inf).min(axis=2)
    weights = np.where(real, problem.weights - lightest[:, :, None], 0)
    limits = problem.limits - lightest.sum(axis=1)
    heavy = weights > limits[:, None, None]
    weights[heavy] = 0
    units = _power(weights.max(axis=(1, 2), initial=0))
    weights = weights / units[:, None, None]
    weights[weights < NOTHING] = 0
    unit = float(_power(abs(problem.values[real]).max(initial=0)))
    values = without_dominated(np.where(heavy.any(axis=0), np.inf, problem.values / unit), weights)
    rows = np.arange(len(values))
    values[rows, start] = problem.values[rows, start] / unit
    return Problem(values=values, weights=weights, limits=limits / units), unit


def _power(sizes: npt.ArrayLike) -> F64:
    """Return the powers of 2 that are not above SIZES, 1 for 0."""
    import numpy as np

    return np.where(sizes, np.ldexp(1.0, np.frexp(sizes)[1] - 1), 1.0)


def without_dominated(values: F64, weights: F64) -> F64:
    """Return VALUES, inf for options than which another one is no worse in value and in every weight; of equals the first stays."""
    import numpy as np

    sheets = np.concatenate([values[None], weights])  # (1 + limits, items, options)
    no_worse = (sheets[:, :, :, None] <= sheets[:, :, None, :]).all(axis=0)  # (items, options, than options)
    same = (sheets[:, :, :, None] == sheets[:, :, None, :]).all(axis=0)
    earlier = np.triu(np.ones(same.shape[1:], dtype=bool), 1)
    out = ((no_worse & (~same | earlier)) & np.isfinite(values)[:, :, None]).any(axis=1)
    return np.where(out, np.inf, values)


def hull_steps(values: F64, weights: F64) -> Steps:
    """Return the steps along the lower convex hulls of (weight, value), of all items at once, by gift wrapping."""
    import numpy as np

    real = np.isfinite(values)
    lightest = np.where(real, weights, np.inf).min(axis=1, keepdims=True)
    base = np.where(real & (weights == lightest), values, np.inf).argmin(axis=1)
    rows, picks, last = np.arange(len(values)), base, np.full(len(values), np.inf)
    parts: list[tuple[Ints, Ints, Ints, F64]] = [(rows[:0], base[:0], base[:0], last[:0])]
    while len(rows):
        here = np.arange(len(rows))
        gain = values[rows, picks][:, None] - values[rows]
        more = weights[rows] - weights[rows, picks][:, None]
        ahead = (gain > 0) & (more > 0)
        slopes = np.where(ahead, np.maximum(gain / np.where(ahead, more, 1), TINY), 0)
        options = slopes.argmax(axis=1)
        # options on a line come in the order of their weights, whatever the rounding
        last = np.minimum(last, slopes[here, options])
        live = last > 0
        parts.append((rows[live], picks[live], options[live], last[live]))
        rows, picks, last = rows[live], options[live], last[live]
    items, leaves, options, steep = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-steep, kind="stable")
    return Steps(base=base, items=items[order], leaves=leaves[order], options=options[order], slopes=steep[order])


def value(problem: Problem, picks: Ints) -> float:
    """Return the value of PICKS."""
    import numpy as np

    return float(problem.values[np.arange(len(picks)), picks].sum())


def fits(problem: Problem, picks: Ints) -> bool:
    """Return whether PICKS are within the limits."""
    return bool((left(problem, picks) >= 0).all())


def left(problem: Problem, picks: Ints) -> F64:
    """Return what PICKS leave of each limit."""
    import numpy as np

    taken: F64 = problem.weights[:, np.arange(len(picks)), picks].sum(axis=1)
    return problem.limits - taken


def spread(problem: Problem) -> F64:
    """Return by how much the sum of each weight can change, 1 where it cannot."""
    import numpy as np

    found = np.ptp(problem.weights, axis=2).sum(axis=1)
    return np.where(found > 0, found, 1.0)


def relax(problem: Problem, ceiling: float) -> Relaxed:
    """Return the multipliers of the best bound, exact for one limit and to nine digits for two; a bound above CEILING is enough."""
    import numpy as np

    if len(problem.limits) == 1:
        return _relax_first(problem, 0.0)
    low = high = best = _relax_first(problem, 0.0)
    real = problem.values < float("inf")
    at = float(abs(problem.values[real]).max() / (problem.weights[1][real].max() or 1.0)) or 1.0
    for _ in range(STEPS):
        if high.slope <= 0 or best.floor > ceiling:
            break
        low, high, at = high, _relax_first(problem, at), at * 4
        best = max(best, high, key=lambda found: found.floor)
    for step in range(STEPS):
        if not low.slope > 0 > high.slope or best.floor > ceiling:
            break
        m, n = float(low.multipliers[1]), float(high.multipliers[1])
        # the bound is concave, so it lies below both tangents
        crossing = (high.floor - low.floor + low.slope * m - high.slope * n) / (low.slope - high.slope)
        if low.floor + low.slope * (crossing - m) - best.floor <= NEAR * abs(best.floor):
            break
        middle = crossing if step % 3 < 2 else (m + n) / 2
        found = _relax_first(problem, min(max(middle, m), n))
        best = max(best, found, key=lambda found: found.floor)
        low, high = (found, high) if found.slope > 0 else (low, found)
    if not low.slope > 0 > high.slope:
        return best
    best, other = (low, high) if low.floor > high.floor else (high, low)
    return replace(best, ends=np.concatenate([best.ends, other.picks[None], other.ends]))


def _relax_first(problem: Problem, second: float) -> Relaxed:
    """Return the best multiplier of the first limit, given that of the SECOND."""
    import numpy as np

    rows = np.arange(len(problem.values))
    weights, limit = problem.weights[0], float(problem.limits[0])
    multipliers = np.array([0.0, second][: len(problem.limits)])
    values = problem.values + second * problem.weights[-1] if second else problem.values
    steps = hull_steps(values, weights)
    picks = steps.base.copy()
    lightest = float(weights[rows, picks].sum())
    if lightest > limit:
        return Relaxed(multipliers=multipliers, picks=picks, ends=picks[None], floor=np.inf)
    added = weights[steps.items, steps.options] - weights[steps.items, steps.leaves]
    totals = lightest + np.cumsum(added)
    taken = int(np.searchsorted(totals, limit, side="right"))
    picks[steps.items[:taken]] = steps.options[:taken]
    ends, part = picks, 0.0
    if taken < len(totals):  # the next step fits in part
        multipliers[0] = steps.slopes[taken]
        part = 1 - float((totals[taken] - limit) / added[taken])
        ends = picks.copy()
        ends[steps.items[taken]] = steps.options[taken]
    cheapest, spared = (values + multipliers[0] * weights).min(axis=1), multipliers @ problem.limits
    floor = float(cheapest.sum() - spared - MARGIN * (abs(cheapest).sum() + spared))
    over = (1 - part) * left(problem, picks) + part * left(problem, ends)
    return Relaxed(multipliers=multipliers, picks=picks, ends=ends[None], floor=floor, slope=-float(over[-1]))


def reduced_costs(problem: Problem, relaxed: Relaxed) -> F64:
    """Return the reduced cost of each option, 0 for the choice of the relaxed problem."""
    import numpy as np

    priced = problem.values + np.tensordot(relaxed.multipliers, problem.weights, axes=1)
    found: F64 = priced - priced.min(axis=1, keepdims=True)
    found[np.arange(len(found)), relaxed.picks] = 0.0
    return found


def repaired(problem: Problem, relaxed: Relaxed) -> Ints:
    """Return the choice of the relaxed problem with single changes that bring it within the limits, each the cheapest for what it mends."""
    import numpy as np

    reduced, picks = reduced_costs(problem, relaxed), relaxed.picks.copy()
    rows = np.arange(len(picks))
    scale = spread(problem)[:, None, None]
    for _ in range(2 * len(picks) + 10):
        room = left(problem, picks)
        excess = float((np.maximum(-room, 0) / scale[:, 0, 0]).sum())
        if excess == 0:
            break
        moved = problem.weights - problem.weights[:, rows, picks][:, :, None] - room[:, None, None]
        mended = excess - (np.maximum(moved, 0) / scale).sum(axis=0)
        useful = (mended > 1e-15) & np.isfinite(reduced)
        if not useful.any():
            break
        price = np.where(useful, (reduced - reduced[rows, picks][:, None]) / np.where(useful, mended, 1), np.inf)
        item, option = np.unravel_index(price.argmin(), price.shape)
        picks[item] = option
    return picks


def filled(problem: Problem, picks: Ints) -> Ints:
    """Return PICKS with single changes that fit into what is left, each the one that gains most."""
    import numpy as np

    picks = picks.copy()
    rows = np.arange(len(picks))
    while True:
        room = left(problem, picks)
        change = problem.values - problem.values[rows, picks][:, None]
        moved = problem.weights - problem.weights[:, rows, picks][:, :, None]
        change[(moved > room[:, None, None]).any(axis=0)] = 0
        item, option = np.unravel_index(change.argmin(), change.shape)
        if not change[item, option] < 0:
            return picks
        picks[item] = option
