"""The search behind `converters.knapsack`: a core of undecided items, and branches where that leaves a gap.

An option whose reduced cost alone is larger than the best gap so far is out. The items that are left are added one by one, the most
undecided first (Pisinger, A minimal algorithm for the multiple-choice knapsack problem, EJOR 83, 1995), and partial choices are kept
that no other one dominates and whose own bound is below the best gap: all of them, or the most promising. Where that
leaves a gap, as one large item and a second limit can, each option of the item that the relaxed solution is torn over is a problem
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from converters.knapsack_relaxation import (
    NEAR,
    Problem,
    Relaxed,
    filled,
    fits,
    left,
    prepared,
    reduced_costs,
    relax,
    repaired,
    spread,
    value,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.intp]

__all__ = ["Found", "minimise"]

WIDTHS = (64, 512, 2048)
"""Partial choices that each pass of the search keeps: the first finds a good gap cheaply, which leaves little for the last."""
EXPANSIONS = 400_000
"""Partial choices that one search may look at: about 0.1 s."""
CLOSE = 1e-3
"""Above this share of the value, a gap is branched on."""
BRANCHES = 24
"""Most branches."""
LAYERS = 16
"""Ranges of the second weight, each of which is compared with all below it."""
GRAIN = 1e-13
"""Sums of a weight that differ by this share of its limit are equal but for rounding."""
NEIGHBOURS = 4
"""How many partial choices with less of the first weight each one is compared with besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The option of each item, (items,), and a lower bound of the value of any choice within the limits."""

    picks: Ints
    floor: float


@dataclass(slots=True, kw_only=True)
class Core:
    """What the search works on, relative to the choice of the relaxed problem.

    `reduced` (items, options) are reduced costs, inf where an option is out; `moves` (limits, items, options) the changes of weight;
    `left` (limits,) what that choice leaves of each limit, below 0 where it takes too much; `down` and `up` (items + 1, limits) the least
    reduced cost for a unit less and a unit more weight among the items from that place on; `grain` is no difference of the last weight.
    """

    order: Ints
    reduced: F64
    moves: F64
    left: F64
    multipliers: F64
    down: F64
    up: F64
    grain: float


@dataclass(slots=True, kw_only=True)
class Search:
    """State of one pass: the least gap so far, the way to it, and a lower bound of all that was given up."""

    gap: float
    near: float
    floor: float
    best: tuple[int, int, int, int] | None = None
    """Length of the trail, index of its partial choice, the item that was added and its option."""
    trail: list[tuple[int, Ints, Ints]] = field(default_factory=list)
    """Item, and for each partial choice that was kept the one that it came from and the option."""


def minimise(problem: Problem, start: Ints) -> Found:
    """Return a choice of near-least value within the limits, at most that of START, which is within them."""
    import numpy as np

    problem, unit = prepared(problem, start)
    best = problem.values.argmin(axis=1)
    if fits(problem, best):
        return Found(picks=best, floor=value(problem, best) * unit)
    whole = relax(problem, value(problem, start))
    best = filled(problem, repaired(problem, whole))
    if not fits(problem, best):
        best = filled(problem, start)
    least, budget, born, closed = value(problem, best), EXPANSIONS, 0, np.inf
    branches = [(whole.floor, born, problem, whole)]
    while branches:
        floor, _, branch, relaxed = heappop(branches)
        if floor < least and born <= BRANCHES:
            best, floor, budget = _searched(branch, relaxed, best, least, budget)
            least = value(problem, best)
            if floor < least - CLOSE * abs(least) and budget > 0:
                for narrower in _narrower(branch, relaxed, least - relaxed.floor):
                    born += 1
                    below = relax(narrower, least)
                    heappush(branches, (max(floor, below.floor), born, narrower, below))
                continue
        closed = min(closed, floor)
    return Found(picks=best, floor=min(closed, least) * unit)


def _searched(problem: Problem, relaxed: Relaxed, best: Ints, least: float, budget: int) -> tuple[Ints, float, int]:
    """Return the better of BEST, whose value is LEAST, and what is around RELAXED; a lower bound of PROBLEM; what is left of BUDGET."""
    tried = filled(problem, repaired(problem, relaxed))
    if fits(problem, tried) and value(problem, tried) < least:
        best, least = tried, value(problem, tried)
    proven = 0.0
    for width in WIDTHS:
        near, gap = NEAR * abs(least), least - relaxed.floor
        if proven >= gap - 2 * near or budget <= 0 or (width > WIDTHS[0] and gap - proven > CLOSE * abs(least)):
            break
        search = Search(gap=gap, near=near, floor=gap)
        budget = _explore(_core(problem, relaxed, gap), search, width, budget)
        if search.best is not None:
            best = _followed(relaxed.picks, search)
            least = value(problem, best)
        proven = max(proven, min(search.floor, search.gap))
    return best, relaxed.floor + proven, budget


def _narrower(problem: Problem, relaxed: Relaxed, gap: float) -> list[Problem]:
    """Return PROBLEM once for each option, of those with a reduced cost below GAP, of the item that RELAXED is torn over."""
    import numpy as np

    item, reduced = relaxed.torn(problem), reduced_costs(problem, relaxed)
    found = []
    for option in np.flatnonzero(reduced[item] < gap):
        values = problem.values.copy()
        values[item] = np.inf
        values[item, option] = problem.values[item, option]
        found.append(Problem(values=values, weights=problem.weights, limits=problem.limits))
    return found


def _core(problem: Problem, relaxed: Relaxed, gap: float) -> Core:
    """Return what is undecided when options whose reduced cost is GAP or more are out, the most undecided items first."""
    import numpy as np

    rows = np.arange(len(problem.values))
    moves = problem.weights - problem.weights[:, rows, relaxed.picks][:, :, None]
    reduced = reduced_costs(problem, relaxed)
    reduced[reduced >= gap] = np.inf
    other = np.isfinite(reduced)
    other[rows, relaxed.picks] = False
    open_ = np.flatnonzero(other.any(axis=1))
    scale = relaxed.multipliers + gap * NEAR / spread(problem)  # a limit without a price counts a little
    moved = np.where(other, np.tensordot(scale, abs(moves), axes=1), 0)
    with np.errstate(over="ignore"):
        key = np.where(moved > 0, reduced / np.where(moved > 0, moved, 1), np.inf).min(axis=1)
    order = open_[np.argsort(key[open_], kind="stable")]
    down = np.full((len(order) + 1, len(moves)), np.inf)
    up = down.copy()
    for table, sign in ((down, -1), (up, 1)):
        towards = sign * moves[:, order]
        ratio = np.where(towards > 0, reduced[order] / np.where(towards > 0, towards, 1), np.inf).min(axis=2)
        table[:-1] = np.minimum.accumulate(ratio[:, ::-1], axis=1)[:, ::-1].T
    return Core(
        order=order,
        reduced=reduced,
        moves=moves,
        left=left(problem, relaxed.picks),
        multipliers=relaxed.multipliers,
        down=down,
        up=up,
        grain=GRAIN * abs(float(problem.limits[-1])),
    )


def _explore(core: Core, search: Search, width: int, budget: int) -> int:
    """Add the items of CORE one by one, keeping WIDTH partial choices at most; return what is left of BUDGET."""
    import numpy as np

    spent, used = np.zeros(1), np.zeros((len(core.left), 1))  # reduced cost and change of weight of each partial choice
    bounds = np.zeros(1)
    for place, item in enumerate(core.order):
        if search.gap <= search.near or budget <= 0:
            search.floor = min(search.floor, float(bounds.min()))
            break
        options = np.flatnonzero(core.reduced[item] < search.gap)
        size = spent.shape[0]
        budget -= size * len(options)
        spent = (core.reduced[item, options][:, None] + spent).ravel()
        used = (core.moves[:, item, options][:, :, None] + used[:, None, :]).reshape(len(used), -1)
        room = core.left[:, None] - used
        whole = (room >= 0).all(axis=0)
        gaps = np.where(whole, spent + core.multipliers @ room, np.inf)
        first = int(gaps.argmin())
        if gaps[first] < search.gap:
            search.gap = float(gaps[first])
            search.best = (len(search.trail), first % size, int(item), int(options[first // size]))
        bounds = _bounds(core, spent, room, place + 1)
        kept = _kept(core, search, spent, used, bounds, width)
        spent, used, bounds = spent[kept], used[:, kept], bounds[kept]
        search.trail.append((int(item), kept % size, options[kept // size]))
        if not len(kept):
            break
    return budget


def _bounds(core: Core, spent: F64, rooms: F64, place: int) -> F64:
    """Return the least gap that each partial choice can end with, when the items from PLACE on are still to be added."""
    import numpy as np

    found = np.zeros_like(spent)
    for k, room in enumerate(rooms):
        down, up = core.down[place, k], min(core.multipliers[k], core.up[place, k])
        too_much = -room * down if np.isfinite(down) else np.inf
        found = np.maximum(found, np.where(room < 0, too_much, room * up))
    return spent + found


def _kept(core: Core, search: Search, spent: F64, used: F64, bounds: F64, width: int) -> Ints:
    """Return the indices of the partial choices that go on, and note the bound of those that are given up though they might win."""
    import numpy as np

    hopeful = bounds < search.gap - search.near
    if not hopeful.all():
        search.floor = min(search.floor, float(bounds[~hopeful].min()))
    kept = np.flatnonzero(hopeful)
    values = spent - core.multipliers @ used
    kept = kept[np.lexsort((values[kept], *used[::-1, kept]))]
    kept = kept[_undominated(values[kept], used[1:, kept], core.grain)]
    if len(kept) > width:
        order = np.argsort(bounds[kept], kind="stable")
        search.floor = min(search.floor, float(bounds[kept[order[width]]]))
        kept = kept[np.sort(order[:width])]
    return kept


def _undominated(values: F64, others: F64, grain: float) -> npt.NDArray[np.bool_]:
    """Return which partial choices, in the order of their first weight, have less value or less OTHERS, the second, than all before.

    Exact for one weight. With a second one, neighbours are compared, and each layer of it with those below; GRAIN of it is no difference.
    """
    import numpy as np

    found = np.ones(len(values), dtype=bool)
    if len(values) < 2:
        return found
    if not len(others):
        found[1:] = values[1:] < np.minimum.accumulate(values)[:-1]
        return found
    second = others[0]
    for lag in range(1, min(NEIGHBOURS + 1, len(values))):
        found[lag:] &= (values[lag:] < values[:-lag]) | (second[lag:] < second[:-lag] - grain)
    edges = np.sort(second)[np.arange(1, LAYERS) * len(second) // LAYERS]
    for edge in np.unique(edges):
        below = second <= edge
        least = np.minimum.accumulate(np.where(below, values, np.inf))
        found &= below | (values < least)
    return found


def _followed(picks: Ints, search: Search) -> Ints:
    """Return PICKS with the changes on the way to the best partial choice."""
    if search.best is None:
        return picks
    picks = picks.copy()
    length, index, item, option = search.best
    picks[item] = option
    for item, parents, options in reversed(search.trail[:length]):
        picks[item] = options[index]
        index = int(parents[index])
    return picks
