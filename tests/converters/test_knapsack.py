"""The choice of one option for each item: against brute force, against a table of all sizes, and against its own bound."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import knapsack_search
from converters.knapsack import CORNERS, Item, Option, choose, frontier, smallest
from tests.converters.knapsacks import at_bits, best_by_table, many_items, model, one, solve, some_items, sums_of, ways

ROUNDING = 1e-11
"""A choice whose sum is that near to a limit may be taken for one that is beyond it, never the other way round."""


# Against brute force


@settings(max_examples=150)
@given(some_items(), st.data())
def test_the_choice_of_a_size_is_the_best_of_all(items: list[Item], data: st.DataObject) -> None:
    limit = data.draw(st.sampled_from(sorted({nbytes for nbytes, _, _ in ways(items)}))) + data.draw(st.integers(-1, 2))
    best = min((cost for nbytes, cost, _ in ways(items) if nbytes <= limit), default=None)
    found = solve(choose, items, limit)
    if best is None or found is None:
        assert found is best is None
    else:
        assert found.nbytes <= limit
        assert best <= found.cost <= best * (1 + 1e-8)
        assert found.bound <= best * (1 + ROUNDING)


@settings(max_examples=150)
@given(some_items(), st.data())
def test_the_choice_of_a_size_and_a_time_is_the_best_of_all(items: list[Item], data: st.DataObject) -> None:
    _, _, seconds = data.draw(st.sampled_from(list(ways(items))))
    limit = data.draw(st.sampled_from(sorted({nbytes for nbytes, _, _ in ways(items)})))
    best, nearly = (
        min((cost for nbytes, cost, time in ways(items) if nbytes <= limit and time <= most), default=None)
        for most in (seconds, seconds * (1 - ROUNDING))
    )
    found = solve(choose, items, limit, seconds)
    if best is None or found is None:
        assert found is best is None
    else:
        assert found.nbytes <= limit
        assert found.seconds <= seconds
        assert best <= found.cost
        assert nearly is None or found.cost <= nearly * (1 + 1e-8)
        assert found.bound <= best * (1 + ROUNDING)


@settings(max_examples=150)
@given(some_items(), st.data(), st.booleans())
def test_the_smallest_choice_of_a_cost_is_the_smallest_of_all(
    items: list[Item], data: st.DataObject, timed: bool
) -> None:
    _, limit, _ = data.draw(st.sampled_from(list(ways(items))))
    _, _, seconds = data.draw(st.sampled_from(list(ways(items)))) if timed else (0, 0, math.inf)
    least, nearly = (
        min(
            (nbytes for nbytes, cost, time in ways(items) if cost <= limit * share and time <= seconds * share),
            default=None,
        )
        for share in (1, 1 - ROUNDING)
    )
    found = solve(smallest, items, limit, seconds if timed else None)
    if least is None or found is None:
        assert found is least is None
    else:
        assert found.cost <= limit
        assert found.seconds <= seconds
        assert least <= found.nbytes
        assert nearly is None or found.nbytes <= nearly
        assert found.bound <= least


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_among_many_is_that_of_the_table_of_sizes(seed: int) -> None:
    items = many_items(seed, timed=False)
    low, high = (sum(end(option.nbytes for option in item.options) for item in items) for end in (min, max))
    for limit in (low, (3 * low + high) // 4, (low + high) // 2):
        assert choose(items, limit).cost == pytest.approx(best_by_table(items, limit), rel=1e-8)


EFFORTS = [
    ((64, 512, 2048), 400_000, 24),
    ((4, 16), 2000, 24),
    ((8,), 100_000, 6),
    ((1, 2, 3), 300, 2),
    ((1,), 100_000, 24),
    ((2048,), 20, 0),
    ((), 0, 0),
]
"""Widths, expansions and branches of a search: the real ones, and less and less of them."""


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_and_the_cost_are_on_both_sides_of_the_best_in_the_table_of_sizes_and_times(
    seed: int, effort: tuple[tuple[int, ...], int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in zip(("WIDTHS", "EXPANSIONS", "BRANCHES"), effort, strict=True):
        monkeypatch.setattr(knapsack_search, name, number)
    items = many_items(seed, timed=True)
    for nbytes, seconds in ((45, 30.0), (50, 25.0), (80, 25.0), (40, 50.0)):
        best = best_by_table(items, nbytes, seconds)
        found = solve(choose, items, nbytes, seconds)
        if found is None:
            assert best == math.inf or effort != EFFORTS[0]
            continue
        assert found.nbytes <= nbytes
        assert found.seconds <= seconds
        assert found.bound <= best * (1 + ROUNDING)
        assert best <= found.cost * (1 + ROUNDING)
        assert effort != EFFORTS[0] or found.cost <= best * (1 + 1e-8)


@settings(max_examples=100)
@given(some_items(), st.data(), st.sampled_from(EFFORTS))
def test_the_bound_holds_and_the_limits_are_kept_wherever_the_search_is_cut_short(
    items: list[Item], data: st.DataObject, effort: tuple[tuple[int, ...], int, int]
) -> None:
    limit, _, seconds = data.draw(st.sampled_from(list(ways(items))))
    best = min(cost for nbytes, cost, time in ways(items) if nbytes <= limit and time <= seconds)
    with pytest.MonkeyPatch.context() as patch:
        for name, number in zip(("WIDTHS", "EXPANSIONS", "BRANCHES"), effort, strict=True):
            patch.setattr(knapsack_search, name, number)
        found = solve(choose, items, limit, seconds)
    if found is not None:  # with two limits, a short search may find nothing
        assert found.nbytes <= limit
        assert found.seconds <= seconds
        assert found.bound <= best * (1 + ROUNDING)
        assert best <= found.cost


# The same again


@given(some_items(), st.randoms(use_true_random=False))
def test_the_order_of_items_and_options_changes_nothing(items: list[Item], rng: random.Random) -> None:
    shuffled = [Item(name=item.name, options=tuple(rng.sample(item.options, len(item.options)))) for item in items]
    rng.shuffle(shuffled)
    limit, _, seconds = next(ways(items))
    assert choose(shuffled, limit) == choose(items, limit)
    assert choose(shuffled, limit, seconds=seconds) == choose(items, limit, seconds=seconds)
    assert frontier(shuffled) == frontier(items)


def test_the_order_of_a_models_tensors_changes_nothing() -> None:
    items = model()
    shuffled = random.Random(0).sample(items, len(items))
    limit = at_bits(items, 4.5)
    seconds = 0.9 * choose(items, limit).seconds
    assert choose(shuffled, limit, seconds=seconds) == choose(items, limit, seconds=seconds)


def test_of_equal_choices_one_is_always_taken() -> None:
    items = [one((1, 1.0, 0.0), (2, 0.0, 0.0), name=name) for name in "xyz"]
    kinds = {tuple(choose(order, 4).kinds[name] for name in "xyz") for order in itertools.permutations(items)}
    assert len(kinds) == 1


# The frontier


@given(some_items())
def test_the_frontier_is_the_lower_convex_hull_of_all_choices(items: list[Item]) -> None:
    corners = frontier(items)
    assert corners[0].nbytes == min(nbytes for nbytes, _, _ in ways(items))
    assert corners[-1].cost == pytest.approx(min(cost for _, cost, _ in ways(items)), rel=ROUNDING)
    for low, high in itertools.pairwise(corners):
        slope = (low.cost - high.cost) / (high.nbytes - low.nbytes)
        line = low.cost + slope * low.nbytes
        assert all(cost + slope * nbytes >= line - 1e-9 * abs(line) for nbytes, cost, _ in ways(items))


@given(some_items())
def test_the_frontier_grows_in_size_and_falls_in_cost(items: list[Item]) -> None:
    for low, high in itertools.pairwise(frontier(items)):
        assert low.nbytes < high.nbytes
        assert low.cost > high.cost


@given(some_items(), st.data())
def test_each_corner_of_the_frontier_of_a_time_is_the_best_of_its_size(items: list[Item], data: st.DataObject) -> None:
    _, _, seconds = data.draw(st.sampled_from(list(ways(items))))
    corners = frontier(items, seconds=seconds)
    for low, high in itertools.pairwise(corners):
        assert low.nbytes < high.nbytes
        assert low.cost > high.cost
    for corner in corners:
        assert corner.seconds <= seconds
        best, nearly = (
            min((cost for nbytes, cost, time in ways(items) if nbytes <= corner.nbytes and time <= most), default=None)
            for most in (seconds, seconds * (1 - ROUNDING))
        )
        assert best is not None
        assert corner.bound <= best * (1 + ROUNDING)
        assert best <= corner.cost
        assert nearly is None or corner.cost <= nearly * (1 + 1e-8)


def test_steps_of_one_slope_are_one_side_of_the_frontier() -> None:
    items = [one((1, 1.0, 0.0), (2, 0.5, 0.0), (3, 0.0, 0.0), name=name) for name in "xyz"]
    assert [(corner.nbytes, corner.cost) for corner in frontier(items)] == [(3, 3.0), (9, 0.0)]


def test_a_corner_has_the_sums_of_its_kinds() -> None:
    items = model(layers=4)
    for corner in frontier(items):
        assert (corner.nbytes, corner.cost, corner.seconds) == sums_of(items, corner)


def test_a_corner_is_the_choice_of_its_size() -> None:
    items = model(layers=4)
    for corner in frontier(items)[::10]:
        assert choose(items, corner.nbytes).cost == pytest.approx(corner.cost, rel=1e-8)


def test_a_corner_goes_through_a_pipe() -> None:
    corner = frontier(model(layers=1))[5]
    assert pickle.loads(pickle.dumps(corner)) == corner  # noqa: S301


def test_the_frontier_of_a_models_time_is_above_the_one_without() -> None:
    items = model(layers=4)
    free = frontier(items)
    seconds = 0.8 * free[len(free) // 2].seconds
    corners = frontier(items, seconds=seconds)
    assert 10 < len(corners) <= CORNERS
    for corner in corners:
        assert corner.seconds <= seconds
        assert corner.cost >= choose(items, corner.nbytes).bound * (1 - ROUNDING)
        assert corner.bound <= corner.cost


# A model


@pytest.mark.parametrize("bits", [2.4, 3.1, 4.1, 4.5, 5.3, 6.6, 8.5, 12.0])
def test_a_models_choice_is_proven_best(bits: float) -> None:
    items = model()
    found = choose(items, at_bits(items, bits))
    assert found.nbytes <= at_bits(items, bits)
    assert found.bound <= found.cost <= found.bound * (1 + 1e-8)


def test_without_the_search_a_models_choice_is_not_proven_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack_search, "WIDTHS", ())
    monkeypatch.setattr(knapsack_search, "BRANCHES", 0)
    items = model()
    found = choose(items, at_bits(items, 4.5))
    assert found.cost > found.bound * (1 + 1e-6)


@pytest.mark.parametrize("bits", [4.1, 4.6, 5.3, 8.5])
@pytest.mark.parametrize("share", [0.95, 0.8])
def test_a_models_choice_within_a_time_is_near_its_bound(bits: float, share: float) -> None:
    items = model(seed=1)
    free = choose(items, at_bits(items, bits))
    found = choose(items, at_bits(items, bits), seconds=share * free.seconds)
    assert found.nbytes <= at_bits(items, bits)
    assert found.seconds <= share * free.seconds
    assert free.cost <= found.cost <= found.bound * (1 + 1e-3)


def test_a_large_models_choice_is_near_its_bound() -> None:
    items = model(layers=280, width=1024, heads=256, inner=4096)
    limit = at_bits(items, 4.5)
    found = choose(items, limit)
    assert found.cost <= found.bound * (1 + 1e-6)
    assert choose(items, limit, seconds=0.9 * found.seconds).cost >= found.cost


def test_the_smallest_choice_of_the_cost_of_a_size_is_no_larger() -> None:
    items = model()
    for bits in (3.1, 4.5, 6.6):
        found = choose(items, at_bits(items, bits))
        assert smallest(items, found.cost).nbytes <= found.nbytes


def test_the_sums_of_a_selection_are_those_of_its_kinds() -> None:
    items = model(layers=4)
    found = choose(items, at_bits(items, 4.5))
    assert set(found.kinds) == {item.name for item in items}
    assert (found.nbytes, found.cost, found.seconds) == sums_of(items, found)


# Edges


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    item = one((1, 3.0, 0.0), (2, 1.0, 0.0), (3, 2.0, 0.0))
    assert [choose([item], nbytes).kinds["output"] for nbytes in (1, 2, 3, 99)] == ["a", "b", "b", "b"]


def test_of_options_of_equal_cost_the_smallest_is_taken() -> None:
    items = [one((3, 0.0, 0.0), (1, 0.0, 0.0), (2, 0.0, 0.0), name=name) for name in "xy"]
    assert choose(items, 6).nbytes == smallest(items, 0).nbytes == 2


def test_of_equal_options_the_fastest_is_taken() -> None:
    assert choose([one((1, 1.0, 2.0), (1, 1.0, 1.0))], 1).kinds == {"output": "b"}


def test_a_larger_and_worse_option_is_taken_where_only_it_is_fast_enough() -> None:
    assert choose([one((1, 1.0, 2.0), (2, 2.0, 1.0))], 2, seconds=1.5).kinds == {"output": "b"}


def test_costs_of_every_magnitude_are_told_apart() -> None:
    items = [one((1, 10.0**-power, 0.0), (2, 0.0, 0.0), name=f"{power:03}") for power in range(0, 300, 10)]
    found = choose(items, len(items) + 3)
    assert [name for name, kind in found.kinds.items() if kind == "b"] == ["000", "010", "020"]


def test_a_limit_that_is_met_exactly_is_met() -> None:
    items = [one((1, 0.1, 0.3), (2, 0.7, 0.1), name=f"{place}") for place in range(10)]
    fastest = choose(items, 20, seconds=math.fsum([0.1] * 10))
    assert set(fastest.kinds.values()) == {"b"}
    assert smallest(items, math.fsum([0.1] * 10)).nbytes == 10


def test_a_limit_that_is_missed_by_a_rounding_is_missed() -> None:
    items = [one((1, 1.0, 1.0), (1, 0.0, 2.0))]
    assert choose(items, 1, seconds=2.0).kinds == {"output": "b"}
    assert choose(items, 1, seconds=math.nextafter(2.0, 0)).kinds == {"output": "a"}


def test_limits_without_end_are_none() -> None:
    items = model(layers=1)
    limit = at_bits(items, 4.5)
    assert choose(items, limit, seconds=math.inf) == choose(items, limit)
    assert smallest(items, math.inf).nbytes == frontier(items)[0].nbytes
    assert frontier(items, seconds=math.inf) == frontier(items)


def test_nothing_to_choose_takes_nothing() -> None:
    assert choose([], 0) == smallest([], 0) == frontier([])[0]
    assert choose([], 0).nbytes == 0


# What is refused


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (lambda items: choose(items, 9), "within 9 bytes: the least possible is 10 bytes"),
        (lambda items: choose(items, 99, seconds=0.5), "within 0.5 seconds: the least possible is 1.0 seconds"),
        (lambda items: smallest(items, 0.1), "within a cost of 0.1: the least possible is a cost of 0.25"),
        (lambda items: smallest(items, 9, seconds=0.5), "within 0.5 seconds: the least possible is 1.0 seconds"),
        (lambda items: frontier(items, seconds=0.5), "within 0.5 seconds: the least possible is 1.0 seconds"),
        (
            lambda items: choose(items, 15, seconds=1.5),
            "both 15 bytes and 1.5 seconds: within 1.5 seconds the least found is 20 bytes; within 15 bytes the least found is 2.0 seconds",
        ),
        (lambda items: choose(items, 15, seconds=math.nan), "nan seconds is no limit"),
        (lambda items: smallest(items, math.nan), "a cost of nan is no limit"),
    ],
)
def test_a_limit_that_nothing_meets_is_refused_with_what_is_possible(
    found: Callable[[list[Item]], object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        found([one((10, 0.5, 2.0), (20, 0.25, 1.0))])


@pytest.mark.parametrize("field", ["cost", "seconds"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(field: str, number: float) -> None:
    option = {"cost": 0.0, "seconds": 0.0, field: number}
    item = one((1, option["cost"], option["seconds"]), name="token_embd")
    for found in (lambda: choose([item], 9), lambda: smallest([item], 9), lambda: frontier([item])):
        with pytest.raises(ValueError, match=f"{field} of 'token_embd' as 'a' is {number!r}"):
            found()


@pytest.mark.parametrize("item", [one((-1, 0.0, 0.0)), one((1, 0.0, -1.0))])
def test_fewer_than_no_bytes_or_seconds_are_refused(item: Item) -> None:
    with pytest.raises(ValueError, match=r"is -1(\.0)?; give a finite number of 0 or more"):
        choose([item], 9)


def test_an_item_without_options_is_refused() -> None:
    with pytest.raises(ValueError, match="'output' has no options"):
        choose([one()], 9)


def test_names_and_kinds_that_are_there_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="'output' is the name of several items"):
        choose([one((1, 0.0, 0.0)), one((1, 0.0, 0.0))], 9)
    same = Option(kind="Q4_0", nbytes=1, cost=0.0)
    with pytest.raises(ValueError, match="'output' has several options 'Q4_0'"):
        choose([Item(name="output", options=(same, same))], 9)
