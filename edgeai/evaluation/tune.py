"""Find the thread counts that are the fastest here for one kind of model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeai.device import CPU
from edgeai.evaluation.bench import Case, Native
from edgeai.evaluation.energy import Meter
from edgeai.tuning import Tuned
from edgeai.types import Progress

__all__ = ["Trial", "best", "candidates", "tune"]

ANSWER, PROMPT = 32, 256  # tokens of one run: about a quarter of a second each with a model of 0.1 B parameters
ROUNDS = 5
WORTH = 1.02
"""More threads must be this much faster than fewer: they cost energy, and what else runs here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Tok/s with so many threads: the median of the rounds."""

    kind: Literal["pp", "tg"]
    threads: int
    tok_s: float


def candidates(cpu: CPU) -> list[int]:
    """Return the thread counts to try, rising: all of them up to 8, and on larger machines those where something changes."""
    most = max(1, cpu.usable)
    if most <= 8:
        return list(range(1, most + 1))
    steps = {1, 2, 4, 6, 8, most // 2, most * 3 // 4, cpu.threads, cpu.threads_batch, cpu.threads - 1, most}
    return sorted(count for count in steps if 1 <= count <= most)


def tune(native: Native, cpu: CPU, *, progress: Progress) -> tuple[Tuned, list[Trial]]:
    """Measure each candidate for decoding and for prompts, in turns so that what else happens here meets all alike."""
    counts = candidates(cpu)
    trials: list[Trial] = []
    for kind, size in (("tg", ANSWER), ("pp", PROMPT)):
        trials += _trials(native, kind, size, counts, progress)  # type: ignore[arg-type]
    decode, batch = (best([trial for trial in trials if trial.kind == kind]) for kind in ("tg", "pp"))
    return Tuned(threads=decode, threads_batch=batch), trials


def _trials(
    native: Native, kind: Literal["pp", "tg"], size: int, counts: Sequence[int], progress: Progress
) -> list[Trial]:
    found: dict[int, list[float]] = {count: [] for count in counts}
    runs, what = ROUNDS * len(counts), "decoding" if kind == "tg" else "reading prompts"
    size = min(size, native.context)
    for done in range(runs):
        count = counts[done % len(counts)]
        progress(f"tuning threads for {what}", done, runs)
        case = Case(kind=kind, size=size, threads=count)
        found[count].append(native.measure(case, 1, Meter()).mean)
    progress(f"tuning threads for {what}", runs, runs)
    return [Trial(kind=kind, threads=count, tok_s=statistics.median(values)) for count, values in found.items()]


def best(trials: Sequence[Trial], worth: float = WORTH) -> int:
    """Return the fewest threads that nothing beats by more than the factor WORTH."""
    fastest = max(trial.tok_s for trial in trials)
    return min(trial.threads for trial in trials if trial.tok_s * worth >= fastest)
