"""Rows of every form become the same numbers, and what is wrong with one is named by file, row and column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeai.engines.onnx.schema import Column, Series, Table
from edgeai.engines.onnx.tables import Tables
from edgeai.errors import UsageError

WIDTH = Column(name="width", mean=2.0, std=4.0)
COLOUR = Column(name="colour", values=("red", "green"))
HEIGHT = Column(name="mean height, cm", mean=-1.0, std=0.5)
MIXED = Table(name="features", columns=(WIDTH, COLOUR, HEIGHT))
PLAIN = Table(name="features", columns=(WIDTH, HEIGHT))
NAMES = ["width", "colour", "mean height, cm"]
CELLS: list[list[Any]] = [[6.0, "green", -1.0], [2.0, "red", 0.25]]
WANTED = np.array([[1, 0, 1, 0], [0, 1, 0, 2.5]], dtype=np.float32)


def read(items: Sequence[Any], table: Table | Series = MIXED) -> tuple[npt.NDArray[np.float32], set[str]]:
    """Return the array of all ITEMS and the messages of their notices."""
    batches = list(Tables(table).batches(items, 64))
    said = {notice.message for batch in batches for notices in batch.notices for notice in notices}
    return np.concatenate([batch.feed[table.name] for batch in batches]), said


def as_csv(names: Sequence[str] = NAMES, rows: Sequence[Sequence[Any]] = CELLS, delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def dicts() -> list[dict[str, Any]]:
    return [dict(zip(NAMES, row, strict=True)) for row in CELLS]


FILES: dict[str, tuple[str, str]] = {
    "csv": ("r.csv", as_csv()),
    "bom": ("r.csv", "\ufeff" + as_csv()),
    "semicolons": ("r.csv", as_csv(delimiter=";")),
    "tabs in .csv": ("r.csv", as_csv(delimiter="\t")),
    "tsv": ("R.TSV", as_csv(delimiter="\t")),
    "other order": ("r.csv", as_csv(NAMES[::-1], [row[::-1] for row in CELLS])),
    "spaces and blank lines": (
        "r.csv",
        '\n width , colour, "mean height, cm"\r\n\r\n 6.0 , green ,-1\r\n2,red,.25\r\n\r\n',
    ),
    "json": ("r.json", json.dumps(dicts())),
    "rows of json": ("r.json", json.dumps(CELLS)),
    "jsonl": ("r.jsonl", "\n".join(map(json.dumps, dicts())) + "\n\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_form_gives_the_same_numbers(tmp_path: Path, name: str) -> None:
    file, text = FILES[name]
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    for item in (tmp_path / file, str(tmp_path / file)):
        found, said = read([item])
        assert np.array_equal(found, WANTED)
        assert said == set()
        assert found.dtype == np.float32


def test_rows_in_memory_give_the_same_numbers() -> None:
    for items in (dicts(), CELLS, [tuple(row) for row in CELLS], [dicts()[0], CELLS[1]]):
        assert np.array_equal(read(items)[0], WANTED)


def test_arrays_give_the_same_numbers(tmp_path: Path) -> None:
    rows = np.array([[6.0, -1.0], [2.0, 0.25]])
    wanted = WANTED[:, [0, 3]]
    np.save(tmp_path / "r.npy", rows)
    np.save(tmp_path / "one.npy", rows[0])
    for items in (
        rows,
        rows.astype(np.float32),
        list(rows),
        rows.tolist(),
        [tmp_path / "r.npy"],
        [rows[0], {"width": 2, HEIGHT.name: 0.25}],
    ):
        assert np.array_equal(read(items, PLAIN)[0], wanted)
    assert np.array_equal(read([tmp_path / "one.npy"], PLAIN)[0], wanted[:1])


def test_files_and_rows_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(as_csv())
    found, _ = read([CELLS[1], tmp_path / "r.csv", CELLS[0]])
    assert np.array_equal(found, WANTED[[1, 0, 1, 0]])


def test_columns_that_the_model_does_not_read_are_ignored_and_said(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(as_csv(["id", *NAMES, "note"], [[7, *row, "x"] for row in CELLS]))
    found, said = read([tmp_path / "r.csv"])
    assert np.array_equal(found, WANTED)
    (message,) = said
    assert "'id', 'note'" in message
    assert "r.csv" in message
    assert len(read([{**dicts()[0], "id": 3}])[1]) == 1


def test_a_file_without_rows_gives_none(tmp_path: Path) -> None:
    for name, text in (("r.csv", as_csv(rows=[])), ("r.json", "[]")):
        (tmp_path / name).write_text(text)
        assert list(Tables(MIXED).batches([tmp_path / name], 8)) == []


def test_ten_thousand_rows_come_in_batches(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((10_000, 2))
    (tmp_path / "r.csv").write_text(as_csv([WIDTH.name, HEIGHT.name], rows.tolist()))
    batches = list(Tables(PLAIN).batches([tmp_path / "r.csv"], 256))
    assert [batch.count for batch in batches] == [256] * 39 + [16]
    found = np.concatenate([batch.feed["features"] for batch in batches])
    assert np.array_equal(found, ((rows - [2.0, -1.0]) / [4.0, 0.5]).astype(np.float32))


Change = Callable[[], tuple[str, str | bytes]]
ROW = 'width,colour,"mean height, cm"\n'
WRONG: dict[str, tuple[str, str | bytes, str, str]] = {
    "missing column": ("r.csv", "width,colour\n1,red\n", "lacks the column 'mean height, cm'", "the model reads width"),
    "misspelt column": ("r.csv", as_csv(["widht", *NAMES[1:]]), "lacks the column 'width'", "did you mean 'width' where it says 'widht'"),
    "column twice": ("r.csv", as_csv([*NAMES, "width"], [[*row, 1] for row in CELLS]), "column 'width' is there twice", "leave one"),
    "no header": ("r.csv", "1.0,2.0,3.0\n2,3,4\n", "has no header", "the first line names the columns"),
    "empty cell": ("r.csv", ROW + "1,red,2\n,red,2\n", "row 2, column 'width' is empty", "fill in"),
    "nan": ("r.csv", ROW + "nan,red,2\n", "row 1, column 'width' is nan", "finite"),
    "infinite": ("r.csv", ROW + "-inf,red,2\n", "row 1, column 'width' is -inf", "finite"),
    "beyond float32": ("r.csv", ROW + "1,red,2\n1e300,red,2\n", "row 2, column 'width' is 1e+300", "finite"),
    "text for a number": ("r.csv", ROW + "abc,red,2\n", "row 1, column 'width' is 'abc', no number", "number"),
    "decimal comma": ("r.csv", as_csv(rows=[["1,5", "red", 2]], delimiter=";"), "'1,5', no number", "with a point"),
    "underscore": ("r.csv", ROW + "1_0,red,2\n", "'1_0', no number", "number"),
    "unknown category": ("r.csv", ROW + "1,rad,2\n", "row 1, column 'colour' has the unknown value 'rad'", "did you mean 'red'"),
    "row too short": ("r.csv", ROW + "1,red,2\n1,red\n", "row 2 (line 3) has 2 cells and the header 3", "quotes"),
    "row too long": ("r.csv", ROW + "1,red,2,3\n", "row 1 (line 2) has 4 cells and the header 3", "quotes"),
    "open quote": ("r.csv", ROW + '1,"red,2\n', "is not CSV", "quotes"),
    "empty file": ("r.csv", "", "is empty", "rows"),
    "other encoding": ("r.csv", ROW.encode() + b"1,r\xe9d,2\n", "is not UTF-8", "byte"),
    "UTF-16": ("r.csv", as_csv().encode("utf-16"), "is not UTF-8", "byte 0"),
    "no json": ("r.json", "[{]", "is not JSON", "objects"),
    "json with NaN": ("r.json", '[{"width": NaN}]', "NaN is no number of JSON", "objects"),
    "json of texts": ("r.json", '["a"]', "row 1 is 'a', no row", "object"),
    "json without a key": ("r.json", '[{"width": 1, "colour": "red"}]', "row 1 lacks the column 'mean height, cm'", "the model reads"),
    "json null": ("r.json", json.dumps([dicts()[0], {**dicts()[0], "width": None}]), "row 2, column 'width' is empty", "fill in"),
    "json bool": ("r.json", json.dumps([{**dicts()[0], "width": True}]), "row 1, column 'width' is True, no number", "number"),
    "json huge": ("r.json", '[[1' + "0" * 400 + ', "red", 1]]', "no number", "number"),
    "jsonl line": ("r.jsonl", json.dumps(dicts()[0]) + "\n{\n", "line 2, is not JSON", "one object a line"),
    "short list": ("r.json", "[[1, 2]]", "row 1 has 2 cells, and the model reads 3 columns", "one cell"),
    "npy that is none": ("r.npy", b"garbage", "is not an array", "numpy.save"),
    "other ending": ("r.xlsx", "x", "no table by its name", ".csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str) -> None:
    file, content, said, hint = WRONG[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        read([tmp_path / file])
    assert said in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert file in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="not an array"):
        read([tmp_path / "r.npy"])


@pytest.mark.parametrize(
    ("items", "table", "said"),
    [
        ([np.zeros(3)], PLAIN, "shape"), (np.zeros((2, 3)), PLAIN, "shape"), ([np.array(["a", "b"])], PLAIN, "numbers"),
        ([np.zeros(3)], MIXED, "categories"), ([3], PLAIN, "no row"), ([None], PLAIN, "no row"), (["nowhere.csv"], PLAIN, "not there"),
        ([np.array([1.0, np.nan])], PLAIN, "mean height, cm"), (np.array([[1, 2], [np.inf, 2]]), PLAIN, "row 2, column 'width' is inf"),
        ([[1, 2], [1]], PLAIN, "item 2 of 2 has 1 cells"), ([{"width": 1}], PLAIN, "lacks the column"),
        ([{"width": [1], "mean height, cm": 1}], PLAIN, "no number"),
        ([{"width": 1e300, "mean height, cm": 1}], PLAIN, "the item, column 'width'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_rows_in_memory_is_named(items: Any, table: Table, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("'", ".")):
        read(items, table)


def test_all_rows_are_checked_before_the_first_batch() -> None:
    with pytest.raises(UsageError, match="item 3 of 3"):
        next(Tables(PLAIN).batches([[1, 2], [3, 4], [5, "x"]], 1))


def test_the_short_way_gives_the_same_to_the_bit_and_leaves_what_is_wrong() -> None:
    into = np.zeros((1, 2), np.float32)
    fill = Tables(PLAIN).filler(into)
    for row in np.random.default_rng(0).standard_normal((50, 2)) * 1000:
        for item in (row, row.astype(np.float32)):
            assert fill(item)
            assert np.array_equal(into, read([item], PLAIN)[0])
    for wrong in ([np.nan, 1], [np.inf, 1], [1e300, 1], [1e39, 1]):
        assert not fill(np.array(wrong))
    first, second = (column.name for column in PLAIN.columns)
    for cells in ((0.1, 2), (-3, 1e30), (2**60 + 1, 0.5)):
        for named in (dict(zip((first, second), cells, strict=True)), dict(zip((second, first), cells, strict=True))):
            assert fill(named)
            assert np.array_equal(into, read([named], PLAIN)[0])
    good = {first: 1.0, second: 2.0}
    odd = [{**good, first: cell} for cell in (None, "1", True, np.nan, 10**400, [1.0])]
    for other in (
        np.zeros(3),
        np.zeros(2, dtype=int),
        [1.0, 2.0],
        np.zeros((2, 1)),
        *odd,
        {**good, "id": 7},
        {first: 1.0},
    ):
        assert not fill(other)
    assert not fill({first: 1.0, "id": 7})
    assert not Tables(MIXED).filler(np.zeros((1, 4), np.float32))(np.zeros(4))


# ---- series


FLAT = Series(
    name="series",
    channels=2,
    length=3,
    columns=tuple(Column(name=f"c{at}", mean=float(at), std=2.0) for at in range(6)),
)
BY_CHANNEL = Series(
    name="series", channels=2, length=3, columns=(Column(name="x", mean=1.0), Column(name="y", mean=2.0, std=4.0))
)
POINTS = np.arange(6.0).reshape(2, 3)


def test_a_series_is_a_row_of_numbers_channel_after_channel(tmp_path: Path) -> None:
    wanted = ((POINTS.reshape(-1) - np.arange(6)) / 2).reshape(1, 2, 3)
    (tmp_path / "s.csv").write_text(as_csv([f"c{at}" for at in range(6)], [POINTS.reshape(-1).tolist()]))
    np.save(tmp_path / "s.npy", POINTS)
    np.save(tmp_path / "many.npy", np.stack([POINTS] * 2))
    for items in (
        [POINTS],
        POINTS[None],
        [POINTS.reshape(-1)],
        [POINTS.tolist()],
        [tmp_path / "s.csv"],
        [tmp_path / "s.npy"],
    ):
        assert np.array_equal(read(items, FLAT)[0], wanted)
    assert read([tmp_path / "many.npy"], FLAT)[0].shape == (2, 2, 3)


def test_a_series_with_a_column_for_each_channel_is_a_file_with_a_row_for_each_point(tmp_path: Path) -> None:
    wanted = np.stack([POINTS[0] - 1, (POINTS[1] - 2) / 4])[None]
    (tmp_path / "s.csv").write_text(as_csv(["y", "x", "t"], [[y, x, 0] for x, y in POINTS.T.tolist()]))
    found, said = read([tmp_path / "s.csv"], BY_CHANNEL)
    assert np.array_equal(found, wanted)
    assert len(said) == 1
    assert np.array_equal(read([POINTS], BY_CHANNEL)[0], wanted)
    (tmp_path / "s.csv").write_text(as_csv(["x", "y"], [[1, 2]]))
    with pytest.raises(UsageError, match=r"1 rows.* 3 points"):
        read([tmp_path / "s.csv"], BY_CHANNEL)
