"""Outcomes of searches as they could be, for the tests of what people see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from converters.mixes import BLOCK, SIZE
from edgeai.bounds.outcome import Outcome, Point
from edgeai.evaluation.intervals import Interval

PARTS = {
    "attn_q": 1.0,
    "attn_k": 0.33,
    "attn_v": 0.33,
    "attn_output": 1.0,
    "ffn_gate": 2.67,
    "ffn_up": 2.67,
    "ffn_down": 2.67,
}
"""Part of a layer → its weights, in units of the hidden size squared."""
PRESETS = {
    "q3_k_m": (3.9, 0.094), "iq4_xs": (4.46, 0.061), "q4_0": (4.55, 0.161), "q4_k_m": (4.88, 0.0356), "q5_k_m": (5.7, 0.0162),
    "q6_k": (6.57, 0.0061), "q8_0": (8.5, 0.0012),
}  # fmt: skip
"""Name → bits per weight and mean KL, as a small model could have them."""
CHOICES = ("q4_0", "q4_k", "iq4_xs", "q5_k", "q6_k", "q3_k", "q5_0", "q8_0")


def interval(value: float, width: float = 0.1) -> Interval:
    """An interval of WIDTH times VALUE to both sides."""
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def kinds(
    layers: int, *, tied: bool = True, parts: Sequence[str] = tuple(PARTS), choices: Sequence[str] = CHOICES
) -> dict[str, str]:
    """The type of every tensor of a model of LAYERS, neighbours often alike, vectors among them."""
    found = {"token_embd.weight": "q6_k", "output_norm.weight": "f32"}
    for layer in range(layers):
        found[f"blk.{layer}.attn_norm.weight"] = "f32"
        for number, part in enumerate(parts):
            wave = math.sin((layer // 3) * 2.1 + number * 1.7) + (2 if part in ("ffn_down", "attn_v") else 0)
            found[f"blk.{layer}.{part}.weight"] = choices[int(wave * 2 + 2) % len(choices)]
    return found if tied else found | {"output.weight": "q8_0"}


def mean_bits(types: Mapping[str, str]) -> float:
    """The bits of the types, each tensor alike."""
    found = [SIZE[kind.upper()] * 8 / BLOCK[kind.upper()] for kind in types.values() if kind != "f32"]
    return sum(found) / len(found)


def outcome(layers: int = 30, weights: float = 134.5e6, **changes: Any) -> Outcome:
    """A search for a mean KL of 0.02 in a model like SmolLM2-135M."""

    def point(name: str, bpw: float, **facts: Any) -> Point:
        return Point(name=name, nbytes=int(weights * bpw / 8 + 1.8e6), bpw=bpw, **facts)

    presets = tuple(
        point(
            name,
            bpw,
            quality=interval(kl),
            top1=interval(1 - kl**0.5 / 2, 0.005),
            p999=kl * 40,
            types={"Q4_K": 120, "F32": 61},
        )
        for name, (bpw, kl) in PRESETS.items()
    )
    frontier = tuple(
        point("", 2.6 + step * 0.25, predicted=0.19 * math.exp(-0.27 * step + 0.00075 * step**2)) for step in range(30)
    )
    rounds = (
        point("round 1", 4.62, predicted=0.0148, quality=interval(0.0263)),
        point("round 2", 5.05, predicted=0.0123, quality=interval(0.0203)),
        point("round 3", 5.27, predicted=0.011, quality=interval(0.0168)),
    )
    types = kinds(layers)
    found = Outcome(
        model="SmolLM2-135M",
        measure="mean KL, nats",
        chosen=point("chosen", 5.18, predicted=0.0117, quality=interval(0.0182, 0.08), top1=interval(0.946, 0.004), p999=0.71),
        rounds=rounds,
        presets=presets,
        frontier=frontier,
        kinds=types,
        costs={name: 0.0001 * (1 + len(name) % 5) for name, kind in types.items() if kind != "f32"},
        bound=0.02,
    )  # fmt: skip
    return replace(found, **changes)


def embedder() -> Outcome:
    """A search for a cosine."""
    parts = tuple(part for part in PARTS if part != "ffn_gate")
    return outcome(6, 22e6, measure="1 - cosine", bound=0.005, kinds=kinds(6, parts=parts), model="all-MiniLM-L6-v2")


def crowded() -> Outcome:
    """Presets that lie close to each other."""
    found = outcome()
    more = [
        ("q3_k_s", 3.7, 0.13),
        ("q4_k_s", 4.68, 0.041),
        ("q5_0", 5.52, 0.019),
        ("q5_k_s", 5.55, 0.0175),
        ("iq4_nl", 4.56, 0.058),
    ]
    points = [
        Point(name=name, nbytes=int(134.5e6 * bpw / 8 + 1.8e6), bpw=bpw, quality=interval(kl)) for name, bpw, kl in more
    ]
    return replace(found, presets=(*found.presets, *points))


def unmeasured() -> Outcome:
    """Nothing but predictions."""
    found = outcome()
    presets = tuple(replace(point, quality=None, top1=None, predicted=0.7 * point.bpw**-3) for point in found.presets)
    return replace(found, presets=presets, rounds=(), chosen=replace(found.chosen, quality=None, top1=None))


def odd() -> Outcome:
    """Values that a logarithmic scale has no place for, and ends that are none."""
    found = outcome()
    values = (0.0, -0.001, math.nan, 0.01, 0.02)
    ends = ((0.0, 0.0), (-0.01, 0.01), (math.nan, math.nan), (-math.inf, math.inf), (-0.001, 0.041))
    presets = tuple(
        replace(point, quality=Interval(value=value, low=low, high=high))
        for point, value, (low, high) in zip(found.presets, values, ends, strict=False)
    )
    return replace(found, presets=presets)


CASES: dict[str, Callable[[], Outcome]] = {
    "thirty layers": outcome,
    "two layers": lambda: outcome(2, 3.2e6),
    "sixty layers": lambda: outcome(60, 7e9, kinds=kinds(60, tied=False)),
    "gemma": lambda: outcome(18, 268e6, bound=None, target_bytes=175_000_000, rounds=()),
    "embedder": embedder,
    "crowded": crowded,
    "no presets": lambda: outcome(presets=()),
    "alone": lambda: outcome(presets=(), rounds=(), frontier=()),
    "unmeasured": unmeasured,
    "odd": odd,
    "both bounds": lambda: outcome(target_bytes=95_000_000, min_top1=0.94),
    "top-1": lambda: outcome(bound=None, min_top1=0.94),
    "no layers": lambda: outcome(kinds={"token_embd.weight": "q8_0"}),
    "nothing": lambda: outcome(
        presets=(), rounds=(), frontier=(), kinds={}, costs={}, bound=None, chosen=Point(name="chosen", nbytes=1, bpw=1.0)
    ),
}  # fmt: skip
