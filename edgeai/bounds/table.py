"""The files of a search side by side, and the types of the chosen one, as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from edgeai.bounds.layers import layer_map, runs
from edgeai.bounds.outcome import Outcome, Point
from edgeai.evaluation.intervals import Interval

__all__ = ["Row", "Unit", "cells", "interval_text", "rows", "text", "type_map", "unit_of"]

WIDTH = 110
"""Characters of a line of `type_map`."""
NOTHING = "-"
"""What stands where nothing was measured or predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One file: a preset, the chosen one, or one that was measured on the way. `predicted` is the measure before it was measured."""

    name: str
    nbytes: int
    bpw: float
    quality: Interval | None
    top1: Interval | None
    p999: float | None
    predicted: float | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A decimal unit of size, as disks and model hubs have them, and how many decimals of it are shown."""

    name: str
    nbytes: int
    decimals: int = 1

    def text(self, nbytes: int) -> str:
        """Return NBYTES in this unit: 89.9 MB."""
        return f"{nbytes / self.nbytes:.{self.decimals}f} {self.name}"


UNITS = (
    Unit(name="B", nbytes=1, decimals=0),
    Unit(name="kB", nbytes=10**3),
    Unit(name="MB", nbytes=10**6),
    Unit(name="GB", nbytes=10**9, decimals=2),
    Unit(name="TB", nbytes=10**12, decimals=2),
)


def unit_of(nbytes: int) -> Unit:
    """Return the unit that NBYTES reads well in."""
    return max((unit for unit in UNITS if nbytes >= unit.nbytes), key=lambda unit: unit.nbytes, default=UNITS[0])


def rows(outcome: Outcome, *, rounds: bool = False) -> list[Row]:
    """Return the presets and the chosen file, with ROUNDS also what was measured on the way, from the smallest to the largest."""

    def row(point: Point, *, chosen: bool = False) -> Row:
        return Row(
            name=point.name,
            nbytes=point.nbytes,
            bpw=point.bpw,
            quality=point.quality,
            top1=point.top1,
            p999=point.p999,
            predicted=point.predicted,
            chosen=chosen,
        )

    others = [*outcome.presets, *(outcome.rounds if rounds else ())]
    found = [row(outcome.chosen, chosen=True), *map(row, others)]
    return sorted(found, key=lambda item: (item.nbytes, item.chosen, item.name))


def cells(outcome: Outcome, *, rounds: bool = False) -> list[list[str]]:
    """Return the table as text: its heads, then a line for each file. Columns that say nothing of any file are left out."""
    found = rows(outcome, rounds=rounds)
    unit = unit_of(outcome.chosen.nbytes)
    heads = ["file", "size", "bits per weight", outcome.measure, "top-1", "p99.9", "predicted"]
    lines = [
        [
            row.name,
            unit.text(row.nbytes),
            f"{row.bpw:.2f}",
            interval_text(row.quality),
            share_text(row.top1, ends=outcome.min_top1 is not None),
            number_text(row.p999),
            number_text(row.predicted),
        ]
        for row in found
    ]
    kept = [index for index in range(len(heads)) if any(line[index] != NOTHING for line in lines)]
    return [[line[index] for index in kept] for line in [heads, *lines]]


def text(outcome: Outcome, *, rounds: bool = False) -> str:
    """Return the table for a terminal; an arrow marks the chosen file."""
    marks = ["  ", *("→ " if row.chosen else "  " for row in rows(outcome, rounds=rounds))]
    lines = cells(outcome, rounds=rounds)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        mark
        + "  ".join(
            [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for mark, line in zip(marks, lines, strict=True)
    )


def type_map(outcome: Outcome) -> str:
    """Return the types of the chosen file, a line for each part: `ffn_down  0-3 q6_k · 4-11 q4_k`."""
    found = layer_map(outcome.kinds)
    lines = [(name, [kind]) for name, kind in found.outside.items()]
    lines += [(part.name, [str(run) for run in runs(part)]) for part in found.parts]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(wrapped(name.ljust(width), words) for name, words in lines)


def wrapped(name: str, words: Sequence[str]) -> str:
    """Return NAME and WORDS with dots between them on lines of at most WIDTH characters."""
    joined = " · ".join(word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)
    lines = textwrap.wrap(joined, WIDTH - len(name) - 2, break_long_words=False, break_on_hyphens=False)
    indent = "\n" + " " * (len(name) + 2)
    return f"{name}  {indent.join(lines)}".replace("\N{NO-BREAK SPACE}", " ")


def interval_text(value: Interval | None) -> str:
    """Return a measured value with its 95 % interval: 0.0189 (0.0171 to 0.0207)."""
    if value is None:
        return NOTHING
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return f"{value.value:.3g} (no interval)"
    return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"


def share_text(value: Interval | None, *, ends: bool) -> str:
    """Return a share in per cent; ENDS adds those of its interval."""
    if value is None:
        return NOTHING
    return f"{value.value:.1%}" + (f" ({value.low:.1%} to {value.high:.1%})" if ends else "")


def number_text(value: float | None) -> str:
    """Return a number with three digits that count."""
    return NOTHING if value is None else f"{value:.3g}"
