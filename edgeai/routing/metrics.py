"""How good a confidence is: AUROC, calibration error, risk and coverage, and what accuracy handing the least sure answers on brings.

Arrays are (answers,): `score`, higher is surer, or a `probability`, and whether each was `right`, 0 or 1. Answers of the same score count
as in random order: each has the mean of all of them, so that no figure depends on the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]

__all__ = ["BINS", "Estimate", "accuracy_at", "aurc", "auroc", "calibration_error", "estimate", "risk_coverage"]

BINS = 10
RESAMPLES = 1000
SEED = 20240229


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(score: F64, right: F64) -> float:
    """Return the probability that a right answer scores higher than a wrong one, ties half; NaN where all are right or all wrong.

    By the ranks, as the statistic of Mann and Whitney (Annals of Mathematical Statistics 18, 1947).
    """
    import numpy as np

    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    good = float(right.sum())
    bad = len(right) - good
    if not good or not bad:
        return float("nan")
    return float((ranks[right > 0].sum() - good * (good + 1) / 2) / (good * bad))


def calibration_error(probability: F64, right: F64, bins: int = BINS) -> float:
    """Return the expected calibration error: |mean probability - share of right answers| over BINS equal parts of 0 to 1, by their size.

    Naeini, Cooper and Hauskrecht, AAAI 2015.
    """
    import numpy as np

    which = np.minimum((probability * bins).astype(np.int64), bins - 1)
    apart = np.bincount(which, probability, bins) - np.bincount(which, right, bins)
    return float(np.abs(apart).sum() / len(right))


def risk_coverage(score: F64, right: F64) -> F64:
    """Return the share of wrong answers among the 1, 2 … n surest, (answers,)."""
    import numpy as np

    wrong = 1 - _evened(score, right)[::-1]
    return np.asarray(np.cumsum(wrong) / np.arange(1, len(wrong) + 1), dtype=np.float64)


def aurc(score: F64, right: F64) -> float:
    """Return the area under risk and coverage, the mean risk over all coverages; lower is better (Geifman et al., ICLR 2019)."""
    return float(risk_coverage(score, right).mean())


def accuracy_at(share: float, score: F64, weak: F64, strong: F64) -> float:
    """Return the share of right answers where the SHARE of least score is answered by the stronger model, the others by the weaker one."""
    import numpy as np

    count = round(share * len(weak))
    taken = _evened(score, np.stack([weak, strong]))
    return float((taken[1, :count].sum() + taken[0, count:].sum()) / len(weak))


def _evened(score: F64, values: F64) -> F64:
    """Return VALUES, (…, answers), from the least score to the highest, each the mean of those of its score."""
    import numpy as np

    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    sums = np.zeros((*values.shape[:-1], len(counts)))
    np.add.at(sums.T, place, values.T)
    return np.repeat(sums / counts, counts, axis=-1)


def estimate(figure: Callable[..., float], *arrays: F64, resamples: int = RESAMPLES) -> Estimate:
    """Return FIGURE of ARRAYS with the percentiles of RESAMPLES draws of answers, with replacement, from a fixed seed.

    Draws of which the figure is not defined (all right) are left out.
    """
    import numpy as np

    draw, count = np.random.default_rng(SEED), len(arrays[0])
    found = []
    for _ in range(resamples):
        chosen = draw.integers(count, size=count)
        found.append(figure(*(array[chosen] for array in arrays)))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return Estimate(value=figure(*arrays), low=float(low), high=float(high))
