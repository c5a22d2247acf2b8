"""The search for a bound, on files whose quality is a formula of what was expected: no torch, no runtime, nothing written."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.curvature import Curvature
from converters.families import ModelPlan, plan_model
from converters.knapsack import Item, Selection, frontier
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai.bounds import search as module
from edgeai.bounds.goal import Goal
from edgeai.bounds.layers import bits
from edgeai.bounds.options import kinds_of, options_of
from edgeai.bounds.outcome import Outcome, Point
from edgeai.bounds.search import Search, file_limits, line_of, point_of, seek
from edgeai.errors import ProofFailed, UsageError
from edgeai.evaluation.intervals import Interval
from edgeai.types import no_progress

TINY = Path(__file__).parents[2] / "models" / "tiny"
Truth = Callable[[float], float]
"""Expected cost → what is measured."""
WIDTH = 0.08
"""Half of an interval, as a part of its middle."""


@pytest.fixture(scope="module")
def tiny() -> tuple[Checkpoint, ModelPlan, Vocabulary]:
    checkpoint = open_checkpoint(TINY)
    plan = plan_model(checkpoint)
    return checkpoint, plan, read_vocabulary(checkpoint, plan.vocab_size)


@dataclass
class Lab:
    """A search on models/tiny with made-up costs; `truth` says what a file of an expected cost has."""

    tiny: tuple[Checkpoint, ModelPlan, Vocabulary]
    truth: Truth
    disagreement: float = 0.5
    asked: list[Selection] = field(default_factory=list)

    def costs(self, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
        """A cost that falls by four with each bit, by tensors of very different weight."""
        return {
            name: {kind: 3 ** (number % 5) * 4.0 ** -bits(kind) * (1.1 if "_" in kind else 1) for kind in some}
            for number, (name, some) in enumerate(kinds.items())
        }

    def search(self, goal: Goal) -> Search:
        checkpoint, plan, vocabulary = self.tiny
        kinds = kinds_of(plan, goal, ())
        items = options_of(plan, kinds, self.costs(kinds), {})
        return Search(
            checkpoint=checkpoint,
            plan=plan,
            vocabulary=vocabulary,
            goal=goal,
            curvature=Curvature(folder=Path("nowhere"), places={}, tokens=1, texts=1),
            items=items,
            budget=file_limits(plan, vocabulary, goal, kinds, {}),
            seconds=None,
            extra={},
            comparison=cast("Any", lambda: contextlib.nullcontext(object())),
            progress=no_progress,
        )

    def measured_point(self, search: Search, _compared: object, _trial: Path, chosen: Selection, name: str) -> Point:
        """Stand in for writing and comparing a file."""
        self.asked.append(chosen)
        ends = self.quality(chosen.cost)
        point = replace(point_of(search, chosen, name), quality=ends["quality"], top1=ends["top1"], p999=1.0)
        search.found.append(point)
        return point

    def quality(self, cost: float) -> dict[str, Interval]:
        value = self.truth(cost)
        equal = max(0.0, 1 - self.disagreement * math.sqrt(value))
        return {
            "quality": Interval(value=value, low=value * (1 - WIDTH), high=value * (1 + WIDTH)),
            "top1": Interval(value=equal, low=equal - 0.005, high=min(1.0, equal + 0.005)),
        }

    def seek(self, **goal: Any) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "measured_point", self.measured_point)
            self.last = self.search(Goal(**goal))
            return seek(self.last)[1]


@pytest.fixture
def lab(tiny: tuple[Checkpoint, ModelPlan, Vocabulary]) -> Callable[[Truth], Lab]:
    return lambda truth: Lab(tiny, truth)


def scaled(scale: float, power: float = 1.0) -> Truth:
    return lambda cost: scale * cost**power


def scan(lab: Lab, good: Callable[[Selection], bool]) -> int:
    """Return the bytes of the smallest corner of the frontier that is GOOD, by looking at all of them."""
    return min(point_of(lab.last, item, "").nbytes for item in frontier(lab.last.items) if item.cost > 0 and good(item))


TRUTHS = [(0.3, 1.0), (0.7, 1.0), (1.0, 1.0), (1.6, 1.0), (4.0, 1.0), (1.0, 0.85), (1.0, 1.2)]


@pytest.mark.parametrize(("scale", "power"), TRUTHS)
@pytest.mark.parametrize("bound", [0.002, 0.02, 0.2])
def test_what_is_accepted_meets_the_bound_with_the_worse_end_of_its_interval(
    lab: Callable[[Truth], Lab], scale: float, power: float, bound: float
) -> None:
    here = lab(scaled(scale, power))
    found = here.seek(max_kl=bound)
    assert found.chosen.quality is not None
    assert found.chosen.quality.high <= bound
    assert len(here.asked) <= 6


@pytest.mark.parametrize("floor", [0.002, 0.005, 0.008])
def test_what_no_type_changes_costs_no_round(lab: Callable[[Truth], Lab], floor: float) -> None:
    here = lab(lambda cost: floor + cost)  # the runtime rounds activations, whatever the types
    assert here.seek(max_kl=0.02).chosen.quality is not None
    assert len(here.asked) <= 3


@pytest.mark.parametrize(("scale", "power"), TRUTHS)
def test_what_is_accepted_is_hardly_larger_than_the_smallest_that_would_be(
    lab: Callable[[Truth], Lab], scale: float, power: float
) -> None:
    here = lab(scaled(scale, power))
    found = here.seek(max_kl=0.02)
    best = scan(here, lambda item: here.truth(item.cost) * (1 + WIDTH) <= 0.02)
    assert found.chosen.nbytes <= 1.03 * best


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_no_file_is_measured_twice(lab: Callable[[Truth], Lab], scale: float) -> None:
    here = lab(scaled(scale))
    here.seek(max_kl=0.02, rounds=20)
    seen = [tuple(sorted(item.kinds.items())) for item in here.asked]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_no_more_files_are_measured_than_allowed(lab: Callable[[Truth], Lab], rounds: int) -> None:
    here = lab(lambda cost: 0.021 + 0.0001 * cost)  # hardly better with any type
    with contextlib.suppress(ProofFailed):
        here.seek(max_kl=0.02, rounds=rounds)
    assert len(here.asked) <= rounds


def test_the_smallest_of_the_accepted_wins_although_others_were_measured_later(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(0.3))
    found = here.seek(max_kl=0.02)
    good = [point.nbytes for point in here.last.found if point.quality and point.quality.high <= 0.02]
    assert found.chosen.nbytes == min(good)


def test_rounds_that_were_not_accepted_are_shown_beside_the_choice(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.6))
    found = here.seek(max_kl=0.02)
    assert len(found.rounds) == len(here.asked) - 1 > 0
    assert found.chosen.name == "chosen"
    assert found.bound == 0.02


def test_a_bound_that_the_largest_types_miss_is_refused_with_what_they_have(lab: Callable[[Truth], Lab]) -> None:
    here = lab(lambda cost: 1e-6 + cost)
    with pytest.raises(
        ProofFailed, match=r"mean KL <= 1e-09; even the largest types .* have mean KL 1\.\d+e-06"
    ) as caught:
        here.seek(max_kl=1e-9)
    assert len(here.asked) == 1  # nothing better could follow
    assert re.search(r"at \d+ bytes, 1\d\.\d\d bits per weight", caught.value.message)


def test_where_no_round_meets_the_bound_the_nearest_of_them_is_named(lab: Callable[[Truth], Lab]) -> None:
    here = lab(lambda cost: 0.021 + 0.02 * cost)
    with pytest.raises(ProofFailed, match=r"nothing met mean KL <= 0.02 within 3 rounds") as caught:
        here.seek(max_kl=0.02, rounds=3)
    best = min(point.quality.value for point in here.last.found if point.quality)
    assert f"mean KL {best:.4g}" in caught.value.message
    assert "--rounds 6" in str(caught.value.hint)


def test_the_size_and_the_bound_both_hold(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.0))
    found = here.seek(max_kl=0.02, target_bytes=1_500_000)
    assert found.chosen.quality is not None
    assert found.chosen.nbytes <= 1_500_000
    assert found.chosen.quality.high <= 0.02
    assert found.target_bytes == 1_500_000


def test_a_bound_that_no_file_of_the_size_meets_is_refused_with_the_best_of_the_size(
    lab: Callable[[Truth], Lab],
) -> None:
    here = lab(scaled(1.0))
    with pytest.raises(ProofFailed, match=r"mean KL <= 0\.001 within \d+ bytes") as caught:
        here.seek(max_kl=0.001, target_bytes=600_000)
    assert len(here.asked) == 1
    assert 590_000 < here.last.found[0].nbytes <= 600_000
    assert caught.value.hint is not None
    assert "larger file" in caught.value.hint


@pytest.mark.parametrize("disagreement", [0.3, 0.5, 1.0])
def test_a_share_of_first_choices_is_met_by_the_lower_end_of_its_interval(
    lab: Callable[[Truth], Lab], disagreement: float
) -> None:
    here = lab(scaled(1.0))
    here.disagreement = disagreement
    found = here.seek(min_top1=0.93)
    assert found.chosen.top1 is not None
    assert found.chosen.top1.low >= 0.93
    best = scan(here, lambda item: here.quality(item.cost)["top1"].low >= 0.93)
    assert found.chosen.nbytes <= 1.03 * best
    assert found.min_top1 == 0.93


def test_of_two_bounds_the_harder_one_decides(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.0))
    both = here.seek(max_kl=0.02, min_top1=0.97).chosen
    assert both.nbytes >= max(here.seek(max_kl=0.02).chosen.nbytes, here.seek(min_top1=0.97).chosen.nbytes) * 0.97
    assert both.top1 is not None
    assert both.top1.low >= 0.97


@pytest.mark.parametrize("nbytes", [520_000, 700_000, 1_000_000, 1_500_000])
def test_a_file_of_a_size_fills_it_and_needs_no_measurement(lab: Callable[[Truth], Lab], nbytes: int) -> None:
    here = lab(scaled(1.0))
    found = here.seek(target_bytes=nbytes)
    assert 0.98 * nbytes < found.chosen.nbytes <= nbytes
    assert not here.asked


@pytest.mark.parametrize("bpw", [2.9, 4.5, 8.0, 12.0])
def test_bits_per_weight_are_not_exceeded(lab: Callable[[Truth], Lab], bpw: float) -> None:
    found = lab(scaled(1.0)).seek(target_bpw=bpw)
    assert 0.98 * bpw < found.chosen.bpw <= bpw


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"target_bytes": 100_000}, r"target of 100000 bytes cannot be met: the smallest .* has (\d+)"),
        ({"target_bytes": 90_000_000}, r"target of 90000000 bytes cannot be met: the largest .* has (\d+)"),
        ({"target_bpw": 1.0}, r"target of 1 bits per weight cannot be met: the smallest .* has (2\.\d+)"),
        ({"target_bpw": 31.0}, r"target of 31 bits per weight cannot be met: the largest .* has (16\.\d+)"),
        ({"target_bpw": 12.0, "only": ("Q4_0", "Q8_0")}, r"cannot be met: the largest .* has (8\.\d+)"),
    ],
)
def test_a_size_that_no_choice_has_is_refused_with_the_one_that_is_possible(
    lab: Callable[[Truth], Lab], goal: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        lab(scaled(1.0)).seek(**goal)
    assert re.search(said, caught.value.message), caught.value.message


def test_the_sizes_that_an_error_names_are_possible(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.0))
    for goal in ({"target_bytes": 1}, {"target_bytes": 90_000_000}):
        with pytest.raises(UsageError) as caught:
            here.seek(**goal)
        size = int(re.findall(r"has (\d+)", caught.value.message)[0])
        assert here.seek(target_bytes=size).chosen.nbytes <= size
    with pytest.raises(UsageError) as caught:
        here.seek(target_bpw=1.0)
    here.seek(target_bpw=float(re.findall(r"has ([\d.]+)", caught.value.message)[0]))


def test_only_the_types_that_may_be_used_are_chosen(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.0))
    assert set(here.seek(max_kl=0.02, only=("Q4_0", "Q8_0")).kinds.values()) <= {"Q4_0", "Q8_0"}
    assert not set(here.seek(max_kl=0.02, exclude=("IQ4_NL", "Q5_0")).kinds.values()) & {"IQ4_NL", "Q5_0"}


def test_types_that_fit_no_row_are_refused_with_the_tensor(lab: Callable[[Truth], Lab]) -> None:
    here = lab(scaled(1.0))
    narrow = next(tensor for tensor in here.tiny[1].tensors if tensor.name == "blk.0.ffn_up.weight")
    plan = replace(
        here.tiny[1],
        tensors=tuple(replace(item, shape=(*item.shape[:-1], 96)) if item is narrow else item for item in here.tiny[1].tensors),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"'blk\.0\.ffn_up\.weight', whose rows have 96 columns: q4_k"):
        kinds_of(plan, Goal(target_bpw=4.0, only=("Q4_K",)), ())


def test_the_same_search_twice_makes_the_same_choice(lab: Callable[[Truth], Lab]) -> None:
    assert lab(scaled(1.6)).seek(max_kl=0.02) == lab(scaled(1.6)).seek(max_kl=0.02)


def test_the_frontier_is_corrected_by_what_was_measured(lab: Callable[[Truth], Lab]) -> None:
    plain, corrected = lab(scaled(1.0)).seek(max_kl=0.02), lab(scaled(3.0)).seek(max_kl=0.02)
    ratios = [
        right.predicted / left.predicted
        for left, right in zip(plain.frontier, corrected.frontier, strict=True)
        if left.predicted and right.predicted
    ]
    assert ratios == [pytest.approx(3.0)] * len(plain.frontier)


@pytest.mark.parametrize(("floor", "factor"), [(0.005, 1.0), (0.002, 1.7), (0.0, 0.6)])
def test_a_floor_and_a_factor_are_told_apart(floor: float, factor: float) -> None:
    points = [measured(cost, floor + factor * cost) for cost in (0.001, 0.01, 0.02)]
    assert line_of(points) == (pytest.approx(floor, abs=1e-9), pytest.approx(factor))


def test_of_one_point_there_is_a_factor_and_of_none_nothing_is_corrected() -> None:
    assert line_of([measured(0.01, 0.03)]) == (0.0, pytest.approx(3.0))
    assert line_of([]) == (0.0, 1.0)


def test_no_floor_is_below_nothing() -> None:
    floor, factor = line_of([measured(0.01, 0.005), measured(0.02, 0.02)])
    assert floor == 0
    assert 0.5 < factor < 1


def measured(cost: float, value: float) -> Point:
    return Point(name="", nbytes=1, bpw=1.0, predicted=cost, quality=Interval(value=value, low=value, high=value))


def test_items_without_costs_get_a_type_that_does_no_harm(tiny: tuple[Checkpoint, ModelPlan, Vocabulary]) -> None:
    kinds = kinds_of(tiny[1], Goal(target_bpw=4.0), ())
    items: list[Item] = options_of(tiny[1], kinds, {}, {})
    assert {option.kind for item in items for option in item.options} == {"Q8_0"}
