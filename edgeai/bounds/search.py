"""The search for the types of a file: choose by what errors are expected to do, write, measure in the real runtime, choose again.

    texts → curvature → costs → [choose → write → measure] until the bound is met by the worse end of the interval → the smallest that met
    it

What is expected is corrected by what was measured: their ratio scales the next choice. A size alone needs no measurement before the proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from converters import gguf
from converters.checkpoint import Checkpoint
from converters.curvature import Curvature
from converters.families import ModelPlan, TensorPlan, Value
from converters.feedback import Feedback
from converters.kept import Kept
from converters.knapsack import Item, Selection, choose, frontier, smallest
from converters.quantmap import NEEDS_IMPORTANCE, QuantMap, chosen_types, plan_types
from converters.scratch import Scratch
from converters.sensitivity import feedback_from
from converters.tokenizer import Vocabulary
from edgeai.bounds.goal import Goal
from edgeai.bounds.layers import bits
from edgeai.bounds.options import padded
from edgeai.bounds.outcome import Outcome, Point
from edgeai.device import cpu_facts
from edgeai.errors import ProofFailed, UsageError
from edgeai.evaluation.heldout import EmbeddingHeldOut, HeldOut, Measured
from edgeai.types import Progress

__all__ = ["CORNERS", "Search", "decide", "feedback_for", "file_limits", "line_of", "seek"]

PRESETS = ("Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
"""What the picture shows beside the choice."""
ENOUGH = 0.9
"""A bound that the worse end of the interval reaches to this part is not improved on any more."""
MARGIN = 0.97
"""What is aimed at, as a part of the bound."""
NEARLY_EXACT = "Q8_0"
"""The preset whose weights are so near the source's that what is measured of it is hardly of them."""
NEAR = 1.01
"""How much larger than one that just failed the file that met a bound may be without another round."""
FIRST = 0.85
"""The same before anything was measured: intervals are about so wide."""
DISAGREEMENT = 0.56
"""Positions whose first choice changes, by the root of the mean KL: SmolLM2-135M with 0.0095 to 0.17 nats has 0.49 to 0.57."""
CORNERS = 24
TICK, BYTES = 1e-9, 1 << 10
"""Seconds, and bytes, that are told apart where the time of a token counts before the size."""


@dataclass(slots=True, kw_only=True)
class Search:
    """Everything that a search needs. `items` are the matrices, `budget` is how many bytes of the file they may take, None without a limit.
    `found` collects the files that were measured, `kept` what was encoded for them."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    goal: Goal
    curvature: Curvature
    items: Sequence[Item]
    budget: int | None
    seconds: float | None
    extra: Mapping[str, Value]
    comparison: Callable[[], HeldOut | EmbeddingHeldOut]
    progress: Progress
    kept: Kept | None = None
    found: list[Point] = field(default_factory=list)

    @property
    def bound(self) -> float | None:
        """The largest quality measure that is allowed; None where only the share of first choices is bounded, or the size."""
        goal = self.goal
        return 1 - goal.min_cosine if goal.min_cosine is not None else goal.max_kl

    @property
    def hurried(self) -> bool:
        """Whether the fastest file that meets a bound is wanted, and not the smallest."""
        return self.goal.prefer == "speed"

    @property
    def bounded(self) -> bool:
        """Whether something has to be measured before a choice is made."""
        return self.bound is not None or self.goal.min_top1 is not None

    def excess(self, measured: Measured) -> float:
        """Return by which factor the worst of the bounds is missed, as mean KL; 1 or less meets them all."""
        parts = []
        if self.bound is not None:
            parts.append(measured.quality.high / self.bound)
        if self.goal.min_top1 is not None:
            assert measured.top1 is not None  # noqa: S101 - of a language model
            parts.append(((1 - measured.top1.low) / (1 - self.goal.min_top1)) ** 2)
        return max(parts)

    def wanted(self) -> float:
        """Return the mean KL, or 1 - cosine, to begin with."""
        parts = [] if self.bound is None else [self.bound]
        if self.goal.min_top1 is not None:
            parts.append(((1 - self.goal.min_top1) / DISAGREEMENT) ** 2)
        return min(parts) * FIRST


def file_limits(
    plan: ModelPlan, vocabulary: Vocabulary, goal: Goal, kinds: Mapping[str, Sequence[str]], extra: Mapping[str, Value]
) -> int | None:
    """Return how many bytes of the file the matrices may take, None without a limit. Raises UsageError for a size that no choice of KINDS
    has.

    Both ends are exact: that of all the smallest types, and that of the largest, above which nothing is gained.
    """
    if goal.target_bytes is None and goal.target_bpw is None:
        return None
    ends = [chosen_types(plan, {name: pick(some) for name, some in kinds.items()}) for pick in (least, most)]
    matrices = [sum(padded(end.bytes_of(name)) for name in kinds) for end in ends]
    if goal.target_bpw is not None:
        wanted, unit = f"{goal.target_bpw:g} bits per weight", plan.parameters / 8
        sizes = [end.nbytes / unit for end in ends]
        shown = [f"{math.ceil(sizes[0] * 1000) / 1000:g}", f"{sizes[1]:.3f}"]
        inside, rest = sizes[0] <= goal.target_bpw <= sizes[1], ends[0].nbytes - sum(map(ends[0].bytes_of, kinds))
        room = int(goal.target_bpw * unit) - rest
    else:
        assert goal.target_bytes is not None  # noqa: S101 - one of the two is given
        wanted = f"{goal.target_bytes} bytes"
        files = [gguf.file_bytes(plan, vocabulary, end, extra) for end in ends]
        shown = [str(size) for size in files]
        inside = files[0] <= goal.target_bytes <= files[1]
        room = goal.target_bytes - (files[0] - matrices[0])
    if not inside:
        raise out_of_reach(wanted, shown, small=room < matrices[0])
    return room


def out_of_reach(wanted: str, ends: Sequence[str], *, small: bool) -> UsageError:
    """Return the error for a size that is too small, or larger than F16."""
    which = "smallest" if small else "largest"
    why = f"the {which} file with the types that may be used has {ends[0 if small else 1]}"
    hint = (
        f"ask for {ends[0]} or more"
        if small
        else f"ask for {ends[1]} or less; --quant f16 makes the largest without a search"
    )
    return UsageError(f"the target of {wanted} cannot be met: {why}", hint=hint)


def least(kinds: Sequence[str]) -> str:
    """Return the smallest of KINDS."""
    return min(kinds, key=bits)


def most(kinds: Sequence[str]) -> str:
    """Return the largest of KINDS."""
    return max(kinds, key=bits)


def feedback_for(curvature: Curvature) -> Callable[[TensorPlan], Feedback | None]:
    """Return what gives the writer the feedback of a tensor, None for one that nothing is known of. It keeps one in memory."""
    held: dict[int, Feedback] = {}

    def find(tensor: TensorPlan) -> Feedback | None:
        if tensor.name not in curvature:
            return None
        place = curvature.places[tensor.name]
        if place not in held:
            held.clear()
            held[place] = feedback_from(curvature, tensor.name)
        return held[place]

    return find


def seek(search: Search, *, presets: bool = False) -> tuple[QuantMap, Outcome]:
    """Return the types of the smallest file that meets the bounds, or the best of the size, and how it was found.

    PRESETS are measured too, for the picture. Raises ProofFailed where no choice meets a bound, with the nearest, UsageError where the
    largest types already miss it.
    """
    with Scratch() as scratch, opened(search, presets=presets) as compared:
        trial = Path(scratch) / "trial.gguf"
        chosen, measured = decide(search, lambda chosen, name: measured_point(search, compared, trial, chosen, name))
        point = measured or point_of(search, chosen, "chosen")
        beside = tuple(measure_presets(search, compared, trial)) if presets and compared is not None else ()
        if presets and compared is not None and point.quality is None:
            point = measured_point(search, compared, trial, chosen, "chosen")
    costs = {item.name: {option.kind: option.cost for option in item.options} for item in search.items}
    outcome = Outcome(
        model=search.checkpoint.path.resolve().name,
        measure="mean KL, nats" if search.plan.pooling is None else "1 - mean cosine",
        chosen=replace(point, name="chosen"),
        rounds=tuple(item for item in search.found if item.nbytes != point.nbytes or item.quality != point.quality),
        presets=beside,
        frontier=tuple(corners(search, beside)),
        kinds=chosen.kinds,
        costs={name: costs[name][kind] for name, kind in chosen.kinds.items()},
        bound=search.bound,
        target_bytes=search.goal.target_bytes,
        min_top1=search.goal.min_top1,
    )
    return mapped(search, chosen), outcome


@contextmanager
def opened(search: Search, *, presets: bool) -> Iterator[HeldOut | EmbeddingHeldOut | None]:
    """Start torch on the held-out text where something is to be measured."""
    if not search.bounded and not presets:
        yield None
        return
    with search.comparison() as compared:
        yield compared


def decide(search: Search, measure: Callable[[Selection, str], Point]) -> tuple[Selection, Point | None]:
    """Return the choice and its point, None where no bound demands that it is measured.

    MEASURE makes a file, named by its round, and keeps its point in what SEARCH found.
    """
    if not search.bounded:
        return choose(search.items, room(search), seconds=search.seconds), None
    best: tuple[Selection, Point] | None = None
    nearest: tuple[float, Selection, Point] | None = None
    aim, tried = search.wanted(), set[tuple[tuple[str, str], ...]]()
    failed: tuple[Selection, float] | None = None
    for number in range(1, search.goal.rounds + 1):
        chosen, capped = cheapest(search, aim)
        key = tuple(sorted(chosen.kinds.items()))
        if key in tried or (best is not None and size(search, chosen) >= size(search, best[0])):
            break
        tried.add(key)
        point = measure(chosen, f"round {number}")
        assert point.quality is not None  # noqa: S101 - it was measured
        excess = search.excess(Measured(quality=point.quality, top1=point.top1))
        if nearest is None or excess < nearest[0]:
            nearest = excess, chosen, point
        if excess <= 1:
            best, met = (chosen, point), excess
            if excess >= ENOUGH:
                break
        elif capped:
            break
        else:
            failed = chosen, excess
        if best is None or failed is None:
            aim = corrected(chosen.cost, point.quality.value, excess)
        elif size(search, best[0]) <= NEAR * size(search, failed[0]):
            break
        else:
            aim = between((best[0].cost, met), (failed[0].cost, failed[1]))
    if best is None:
        assert nearest is not None  # noqa: S101 - there was a first round
        raise missed(search, *nearest, stopped=not capped and number == search.goal.rounds)
    return best


def corrected(cost: float, measured: float, excess: float) -> float:
    """Return the expected cost to aim at after one of COST was MEASURED, EXCESS times what is wanted.

    What is not in the cost is the runtime's own rounding of activations, the same for all types, or a cost that was taken too low in
    proportion: the mean of both is aimed at.
    """
    scaled = cost / excess * MARGIN
    shifted = cost - measured * (1 - MARGIN / excess)
    return math.sqrt(scaled * max(shifted, scaled / 4)) if measured > cost else scaled


def between(met: tuple[float, float], failed: tuple[float, float]) -> float:
    """Return the expected cost at which a bound is just met, from two choices' expected costs and excesses: on a line of their
    logarithms."""
    costs, excesses = ([math.log(max(pair[part], 1e-300)) for pair in (met, failed)] for part in (0, 1))
    if excesses[1] <= excesses[0] or costs[1] <= costs[0]:  # the cheaper one was the better one: chance
        return math.exp(sum(costs) / 2)
    share = (math.log(MARGIN) - excesses[0]) / (excesses[1] - excesses[0])
    return math.exp(costs[0] + max(0.05, min(0.95, share)) * (costs[1] - costs[0]))


def size(search: Search, chosen: Selection) -> float:
    """Return what is to be small of CHOSEN: its bytes, or the time of a token."""
    return chosen.seconds if search.hurried else float(chosen.nbytes)


def cheapest(search: Search, aim: float) -> tuple[Selection, bool]:
    """Return the smallest choice with an expected cost of at most AIM, and whether a limit, or the types, kept it from being that good."""
    try:
        chosen = fastest(search.items, aim) if search.hurried else smallest(search.items, aim)
    except ValueError:  # nothing is that good: the best there is
        chosen = smallest(search.items, lowest(search.items))
        if search.budget is None or chosen.nbytes <= room(search):
            return chosen, True
    if search.budget is not None and chosen.nbytes > room(search):
        return choose(search.items, room(search), seconds=search.seconds), True
    return chosen, False


def fastest(items: Sequence[Item], aim: float) -> Selection:
    """Return the choice whose token takes least time with an expected cost of at most AIM; of two as fast, the smaller.

    Raises ValueError where none is that good.
    """
    timed = [
        Item(
            name=item.name,
            options=tuple(
                replace(option, nbytes=round(option.seconds / TICK) * BYTES + round(option.nbytes / BYTES))
                for option in item.options
            ),
        )
        for item in items
    ]
    return selected(items, smallest(timed, aim).kinds)


def selected(items: Sequence[Item], kinds: Mapping[str, str]) -> Selection:
    """Return the choice KINDS of ITEMS with its sums."""
    options = [next(option for option in item.options if option.kind == kinds[item.name]) for item in items]
    cost = sum(option.cost for option in options)
    return Selection(
        kinds=dict(kinds),
        nbytes=sum(option.nbytes for option in options),
        cost=cost,
        seconds=sum(option.seconds for option in options),
        bound=cost,
    )


def lowest(items: Sequence[Item]) -> float:
    """Return the least cost that any choice has, and a little more, so that a sum in another order is not above it."""
    return sum(min(option.cost for option in item.options) for item in items) * (1 + 1e-9) + 1e-300


def room(search: Search) -> int:
    """Return the bytes that the matrices may take."""
    assert search.budget is not None  # noqa: S101 - asked only where there is a limit
    return search.budget


def missed(search: Search, excess: float, chosen: Selection, point: Point, *, stopped: bool) -> ProofFailed:
    """Return the error for a bound that no choice met, or none of as many rounds as there were to be (STOPPED); CHOSEN came nearest, with
    POINT, and EXCESS says how near."""
    assert point.quality is not None  # noqa: S101 - it was measured
    parts = [f"{search_measure(search)} {point.quality.value:.4g} (95 % up to {point.quality.high:.4g})"]
    if point.top1 is not None:
        parts.append(f"first choice as torch {point.top1.value:.2%} (95 % from {point.top1.low:.2%})")
    goal = search.goal
    wanted = [f"{search_measure(search)} <= {search.bound:g}"] if search.bound is not None else []
    wanted += [f"first choice >= {goal.min_top1:.2%}"] if goal.min_top1 is not None else []
    size = f" within {goal.target_bytes} bytes" if goal.target_bytes is not None else ""
    size = f" within {goal.target_bpw:g} bits per weight" if goal.target_bpw is not None else size
    tried = f"{len(search.found)} file{'s' if len(search.found) > 1 else ''} measured"
    largest = selected(search.items, largest_kinds(search.items)).nbytes
    what = "even the largest types that may be used have" if chosen.nbytes >= largest else f"the nearest of {tried} has"
    rounds = f"{goal.rounds} round{'s' if goal.rounds > 1 else ''}"
    first = f"nothing met {{}} within {rounds}" if stopped else "no choice of types meets {}"
    larger = ", or allow a larger file" if search.budget is not None else ""
    more = f"allow more: --rounds {goal.rounds + 3}" if stopped else f"ask for no more than it has{larger}"
    return ProofFailed(
        f"{first.format(' and '.join(wanted))}{size}; {what} {', '.join(parts)} at {point.nbytes} bytes, "
        f"{point.bpw:.2f} bits per weight",
        hint=more
        + (", or allow more types" if goal.only or goal.exclude else "")
        + ("; a longer --eval-text makes the interval narrower" if excess < 1.3 else ""),
    )


def largest_kinds(items: Sequence[Item]) -> dict[str, str]:
    """Return item → its largest type."""
    return {item.name: max(item.options, key=lambda option: option.nbytes).kind for item in items}


def search_measure(search: Search) -> str:
    """Return the name of what is measured."""
    return "mean KL" if search.plan.pooling is None else "1 - mean cosine"


def mapped(search: Search, chosen: Selection) -> QuantMap:
    """Return the map of the types CHOSEN, with what each tensor is expected to cost."""
    why = {}
    for item in search.items:
        cost = next(option.cost for option in item.options if option.kind == chosen.kinds[item.name])
        why[item.name] = f"chosen: expected to add {cost:.2g} to the {search_measure(search)}"
    return chosen_types(search.plan, chosen.kinds, why)


def point_of(search: Search, chosen: Selection, name: str) -> Point:
    """Return what is known of CHOSEN before it is measured."""
    quantmap = mapped(search, chosen)
    return Point(
        name=name,
        nbytes=gguf.file_bytes(search.plan, search.vocabulary, quantmap, search.extra),
        bpw=quantmap.nbytes * 8 / search.plan.parameters,
        predicted=chosen.cost,
        types=quantmap.counts(),
    )


def measured_point(
    search: Search, compared: HeldOut | EmbeddingHeldOut | None, trial: Path, chosen: Selection, name: str
) -> Point:
    """Write CHOSEN to TRIAL, run it on the held-out text, and return what came out."""
    assert compared is not None  # noqa: S101 - opened for a bound, and for presets
    search.progress(name, 0, 1)
    gguf.write_model(
        trial,
        search.plan,
        search.vocabulary,
        mapped(search, chosen),
        search.extra,
        lambda done, total: search.progress(f"{name}: writing", done, total, "B"),
        threads=cpu_facts().threads,
        feedback=feedback_for(search.curvature),
        kept=search.kept,
    )
    found = compared.measure(trial)
    trial.unlink()
    point = replace(point_of(search, chosen, name), quality=found.quality, top1=found.top1, p999=found.p999)
    search.found.append(point)
    return point


def measure_presets(search: Search, compared: HeldOut | EmbeddingHeldOut, trial: Path) -> Iterator[Point]:
    """Yield the presets as llama-quantize makes them with an importance matrix, measured on the same text."""
    plan, rows = search.plan, {}
    for item in search.items:
        if item.name in search.curvature and item.name not in ("token_embd.weight", "output.weight"):
            rows[item.name] = search.curvature.plain(item.name)
    for preset in PRESETS:
        assert preset not in NEEDS_IMPORTANCE or rows  # noqa: S101 - the table has none of these
        quantmap = plan_types(plan, preset, importance=rows)
        search.progress(f"measuring {preset.lower()}", 0, 1)
        gguf.write_model(
            trial, plan, search.vocabulary, quantmap, search.extra, threads=cpu_facts().threads, importance=rows
        )
        found = compared.measure(trial)
        yield Point(
            name=preset.lower(),
            nbytes=trial.stat().st_size,
            bpw=quantmap.nbytes * 8 / plan.parameters,
            quality=found.quality,
            top1=found.top1,
            p999=found.p999,
            types=quantmap.counts(),
        )
        trial.unlink()


def corners(search: Search, presets: Sequence[Point] = ()) -> Iterator[Point]:
    """Yield some corners of the frontier, evenly over its sizes, corrected by what was measured, PRESETS included."""
    found = [item for item in frontier(search.items, seconds=search.seconds) if item.cost > 0]
    every = {item.name: {option.kind: option.cost for option in item.options} for item in search.items}
    exact = [
        replace(point, predicted=sum(kinds[NEARLY_EXACT] for kinds in every.values()))
        for point in presets
        if point.name == NEARLY_EXACT.lower() and all(NEARLY_EXACT in kinds for kinds in every.values())
    ]
    floor, scale = line_of([*search.found, *exact])
    step = max(1, len(found) // CORNERS)
    for item in [*found[::step], *(found[-1:] if (len(found) - 1) % step else [])]:
        yield replace(point_of(search, item, ""), predicted=floor + item.cost * scale)


def line_of(points: Sequence[Point]) -> tuple[float, float]:
    """Return the floor and the factor by which the expected costs of POINTS become what was measured, with the least relative errors.

    The floor is what no type changes: the runtime rounds activations. Of one point only the factor can be told; of none it is 1.
    """
    pairs = [
        (point.predicted, point.quality.value)
        for point in points
        if point.quality is not None and point.predicted and point.quality.value > 0
    ]
    if not pairs:
        return 0.0, 1.0
    rows = [(1 / measured, cost / measured) for cost, measured in pairs]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if len(pairs) > 1 and determinant > 1e-9 * aa * bb:
        floor, factor = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if floor > 0 and factor > 0:
            return floor, factor
    return 0.0, b / bb
