"""Items to choose options for, and what the best choice of them is, found without the solver."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from hypothesis import strategies as st

from converters.ggml_types import GGML_TYPES
from converters.knapsack import Item, Option, Selection

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


def best_by_table(items: Sequence[Item], nbytes: int, seconds: float = math.inf) -> float:
    """Return the least cost within NBYTES and SECONDS: the textbook recursion over all sums."""
    costs = {(0, 0.0): 0.0}
    for item in items:
        longer: dict[tuple[int, float], float] = {}
        for (size, time), cost in costs.items():
            for option in item.options:
                key = size + option.nbytes, time + option.seconds
                if key[0] <= nbytes and key[1] <= seconds:
                    longer[key] = min(longer.get(key, math.inf), cost + option.cost)
        costs = longer
    return min(costs.values(), default=math.inf)


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


def solve(
    solver: Callable[..., Selection], items: Sequence[Item], limit: float, seconds: float | None = None
) -> Selection | None:
    """Return what SOLVER finds, none where that is impossible."""
    try:
        return solver(items, limit, seconds=seconds)
    except ValueError:
        return None


def many_items(seed: int, *, timed: bool) -> list[Item]:
    """Return items with too many choices for brute force; bytes and seconds are small whole numbers."""
    rng = random.Random(seed)
    count, options, most = (12, 5, 12) if timed else (40, 7, 40)
    return [
        one(
            *(
                (rng.randint(1, most), rng.lognormvariate(0, 2), float(rng.randint(1, 6) * timed))
                for _ in range(options)
            ),
            name=f"{place}",
        )
        for place in range(count)
    ]
