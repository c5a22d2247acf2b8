"""The outcome of a proof inside the file itself: keys that are written empty, and filled in when the proof has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from converters.patch import patch_keys
from edgeai.paper import PREFIX

if TYPE_CHECKING:
    from converters.families import ModelPlan

__all__ = ["placeholders", "rounded", "stamp"]

NUMBERS = ("mean_kl", "p99_kl", "top1", "perplexity_ratio")
EMBEDDING_NUMBERS = ("min_cosine", "spearman")
RANKING_NUMBERS = ("spearman",)
FINEST = 5
"""Decimals: what is smaller is the noise of the order of additions, and differs with the number of threads."""


def placeholders(plan: ModelPlan, *, torch: bool) -> dict[str, str | float]:
    """Return the keys for a file that has not been proved: it says so until `stamp` says otherwise."""
    numbers = {None: NUMBERS, "rank": RANKING_NUMBERS}.get(plan.pooling, EMBEDDING_NUMBERS)
    return {
        f"{PREFIX}ok": False,
        f"{PREFIX}reference": "torch" if torch else "runtime",
        **{f"{PREFIX}{name}": 0.0 for name in numbers},
    }


def stamp(path: Path, measured: Mapping[str, float | str], *, ok: bool) -> None:
    """Write the outcome into the keys of the GGUF file PATH. The same proof gives the same bytes."""
    values: dict[str, float | bool] = {
        f"{PREFIX}{name}": rounded(value)
        for name in (*NUMBERS, *EMBEDDING_NUMBERS)
        if isinstance(value := measured.get(name), float) and math.isfinite(value)
    }
    patch_keys(path, {f"{PREFIX}ok": ok, **values})


def rounded(value: float) -> float:
    """Return VALUE with two significant digits, and none behind the fifth decimal: the next run gives the same."""
    value = round(value, FINEST)
    return float(f"{value:.2g}")
