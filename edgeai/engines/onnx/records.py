"""Files with rows: CSV, TSV, JSON, JSONL and .npy, as rows of cells. What is wrong with one is a UsageError that names its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgeai.engines.onnx.batches import Place
from edgeai.errors import UsageError

__all__ = ["SUFFIXES", "Records", "read_records"]

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".npy")
DELIMITERS = ",;\t|"
MAX_FIELD = 16 << 20


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of a file: mappings from names, or lists in the order of the columns. `names` are those of a header, None without one."""

    place: Place
    names: tuple[str, ...] | None
    rows: list[Mapping[str, Any] | Sequence[Any]]
    matrix: Any = None


def read_records(path: Path, wanted: Sequence[str]) -> Records:
    """Return what is in the file PATH; WANTED are the columns that will be looked for, by which a delimiter is recognised."""
    place = Place(repr(str(path)))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise UsageError(f"the file {str(path)!r} {what}", hint="check its path")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Records(place, None, [], matrix=load_array(path))
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, place, wanted, "\t" if suffix == ".tsv" else None)
    if suffix == ".json":
        return _read_json(path, place)
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path, place)
    raise UsageError(f"{place} is no table by its name", hint=f"name a file that ends in {', '.join(SUFFIXES)}")


def load_array(path: Path) -> Any:
    """Return the array of numbers in the .npy file PATH; nothing is unpickled."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{str(path)!r} is not an array: {error}", hint="write it with numpy.save") from error
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{str(path)!r} is not one array", hint="write it with numpy.save")
    return found


def _text(path: Path, place: Place) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{place} is not UTF-8 text", hint=f"byte {error.start}: {error.reason}") from error
    except OSError as error:
        raise UsageError(f"{place} cannot be read: {error.strerror}", hint="check its permissions") from error
    if not text.strip():
        raise UsageError(f"{place} is empty", hint="give a file with rows")
    return text


def _read_csv(path: Path, place: Place, wanted: Sequence[str], delimiter: str | None) -> Records:
    lines = _text(path, place).splitlines(keepends=True)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    delimiter = delimiter or _delimiter(lines, set(wanted))
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    header: tuple[str, ...] | None = None
    rows: list[Mapping[str, Any] | Sequence[Any]] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = tuple(cell.strip() for cell in cells)
            elif len(cells) != len(header):
                raise UsageError(
                    f"{Place(place.name, len(rows) + 1)} (line {reader.line_num}) has {len(cells)} cells and the header {len(header)}",
                    hint="a row has one cell for each column; text with the separator in it stands in quotes",
                )
            else:
                rows.append(cells)
    except csv.Error as error:
        raise UsageError(f"{place}, line {reader.line_num}, is not CSV: {error}", hint="check its quotes") from error
    return Records(place, header, rows)


def _delimiter(lines: list[str], wanted: set[str]) -> str:
    """Return the separator by which the header has most of the columns that are WANTED, then most columns."""
    header = next(line for line in lines if line.strip())

    def score(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])]
        return len(wanted & set(cells)), len(cells)

    return max(DELIMITERS, key=score)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _read_json(path: Path, place: Place) -> Records:
    try:
        found = json.loads(_text(path, place), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}", hint="write a list of objects") from error
    return Records(place, None, list(_objects(found if isinstance(found, list) else [found], place)))


def _read_jsonl(path: Path, place: Place) -> Records:
    found = []
    for number, line in enumerate(_text(path, place).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line, parse_constant=_no_constant))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}, line {number}, is not JSON: {error}", hint="one object a line") from error
    return Records(place, None, list(_objects(found, place)))


def _objects(found: list[Any], place: Place) -> Iterator[Mapping[str, Any] | Sequence[Any]]:
    if found and all(isinstance(item, int | float) and not isinstance(item, bool) for item in found):
        found = [found]  # one row of numbers
    for row, item in enumerate(found, start=1):
        if not isinstance(item, dict | list):
            raise UsageError(
                f"{Place(place.name, row)} is {item!r:.60}, no row", hint="a row is an object, or a list of numbers"
            )
        yield item
