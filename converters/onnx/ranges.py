"""Which numbers the values inside a graph take on calibration data: the ranges that a static quantization maps to 8 bits.

The graph runs once for the extremes and, for `entropy` and `percentile`, once more for histograms between them, a few rows at a time:
what is kept is two numbers and one histogram for each value, whatever the size of the data. onnxruntime's own calibrators keep every
activation of all data (onnxruntime #10503, #21979), and their entropy search has a single candidate with their default of as many
bins as levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converters.errors import ConvertError, WrongChoice
from converters.onnx.checks import open_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Counts = npt.NDArray[np.int64]

__all__ = ["METHODS", "Method", "calibration_arrays", "chunks", "entropy_range", "measure", "percentile_range"]

Method = Literal["minmax", "entropy", "percentile"]
METHODS: Mapping[str, str] = {
    "minmax": "from the least to the largest value: nothing is cut",
    "entropy": "cut where the distribution loses least information (Migacz, 8-bit inference with TensorRT, GTC 2017); it needs some ten "
    "thousand numbers of each value, and is the worst of the three with some hundred rows of a table",
    "percentile": "cut the same small share at both ends",
}
BINS = 8192
ENTROPY_BINS = 2048
STEP = 16
"""Bins between two candidates of the entropy search."""
LEVELS = 128
"""On each side of zero; a value that is never negative has all 256 on one side."""
CHUNK_BYTES = 64 << 20
"""About what the values inside the graph take at a time."""
MOST_ROWS = 256


@dataclass(slots=True)
class Seen:
    """What has been seen of one value inside the graph."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Counts | None = None
    finite: bool = True

    def extend(self, values: Array) -> None:
        """Take the extremes of VALUES in."""
        low, high = float(values.min()), float(values.max())
        self.finite &= low > float("-inf") and high < float("inf")  # neither is so for NaN
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, values: Array, *, sizes: bool) -> None:
        """Add VALUES, or their SIZES without the sign, to the histogram."""
        import numpy as np

        low, high = (0.0, max(abs(self.low), abs(self.high))) if sizes else (self.low, self.high)
        width = (high - low) or 1.0
        flat = np.abs(values.reshape(-1)) if sizes else values.reshape(-1)
        place = ((flat.astype(np.float64) - low) * (BINS / width)).astype(np.int64)
        found = np.bincount(np.clip(place, 0, BINS - 1), minlength=BINS)
        self.counts = found if self.counts is None else self.counts + found


def measure(
    path: Path, names: Sequence[str], data: Mapping[str, Array], method: Method, percentile: float
) -> dict[str, tuple[float, float]]:
    """Return value in the graph PATH → range, for the values NAMES, all of which are outputs of the graph.

    One that is not always finite, as a mask of attention is, has no range. Raises ConvertError where an input is such a one.
    """
    session = open_session(path)
    made = {place.name for place in session.get_outputs()}
    wanted = [name for name in names if name in made]
    direct = [name for name in names if name in data]
    seen = {name: Seen() for name in (*wanted, *direct)}
    passes = ("extremes",) if method == "minmax" else ("extremes", "histogram")
    for turn in passes:
        for feed in chunks(session, data):
            values = dict(zip(wanted, session.run(wanted, feed), strict=True)) if wanted else {}
            for name, found in (*values.items(), *((name, feed[name]) for name in direct)):
                if turn == "extremes" and found.size:
                    seen[name].extend(found)
                elif found.size and seen[name].finite:
                    seen[name].count(found, sizes=method == "entropy")
        if broken := next((name for name in direct if not seen[name].finite), None):
            raise ConvertError(f"the calibration data for {broken!r} has NaN or infinities", hint="take those rows out")

    def chosen(item: Seen) -> tuple[float, float]:
        if method == "percentile":
            return percentile_range(item, percentile)
        return entropy_range(item) if method == "entropy" else (item.low, item.high)

    return {name: chosen(item) for name, item in seen.items() if item.finite and item.low <= item.high}


def calibration_arrays(session: Any, given: Mapping[str, Array] | Array) -> dict[str, Array]:
    """Return the calibration data by graph input, as the graph's types. Raises WrongChoice where they do not fit it."""
    import numpy as np

    places = {place.name: place for place in session.get_inputs()}
    if isinstance(given, np.ndarray):
        if len(places) != 1:
            raise WrongChoice(
                f"one array for {len(places)} inputs", hint=f"give a dict with the keys {', '.join(places)}"
            )
        given = {next(iter(places)): given}
    if set(given) != set(places):
        raise WrongChoice(
            f"the calibration data has {', '.join(map(repr, given))}", hint=f"the graph takes {', '.join(places)}"
        )
    sizes = {name: len(values) for name, values in given.items()}
    if len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise WrongChoice(f"the calibration data has {sizes!r} rows", hint="as many for each input, and at least one")
    for name, values in given.items():
        shape = places[name].shape
        fits = len(shape) == values.ndim and all(
            not isinstance(size, int) or size == values.shape[axis] for axis, size in enumerate(shape) if axis
        )
        if not fits:
            raise WrongChoice(f"the calibration data for {name!r} has the shape {values.shape}, and the graph {shape}")
    return dict(given)


TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}


def chunks(session: Any, data: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Give the DATA in rows that fit: one for a start, then as many as the outputs of the graph may take, or as the graph fixes."""
    import numpy as np

    total = len(next(iter(data.values())))
    kinds = {place.name: TYPES.get(place.type, "float32") for place in session.get_inputs()}
    fixed = next((int(place.shape[0]) for place in session.get_inputs() if isinstance(place.shape[0], int)), None)
    if fixed and total < fixed:
        raise WrongChoice(f"{total} rows of calibration data, and the graph takes {fixed} at a time")

    def rows(start: int, count: int) -> dict[str, Array]:
        return {
            name: np.ascontiguousarray(values[start : start + count], dtype=kinds[name])
            for name, values in data.items()
        }

    size = fixed or rows_at_a_time(session, rows(0, 1))
    for start in range(0, total - (total % fixed if fixed else 0), size):
        yield rows(start, size)


def rows_at_a_time(session: Any, row: Mapping[str, Array]) -> int:
    """Return how many rows like ROW may run together."""
    taken = sum(found.nbytes for found in session.run(None, row))
    return int(max(1, min(MOST_ROWS, CHUNK_BYTES // max(1, taken))))


def percentile_range(seen: Seen, percentile: float) -> tuple[float, float]:
    """Return the range that holds PERCENTILE % of the values, the rest cut at both ends alike; to a bin, of which there are 8192."""
    import numpy as np

    counts = seen.counts
    assert counts is not None  # noqa: S101 - the second pass has counted
    share = np.cumsum(counts) / counts.sum()
    cut = (100.0 - percentile) / 200.0
    width = (seen.high - seen.low) / BINS
    first, last = int(np.searchsorted(share, cut, side="right")), int(np.searchsorted(share, 1.0 - cut))
    return seen.low + first * width, min(seen.high, seen.low + (last + 1) * width)


def entropy_range(seen: Seen) -> tuple[float, float]:
    """Return the range, alike on both sides of zero, whose 8-bit form is nearest to the distribution by Kullback-Leibler divergence."""
    import numpy as np

    assert seen.counts is not None  # noqa: S101 - the second pass has counted
    counts = seen.counts.reshape(ENTROPY_BINS, -1).sum(1).astype(np.float64)
    # Exact zeros, of which a ReLU makes many, have an 8-bit form in any range: they say nothing about the cut.
    counts[0] = counts[1]
    levels = 2 * LEVELS if seen.low >= 0 else LEVELS
    top = max(abs(seen.low), abs(seen.high))
    cuts = range(levels, ENTROPY_BINS + 1, STEP)
    best = min(cuts, key=lambda cut: (divergence(counts, cut, levels), cut)) if counts.sum() else ENTROPY_BINS
    limit = top * best / ENTROPY_BINS
    return max(seen.low, -limit), min(seen.high, limit)


def divergence(counts: npt.NDArray[np.float64], cut: int, levels: int) -> float:
    """Return how much of the distribution COUNTS, (bins,), is lost when what lies beyond CUT is clipped and the rest becomes LEVELS."""
    import numpy as np

    kept = counts[:cut]
    if not kept.sum():
        return float("inf")
    clipped = kept.copy()
    clipped[-1] += counts[cut:].sum()
    starts = np.arange(levels) * cut // levels
    there = kept > 0
    shares = np.add.reduceat(kept, starts) / np.maximum(1, np.add.reduceat(there.astype(np.int64), starts))
    coarse = np.where(there, np.repeat(shares, np.diff(np.append(starts, cut))), 0.0)
    left, right = clipped / clipped.sum(), coarse / coarse.sum()
    used = left > 0
    # A bin that only clipping has filled has no share in the coarse distribution: count it as one of the least there is.
    ratio = left[used] / np.maximum(right[used], right[right > 0].min() * 1e-3)
    return float((left[used] * np.log(ratio)).sum())
