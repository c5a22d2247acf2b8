"""The choice of one option for each item: against brute force, against a table of all sizes, and against its own bound."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import knapsack_search
from converters.ggml_types import GGML_TYPES
from converters.knapsack import CORNERS, Item, Option, Selection, choose, frontier, smallest

ROUNDING = 1e-12
NARROW = ("Q1_0", "Q2_0", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
WIDE = (*NARROW, "Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K")
"""Types for rows of any multiple of 32 or 128 weights, and for those of 256."""


# What is possible


def ways(items: Sequence[Item]) -> Iterator[tuple[int, float, float]]:
    """Yield bytes, cost and seconds of every choice."""
    for chosen in itertools.product(*(item.options for item in items)):
        yield (
            sum(option.nbytes for option in chosen),
            math.fsum(option.cost for option in chosen),
            math.fsum(option.seconds for option in chosen),
        )


def best_by_table(items: Sequence[Item], nbytes: int) -> float:
    """Return the least cost within NBYTES: the textbook recursion over all sizes."""
    costs = [0.0] * (nbytes + 1)
    for item in items:
        costs = [
            min(
                (costs[size - option.nbytes] + option.cost for option in item.options if option.nbytes <= size),
                default=math.inf,
            )
            for size in range(nbytes + 1)
        ]
    return costs[nbytes]


def sums_of(items: Sequence[Item], selection: Selection) -> tuple[int, float, float]:
    """Return bytes, cost and seconds of the kinds of SELECTION."""
    chosen = [next(option for option in item.options if option.kind == selection.kinds[item.name]) for item in items]
    return next(ways([Item(name=str(place), options=(option,)) for place, option in enumerate(chosen)]))


# Models


@st.composite
def some_items(draw: st.DrawFn) -> list[Item]:
    """Draw up to five items of up to four options, with many equal and dominated ones among them."""
    nbytes = st.integers(0, 12) if draw(st.booleans()) else st.integers(0, 10**9)
    cost = draw(st.sampled_from([st.integers(0, 6).map(float), st.floats(0, 1e3, allow_subnormal=False), st.just(0.0)]))
    seconds = draw(st.sampled_from([st.integers(0, 4).map(float), st.floats(0, 10, allow_subnormal=False)]))
    shapes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    return [
        Item(
            name=f"blk.{place}",
            options=tuple(
                Option(kind=f"Q{rank}", nbytes=draw(nbytes), cost=draw(cost), seconds=draw(seconds))
                for rank in range(size)
            ),
        )
        for place, size in enumerate(shapes)
    ]


def model(
    *, layers: int = 30, width: int = 576, heads: int = 192, inner: int = 1536, words: int = 49152, seed: int = 0
) -> list[Item]:
    """Return the tensors of a decoder (by default SmolLM2-135M) in the types that fit, with costs and times like measured ones."""
    rng = random.Random(seed)
    shapes = {"token_embd": (words, width)}
    for layer in range(layers):
        for part, shape in {
            "attn_q": (width, width),
            "attn_k": (heads, width),
            "attn_v": (heads, width),
            "attn_output": (width, width),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }.items():
            shapes[f"blk.{layer}.{part}"] = shape
    types = {item.name: item for item in GGML_TYPES.values()}
    speed = {kind: rng.uniform(0.8, 1.3) * (2.5 if kind.startswith(("I", "Q1", "Q2")) else 1.2) for kind in WIDE}
    items = []
    for name, (rows, columns) in shapes.items():
        weight = 1e-2 * rng.lognormvariate(0, 1.5) * math.sqrt(rows * columns) / 700
        options = []
        for kind in (kind for kind in WIDE if columns % types[kind].block == 0):
            nbytes = rows * columns // types[kind].block * types[kind].size
            cost = weight * 4 ** (-8 * nbytes / (rows * columns)) * rng.lognormvariate(0, 0.15)
            options.append(Option(kind=kind, nbytes=nbytes, cost=cost, seconds=nbytes * speed[kind] / 10e9))
        items.append(Item(name=name, options=tuple(options)))
    return items


def at_bits(items: Sequence[Item], bits: float) -> int:
    """Return the bytes of ITEMS at BITS for each weight."""
    weights = sum(option.nbytes // 2 for item in items for option in item.options if option.kind == "F16")
    return int(weights * bits / 8)


def one(*numbers: tuple[int, float, float], name: str = "output") -> Item:
    """Return an item whose options a, b, c, … have bytes, cost and seconds of NUMBERS."""
    return Item(
        name=name,
        options=tuple(
            Option(kind=chr(ord("a") + place), nbytes=nbytes, cost=cost, seconds=seconds)
            for place, (nbytes, cost, seconds) in enumerate(numbers)
        ),
    )


def solve(found: Callable[[], Selection]) -> Selection | None:
    """Return what is FOUND, none where that is impossible."""
    try:
        return found()
    except ValueError:
        return None


# Against brute force


@settings(max_examples=150)
@given(some_items(), st.data())
def test_the_choice_of_a_size_is_the_best_of_all(items: list[Item], data: st.DataObject) -> None:
    limit = data.draw(st.sampled_from(sorted({nbytes for nbytes, _, _ in ways(items)}))) + data.draw(st.integers(-1, 2))
    best = min((cost for nbytes, cost, _ in ways(items) if nbytes <= limit), default=None)
    found = solve(lambda: choose(items, limit))
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
    best = min((cost for nbytes, cost, time in ways(items) if nbytes <= limit and time <= seconds), default=None)
    found = solve(lambda: choose(items, limit, seconds=seconds))
    if best is None or found is None:
        assert found is best is None
    else:
        assert found.nbytes <= limit
        assert found.seconds <= seconds
        assert best <= found.cost <= best * (1 + 1e-8)
        assert found.bound <= best * (1 + ROUNDING)


@settings(max_examples=150)
@given(some_items(), st.data(), st.booleans())
def test_the_smallest_choice_of_a_cost_is_the_smallest_of_all(
    items: list[Item], data: st.DataObject, timed: bool
) -> None:
    _, limit, _ = data.draw(st.sampled_from(list(ways(items))))
    _, _, seconds = data.draw(st.sampled_from(list(ways(items)))) if timed else (0, 0, math.inf)
    least = min((nbytes for nbytes, cost, time in ways(items) if cost <= limit and time <= seconds), default=None)
    found = solve(lambda: smallest(items, limit, seconds=seconds if timed else None))
    if least is None or found is None:
        assert found is least is None
    else:
        assert found.cost <= limit
        assert found.seconds <= seconds
        assert found.nbytes == least
        assert found.bound <= least


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_among_too_many_for_brute_force_is_that_of_the_table_of_sizes(seed: int) -> None:
    rng = random.Random(seed)
    items = [
        one(*((rng.randint(1, 40), rng.lognormvariate(0, 2), 0.0) for _ in range(7)), name=f"{place}")
        for place in range(40)
    ]
    low, high = (sum(end(option.nbytes for option in item.options) for item in items) for end in (min, max))
    for limit in (low, (3 * low + high) // 4, (low + high) // 2):
        assert choose(items, limit).cost == pytest.approx(best_by_table(items, limit), rel=1e-8)


@settings(max_examples=100)
@given(
    some_items(),
    st.data(),
    st.sampled_from([((1, 2, 3), 300, 2), ((2, 4, 8), 50, 24), ((1, 1, 1), 10**6, 0), ((), 0, 0)]),
)
def test_the_bound_holds_and_the_limits_are_kept_wherever_the_search_is_cut_short(
    items: list[Item], data: st.DataObject, effort: tuple[tuple[int, ...], int, int]
) -> None:
    limit, _, seconds = data.draw(st.sampled_from(list(ways(items))))
    best = min(cost for nbytes, cost, time in ways(items) if nbytes <= limit and time <= seconds)
    with pytest.MonkeyPatch.context() as patch:
        for name, number in zip(("WIDTHS", "EXPANSIONS", "BRANCHES"), effort, strict=True):
            patch.setattr(knapsack_search, name, number)
        found = solve(lambda: choose(items, limit, seconds=seconds))
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
        best = min(cost for nbytes, cost, time in ways(items) if nbytes <= corner.nbytes and time <= seconds)
        assert best <= corner.cost <= best * (1 + 1e-8)


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
