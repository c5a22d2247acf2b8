"""What the time of a decoded token has to do with the choice of types, for those who prefer speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converters.families import ModelPlan
from converters.knapsack import Item
from edgeai.types import Progress

__all__ = ["seconds_of", "time_limit"]

SLOWER = 1.05
"""How much longer than the fastest choice of the same size a token may take."""


def seconds_of(
    plan: ModelPlan, kinds: Mapping[str, Sequence[str]], progress: Progress
) -> Mapping[str, Mapping[str, float]]:
    """Return tensor → type → seconds that it takes of one decoded token here, measured."""
    raise NotImplementedError


def time_limit(
    plan: ModelPlan, items: Sequence[Item], budget: int | None, seconds: Mapping[str, Mapping[str, float]]
) -> float:
    """Return how long a token may take."""
    raise NotImplementedError
