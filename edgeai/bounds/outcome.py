"""What a search came to: the points that were measured, the frontier that was predicted, and the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeai.evaluation.intervals import Interval
from edgeai.types import Report

__all__ = ["SPLIT", "Outcome", "Point", "with_proof"]

SPLIT = "files were compared on the last quarter of the calibration text, which the choice did not see"
"""What is said of a calibration text that there is no other text beside."""

KL, TOP1 = "mean KL on text, nats", "first choice as torch"
"""Rows of a proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One choice of types: its size, what was predicted and what was measured of it (None: not measured).

    `name` is "q4_k_m" and the like for a preset, "chosen" for the result, "round 2" for another one that was measured on the way and ""
    for a corner of the predicted frontier. `quality` is the mean KL in nats (1 - mean cosine for an embedding model), `top1` the share of
    positions with the same first choice.
    """

    name: str
    nbytes: int
    bpw: float
    predicted: float | None = None
    quality: Interval | None = None
    top1: Interval | None = None
    p999: float | None = None
    types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished search. `measure` names what `quality` is ("mean KL, nats"), `bound` is its limit where there is one, `target_bytes`
    that of the size and `min_top1` that of the share of equal first choices; `kinds` is tensor → type of the chosen file, `costs` tensor
    → expected share of the KL. `beside` says what the presets are, `notes` what else there is to know."""

    model: str
    measure: str
    chosen: Point
    rounds: tuple[Point, ...]
    presets: tuple[Point, ...]
    frontier: tuple[Point, ...]
    kinds: Mapping[str, str]
    costs: Mapping[str, float]
    bound: float | None = None
    target_bytes: int | None = None
    min_top1: float | None = None
    beside: str = "presets, with importance matrix"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **asdict(self),
            "kinds": dict(self.kinds),
            "costs": {name: float(f"{cost:.4g}") for name, cost in self.costs.items()},
        }


def with_proof(outcome: Outcome, report: Report) -> Outcome:
    """Return OUTCOME with what the proof's REPORT measured of the chosen file, where the search itself had not to measure it."""
    found = {
        row.name: Interval(value=row.value, low=row.interval[0], high=row.interval[1])
        for row in report.rows
        if row.interval is not None and not isinstance(row.value, str)
    }
    if outcome.chosen.quality is not None or KL not in found:
        return outcome
    return replace(outcome, chosen=replace(outcome.chosen, quality=found[KL], top1=found.get(TOP1)))
