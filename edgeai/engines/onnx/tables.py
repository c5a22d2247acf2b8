"""Rows and series as a model takes them: named columns in any order, numbers scaled, categories as one number of 0 or 1 each."""

from __future__ import annotations

import contextvars
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.engines.onnx.batches import Batch, Fill, Place, never
from edgeai.engines.onnx.records import Records, read_records
from edgeai.engines.onnx.schema import Column, Series, Table
from edgeai.errors import UsageError
from edgeai.types import Notice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    F64 = npt.NDArray[np.float64]

__all__ = ["Tables"]

DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
LARGE = 1e76
"""If the squares of some numbers have a sum below this, each of them is in float32."""
NUMBERS = frozenset({float, int})
NAMED = 5
"""Columns that a message names; of more it says how many."""


class Tables:
    """Makes arrays of files with rows, mappings, lists and numpy arrays, as TABLE says, a table or series."""

    def __init__(self, table: Table | Series, *, source: str = "item") -> None:
        import numpy as np

        self._table, self._source = table, source
        self._columns = _each(table)
        self._names = tuple(column.name for column in self._columns)
        self._plain = not any(column.values for column in self._columns)
        self._width = sum(column.width for column in self._columns)
        self._stacked = isinstance(table, Series) and len(table.columns) < len(self._columns)
        numbers = [(column.mean, column.std) for column in self._columns for _ in range(column.width)]
        self._mean, self._std = (np.array(part, dtype=np.float64) for part in zip(*numbers, strict=True))
        self._categories = {
            column.name: {value: at for at, value in enumerate(column.values)} for column in self._columns
        }
        self.item_shape: tuple[int, ...] = (
            (table.channels, table.length) if isinstance(table, Series) else (self._width,)
        )
        self.dtype = np.dtype(np.float32)

    @property
    def names(self) -> tuple[str, ...]:
        """The input of the graph."""
        return (self._table.name,)

    def filler(self, into: F32) -> Fill:
        """Return what writes a numpy row of finite floats to INTO, or a dict with the model's columns and numbers in them."""
        import numpy as np

        if not self._plain:
            return never
        target, exact, mean, std = into.reshape(-1), np.empty(self._width), self._mean, self._std
        subtract, divide, array, shapes = np.subtract, np.divide, np.ndarray, (self.item_shape, (self._width,))

        pick = itemgetter(*self._names) if isinstance(self._table, Table) and self._width > 1 else None

        def fill(item: Any) -> bool:
            if pick is not None and type(item) is dict and len(item) == len(exact):
                try:
                    cells = pick(item)
                    if not NUMBERS.issuperset(map(type, cells)):
                        return False
                    exact[:] = cells
                except (KeyError, OverflowError):
                    return False
                item = exact
            elif type(item) is not array or item.dtype.char not in "fd" or item.shape not in shapes:
                return False
            subtract(item if item.ndim == 1 else item.reshape(-1), mean, exact)
            divide(exact, std, exact)
            # One product tells that all are finite and in the range of float32; NaN is not below anything.
            if not exact.dot(exact) < LARGE:
                return False
            target[:] = exact
            return True

        # In a context where numpy does not warn of an overflow in that product: `errstate` would take as long as all of it.
        context = contextvars.copy_context()
        context.run(np.seterr, all="ignore")
        return partial(context.run, fill)  # type: ignore[call-arg]  # the item comes with the call

    def batches(self, items: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield ITEMS in batches of at most ROWS. All rows are read, and checked, before the first batch."""
        blocks = list(self._blocks(items))
        for array, notices in blocks:
            for at in range(0, len(array), rows):
                part = array[at : at + rows].reshape(-1, *self.item_shape)
                yield Batch({self._table.name: part}, len(part), (notices,) * len(part))

    # ---- from what a user gives to numbers

    def _blocks(self, items: Sequence[Any]) -> Iterator[tuple[F32, tuple[Notice, ...]]]:
        import numpy as np

        array: Any = items
        if isinstance(array, np.ndarray) and array.ndim == len(self.item_shape) + 1:
            yield self._scaled(self._matrix(array, Place("the array")), Place("the array")), ()
            return
        loose: list[Any] = []  # rows that are given as such, together
        first = 0
        for at, item in enumerate(items):
            if isinstance(item, str | os.PathLike):
                if loose:
                    yield self._loose(loose, first, len(items))
                yield self._file(Path(os.fsdecode(item)))
                loose, first = [], at + 1
            else:
                loose.append(item)
        if loose:
            yield self._loose(loose, first, len(items))

    def _loose(self, rows: list[Any], first: int, of: int) -> tuple[F32, tuple[Notice, ...]]:
        import numpy as np

        names = [
            f"{self._source} {first + at + 1} of {of}" if of > 1 else f"the {self._source}" for at in range(len(rows))
        ]
        places = [Place(name) for name in names]
        found = np.empty((len(rows), self._width))
        extra: dict[str, None] = {}
        for at, (row, place) in enumerate(zip(rows, places, strict=True)):
            if isinstance(row, np.ndarray):
                found[at] = self._matrix(row[None], place)[0]
            elif isinstance(row, Mapping):
                extra |= dict.fromkeys(str(key) for key in row if key not in self._categories)
                found[at] = self._row([self._cell(row, name, place) for name in self._names], place)
            elif isinstance(row, list | tuple):
                found[at] = self._row(_flat(row), place)
            else:
                raise UsageError(
                    f"{place} is {row!r:.60}, no row",
                    hint="give dicts, lists of cells, numpy arrays, or paths of files",
                )
        return self._scaled(found, *places), self._ignored(f"the {self._source}s", extra)

    def _file(self, path: Path) -> tuple[F32, tuple[Notice, ...]]:
        import numpy as np

        records = read_records(path, self._names)
        place = records.place
        if records.matrix is not None:
            return self._scaled(self._matrix(_several(records.matrix, self.item_shape), place), place), ()
        if self._stacked and records.names is not None:
            return self._one_series(records)
        order, extra = self._order(records)
        found = np.empty((len(records.rows), self._width))
        for at, row in enumerate(records.rows):
            here = Place(place.name, at + 1)
            if isinstance(row, Mapping):
                extra |= dict.fromkeys(key for key in row if key not in self._categories)
                cells = [self._cell(row, name, here) for name in self._names]
            else:
                cells = _flat(row) if order is None else [row[at] for at in order]
            found[at] = self._row(cells, here)
        return self._scaled(found, place), self._ignored(place.name, extra)

    def _one_series(self, records: Records) -> tuple[F32, tuple[Notice, ...]]:
        """Return the one series in a file with a column for each channel and a row for each point in time."""
        import numpy as np

        assert isinstance(self._table, Series)  # noqa: S101 - only a series has this form
        table = self._table
        single = Tables(Table(name=table.name, columns=tuple(Column(name=item.name) for item in table.columns)))
        order, extra = single._order(records)
        if len(records.rows) != table.length:
            raise UsageError(
                f"{records.place} has {len(records.rows)} rows, and a series of this model {table.length} points",
                hint="give as many rows as the model was trained with",
            )
        rows = [
            single._row([row[at] for at in order or ()], Place(records.place.name, number))  # type: ignore[index]
            for number, row in enumerate(records.rows, start=1)
        ]
        found = np.array(rows).T.reshape(1, -1)
        return self._scaled(found, records.place), self._ignored(records.place.name, extra)

    def _order(self, records: Records) -> tuple[list[int] | None, dict[str, None]]:
        """Return where in a row each column is, and the columns that are not wanted. Raises UsageError for one that is missing."""
        if records.names is None:
            return None, {}
        names = records.names
        if not set(names) & set(self._names) and all(_is_number(name) for name in names if name):
            raise UsageError(
                f"{records.place} has no header: its first line is {', '.join(names)!r:.60}",
                hint=f"the first line names the columns: {', '.join(self._names[:NAMED])}…",
            )
        missing = [name for name in self._names if name not in names]
        extra = [name for name in names if name not in self._categories]
        if missing:
            raise self._missing(records.place, missing, extra)
        for name in self._names:
            if names.count(name) > 1:
                raise UsageError(
                    f"{Place(records.place.name, None, name)} is there twice", hint="leave one of them out"
                )
        return [names.index(name) for name in self._names], dict.fromkeys(extra)

    def _missing(self, place: Place, missing: list[str], extra: Iterable[str]) -> UsageError:
        shown = ", ".join(repr(name) for name in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        close = [(name, match[0]) for name in missing if (match := difflib.get_close_matches(name, list(extra), n=1))]
        hint = f"did you mean {close[0][0]!r} where it says {close[0][1]!r}?" if close else None
        word = "columns" if len(missing) > 1 else "column"
        return UsageError(
            f"{place} lacks the {word} {shown}{more}",
            hint=hint or f"the model reads {', '.join(self._names[:NAMED])}{'…' * (len(self._names) > NAMED)}",
        )

    def _ignored(self, where: str, extra: Mapping[str, None]) -> tuple[Notice, ...]:
        if not extra:
            return ()
        shown = ", ".join(repr(name) for name in list(extra)[:NAMED])
        more = f" and {len(extra) - NAMED} more" if len(extra) > NAMED else ""
        message = f"the model reads nothing of {shown}{more} in {where.removeprefix('the ')}"
        return (Notice(code="ignored-columns", message=message),)

    def _cell(self, row: Mapping[str, Any], name: str, place: Place) -> Any:
        try:
            return row[name]
        except KeyError:
            missing = [name for name in self._names if name not in row]
            raise self._missing(place, missing, [str(key) for key in row if key not in self._categories]) from None

    def _row(self, cells: Sequence[Any], place: Place) -> list[float]:
        if len(cells) != len(self._columns):
            raise UsageError(
                f"{place} has {len(cells)} cells, and the model reads {len(self._columns)} columns",
                hint="give one cell for each column, or a dict with their names",
            )
        found: list[float] = []
        for column, cell in zip(self._columns, cells, strict=True):
            if column.values:
                hot = [0.0] * len(column.values)
                hot[self._category(column, cell, place)] = 1.0
                found += hot
            else:
                found.append(_number(cell, Place(place.name, place.row, column.name)))
        return found

    def _category(self, column: Column, cell: Any, place: Place) -> int:
        known = self._categories[column.name]
        text = str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell
        at = known.get(text) if isinstance(text, str) else None
        if at is None and isinstance(text, str):
            at = known.get(text.strip())
        if at is not None:
            return at
        close = difflib.get_close_matches(str(cell), column.values, n=1)
        values = ", ".join(column.values[:NAMED])
        raise UsageError(
            f"{Place(place.name, place.row, column.name)} has the unknown value {cell!r:.60}",
            hint=f"did you mean {close[0]!r}?" if close else f"it may be {values}{'…' * (len(column.values) > NAMED)}",
        )

    def _matrix(self, array: Any, place: Place) -> F64:
        """Return an array (rows, …) of numbers as (rows, width) float64. Raises UsageError for other shapes, types, and for categories."""
        import numpy as np

        if not self._plain:
            names = [column.name for column in self._columns if column.values]
            raise UsageError(
                f"{place} is an array of numbers, and {names[0]!r} is a column of categories",
                hint="give dicts, or a file",
            )
        if array.dtype.kind not in "fiub":
            raise UsageError(f"{place} is an array of {array.dtype}, not of numbers", hint="give an array of float32")
        if array.ndim < 2 or array.shape[1:] not in (self.item_shape, (self._width,)):
            raise UsageError(
                f"{place} has the shape {array.shape[1:]} where the model reads {self.item_shape}",
                hint="give the columns in the order of the model, or dicts with their names",
            )
        return array.reshape(len(array), self._width).astype(np.float64)  # type: ignore[no-any-return]

    def _scaled(self, found: F64, *places: Place) -> F32:
        """Return FOUND as the graph takes it. Raises UsageError at the first number that is not finite, or not in float32."""
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((found - self._mean) / self._std).astype(np.float32)
        wrong = np.argwhere(~np.isfinite(scaled))
        if len(wrong):
            row, at = wrong[0]
            ends = np.cumsum([column.width for column in self._columns])
            name = self._names[int(np.searchsorted(ends, at, side="right"))]
            single = len(places) > 1 or (len(places) == 1 and places[0].name.startswith(f"the {self._source}"))
            here = Place(places[row if len(places) > 1 else 0].name, None if single else int(row) + 1, name)
            raise UsageError(f"{here} is {found[row, at]}", hint="give finite numbers; fill in what is missing first")
        return scaled


def _each(table: Table | Series) -> tuple[Column, ...]:
    """Return one column for each number: a series may have one for each channel."""
    if isinstance(table, Table) or len(table.columns) == table.channels * table.length:
        return table.columns
    return tuple(
        Column(name=f"{column.name}[{at}]", mean=column.mean, std=column.std)
        for column in table.columns
        for at in range(table.length)
    )


def _flat(row: Any) -> list[Any]:
    """Return the cells of a list, or of the lists in it."""
    return [cell for part in row for cell in (part if isinstance(part, list | tuple) else [part])]


def _several(array: Any, item_shape: tuple[int, ...]) -> Any:
    """Return ARRAY with a first axis for its items: one item alone has none."""
    return array[None] if array.ndim == len(item_shape) else array


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(cell: Any, place: Place) -> float:
    """Return the number in a cell, which need not be finite. Raises UsageError for an empty one and for text."""
    if isinstance(cell, bool) or cell is None or (isinstance(cell, str) and not cell.strip()):
        what = "is empty" if cell is None or cell == "" or isinstance(cell, str) else f"is {cell!r}, no number"
        raise UsageError(f"{place} {what}", hint="give a number; fill in what is missing first")
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        value = None
    if value is None or (isinstance(cell, str) and "_" in cell):
        comma = isinstance(cell, str) and DECIMAL_COMMA.fullmatch(cell)
        hint = "write numbers with a point: 1.5" if comma else "give a number"
        raise UsageError(f"{place} is {cell!r:.60}, no number", hint=hint)
    return value
