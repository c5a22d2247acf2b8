"""A user's .csv, .tsv or .jsonl → rows, and rows → columns of numbers and categories. Nothing is guessed for what is missing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeai.errors import RecipeError
from edgeai.training.settings import unknown_choice
from edgeai.training.tasks.examples import Column, Examples

__all__ = ["Table", "answers", "locate", "read_table", "series", "table", "texts"]

MOST_CATEGORIES = 100
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a file as texts, and the line of the file that each row begins in."""

    source: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str | None, setting: str) -> list[str]:
        """Return the cells of the column NAME, which SETTING names; raises RecipeError where there is none."""
        if name is None:
            raise RecipeError(
                f"the recipe has no {setting}, the name of a column",
                hint=f"the columns of {self.source!r}: {', '.join(self.names[:20])}",
            )
        if name not in self.names:
            raise unknown_choice(name, self.names, f"{setting} {name!r} is not a column of {self.source!r}")
        index = self.names.index(name)
        return [row[index] for row in self.rows]

    def bad(self, row: int, column: str, what: str, hint: str) -> RecipeError:
        """Return the error for the cell of ROW in COLUMN."""
        return RecipeError(f"line {self.lines[row]} of {self.source!r} {what} in column {column!r}", hint=hint)


def locate(source: str, folder: Path) -> Path:
    """Return the file or folder that SOURCE names, relative to FOLDER."""
    return folder / Path(source).expanduser()


def read_table(source: str, folder: Path, suffixes: Sequence[str]) -> Table:
    """Read the file SOURCE, whose ending is one of SUFFIXES; raises RecipeError, with the line where that is known."""
    path = locate(source, folder)
    if path.suffix.lower() not in suffixes or not path.is_file():
        what = "is not there" if not path.exists() else "is not a file that can be read here"
        raise RecipeError(f"data.source {source!r} {what}", hint=f"name a file with the ending {' or '.join(suffixes)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"{source!r} cannot be read: {reason}", hint="save it as UTF-8 text") from error
    if not text.strip():
        raise RecipeError(
            f"{source!r} is empty", hint="the first line names the columns, each other line is an example"
        )
    made = _json_lines(source, text) if path.suffix.lower() == ".jsonl" else _csv(source, text, path.suffix.lower())
    if not made.rows:
        raise RecipeError(f"{source!r} has a header and no rows", hint="each line after the first is an example")
    return made


def _csv(source: str, text: str, suffix: str) -> Table:
    header = text.lstrip("\r\n").splitlines()[0]
    delimiter = max(DELIMITERS[suffix], key=header.count)  # of equals the first: a comma
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[tuple[int, list[str]]] = []
    try:
        before = 1
        for cells in reader:
            if cells:  # an empty line has none
                found.append((before, [cell.strip() for cell in cells]))
            before = reader.line_num + 1
    except csv.Error as error:
        raise RecipeError(
            f"line {reader.line_num} of {source!r} is not CSV: {error}", hint="check the quotes"
        ) from error
    names = tuple(found[0][1])
    for name in names:
        if not name or names.count(name) > 1:
            raise RecipeError(
                f"the header of {source!r} has {'a column without a name' if not name else f'two columns {name!r}'}",
                hint="the first line gives each column a name of its own",
            )
    for line, cells in found[1:]:
        if len(cells) != len(names):
            raise RecipeError(
                f"line {line} of {source!r} has {len(cells)} cells, and the header {len(names)}",
                hint=f"the columns are split at {delimiter!r}; put text that contains it in quotes",
            )
    return Table(source, names, tuple(tuple(cells) for _, cells in found[1:]), tuple(line for line, _ in found[1:]))


def _json_lines(source: str, text: str) -> Table:
    objects: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"line {number} of {source!r} is not JSON: {error}", hint="one object a line") from error
        if not isinstance(value, dict):
            raise RecipeError(f"line {number} of {source!r} is not an object", hint='each line is {"name": value, …}')
        cells = {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in value.items()}
        objects.append((number, cells))
    names = tuple(objects[0][1])
    for number, cells in objects:
        for name in names:
            if name not in cells or value_is_missing(cells[name]):
                raise RecipeError(f"line {number} of {source!r} has no {name!r}", hint="each line has the same names")
    rows = tuple(tuple(cells[name] for name in names) for _, cells in objects)
    return Table(source, names, rows, tuple(number for number, _ in objects))


def value_is_missing(cell: str) -> bool:
    """Return whether CELL is JSON's null."""
    return cell == "null"


def answers(source: Table, target: str | None, *, classes: bool) -> Examples:
    """Return the answers in the column TARGET, as classes or as values, without inputs."""
    cells = source.column(target, "data.target")
    assert target is not None  # noqa: S101 - `column` has checked it
    for row, cell in enumerate(cells):
        if not cell:
            raise source.bad(row, target, "has nothing", "every row needs an answer: fill it in, or take the row out")
    if not classes:
        values = _numbers(source, target, cells)
        if len(set(cells)) < 2:
            raise RecipeError(
                f"{source.source!r} has the same number in every row of {target!r}", hint="there is nothing to learn"
            )
        return Examples(source=source.source, values=values[:, None], targets=(target,))
    labels = sorted(set(cells), key=_label_order)
    index = {label: number for number, label in enumerate(labels)}
    return Examples(
        source=source.source, classes=np.array([index[cell] for cell in cells], dtype=np.int64), labels=tuple(labels)
    )


def _label_order(label: str) -> tuple[float, str]:
    """Return what labels are sorted by: numbers by size, before texts."""
    number = _number(label)
    return (math.inf if number is None else number, label)


def table(source: Table, *, target: str | None, ignore: Iterable[str], categories: Iterable[str]) -> tuple[Column, ...]:
    """Return the columns of SOURCE that are inputs, each of numbers or of categories."""
    chosen = _inputs(source, target, ignore)
    for name in categories:
        source.column(name, "data.categories")
    forced = set(categories)
    return tuple(_column(source, name, category=name in forced) for name in chosen)


def series(source: Table, *, target: str | None, ignore: Iterable[str], channels: int) -> tuple[Column, ...]:
    """Return the columns of SOURCE that are steps of a series, all numbers, as many for each of CHANNELS."""
    chosen = _inputs(source, target, ignore)
    if len(chosen) % channels:
        raise RecipeError(
            f"data.channels {channels!r} is not possible: {source.source!r} has {len(chosen)} columns of numbers",
            hint="their number must be channels times steps; name what is no step in data.ignore",
        )
    return tuple(Column(name, _numbers(source, name, source.column(name, "data"))) for name in chosen)


def _inputs(source: Table, target: str | None, ignore: Iterable[str]) -> list[str]:
    left_out = {target, *ignore}
    for name in ignore:
        source.column(name, "data.ignore")
    chosen = [name for name in source.names if name not in left_out]
    if not chosen:
        raise RecipeError(
            f"{source.source!r} has no column but the target", hint="give at least one column to learn from"
        )
    return chosen


def _column(source: Table, name: str, *, category: bool) -> Column:
    cells = source.column(name, "data")
    for row, cell in enumerate(cells):
        if not cell:
            raise source.bad(row, name, "has nothing", f'fill it in, take the row out, or set data.ignore = ["{name}"]')
    if not category and 2 * sum(_number(cell) is not None for cell in cells) >= len(cells):
        return Column(name, _numbers(source, name, cells))
    different = len(set(cells))
    if different > MOST_CATEGORIES:
        raise RecipeError(
            f"the column {name!r} of {source.source!r} has {different} different texts, which is neither number nor category",
            hint=f'leave it out: data.ignore = ["{name}"]; texts are for a text-encoder',
        )
    return Column(name, None, tuple(cells))


def _numbers(source: Table, name: str, cells: Sequence[str]) -> npt.NDArray[np.float64]:
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        number = _number(cell)
        if number is None or not math.isfinite(number):
            what = f"has {cell!r}, which is no number," if cell else "has nothing"
            hint = f'fill it in, take the row out, or set data.ignore = ["{name}"]'
            raise source.bad(row, name, what, hint)
        values[row] = number
    return values


def _number(cell: str) -> float | None:
    """Return CELL as a number, NaN included; None for a text. Python's `1_000` is a text in everybody else's files."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def texts(source: Table, name: str | None) -> tuple[str, ...]:
    """Return the texts in the column NAME of SOURCE; raises RecipeError for a row without one."""
    cells = source.column(name, "data.text")
    assert name is not None  # noqa: S101 - `column` has checked it
    for row, cell in enumerate(cells):
        if not cell.strip():
            raise source.bad(row, name, "has no text", "write one, or take the row out")
    return tuple(cells)
