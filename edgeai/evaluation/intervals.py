"""95 % confidence intervals for measures on text, whose neighbouring positions are not independent.

The unit is a block of consecutive positions, not a position. A mean over positions is a ratio of block totals, with the variance of a
ratio estimator of clusters (Cochran, Sampling Techniques, 3rd ed. 1977, sections 6.3 and 9.2; for equal blocks these are the batch
means of simulation) and Student's t with as many degrees of freedom as blocks less one. A share gets Wilson's score interval (1927),
the number of positions divided by the design effect of the blocks (Kish 1965, section 8.2), so that 100 % has an interval too. A
quantile gets the percentile interval of a bootstrap over blocks (Künsch, Annals of Statistics 17, 1989). A rank correlation of pairs
gets the jackknife over the things that are paired (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

__all__ = ["Interval", "mean_interval", "quantile_interval", "share_interval", "spearman_interval", "t_quantile"]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
RESAMPLES = 1000
SEED = 20240229


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured value and the ends of its 95 % interval; both ends are infinite where there is only one block."""

    value: float
    low: float
    high: float


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % point of Student's t with FREEDOM degrees of freedom.

    Exact for 1 and 2; otherwise the expansion of Abramowitz and Stegun, 26.7.5, within 0.2 % from 3 on.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))


def standard_error(values: F64, blocks: Ints) -> tuple[float, int]:
    """Return the standard error of the mean of VALUES, (positions,), and the number of blocks; BLOCKS is each position's block.

    With B blocks of n_b positions and totals s_b: variance = B / (B - 1) · Σ(s_b - mean · n_b)² / (Σ n_b)².
    """
    import numpy as np

    _, place = np.unique(blocks, return_inverse=True)
    sizes, totals = np.bincount(place), np.bincount(place, values)
    count = len(sizes)
    if count < 2:
        return math.inf, count
    rest = totals - values.mean() * sizes
    return float(np.sqrt(count / (count - 1) * (rest**2).sum()) / len(values)), count


def mean_interval(values: F64, blocks: Ints) -> Interval:
    """Return the mean of VALUES, (positions,), and its interval; of no positions nothing is known."""
    if not len(values):
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    error, count = standard_error(values, blocks)
    mean = float(values.mean())
    half = error * t_quantile(count - 1) if count > 1 else math.inf
    return Interval(value=mean, low=mean - half, high=mean + half)


def share_interval(hits: F64, blocks: Ints) -> Interval:
    """Return the share of ones in HITS, (positions,) of 0 and 1, and its interval."""
    share, count = float(hits.mean()), float(len(hits))
    error, units = standard_error(hits, blocks)
    if units < 2:
        return Interval(value=share, low=0.0, high=1.0)
    plain = share * (1 - share) / count
    if plain > 0:
        count /= max(1.0, error**2 / plain)
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def quantile_interval(values: F64, blocks: Ints, part: float) -> Interval:
    """Return the PART quantile of VALUES, (positions,), and its interval; the draws are the same every time."""
    import numpy as np

    value = float(np.quantile(values, part))
    parts = [values[blocks == block] for block in np.unique(blocks)]
    if len(parts) < 2:
        return Interval(value=value, low=-math.inf, high=math.inf)
    draws = np.random.default_rng(SEED).integers(0, len(parts), (RESAMPLES, len(parts)))
    found = [np.quantile(np.concatenate([parts[index] for index in row]), part) for row in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))


def spearman_interval(reference: F64, candidate: F64) -> Interval:
    """Return Spearman's rank correlation of the similarities of all pairs of two (things, things) matrices, and its interval."""
    import numpy as np

    count = len(reference)

    def correlation(kept: Any) -> float:
        rows, columns = np.triu_indices(len(kept), 1)
        left, right = (ranks(table[np.ix_(kept, kept)][rows, columns]) for table in (reference, candidate))
        spread = left.std() * right.std()
        return float(((left - left.mean()) * (right - right.mean())).mean() / spread) if spread else 0.0

    everything = np.arange(count)
    value = correlation(everything)
    without = np.array([correlation(np.delete(everything, index)) for index in range(count)])
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    half = error * t_quantile(count - 1)
    return Interval(value=value, low=max(-1.0, value - half), high=min(1.0, value + half))


def ranks(values: F64) -> F64:
    """Return the rank of each value, equal ones sharing the mean of theirs."""
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: F64 = (last - (counts - 1) / 2)[place]
    return result
