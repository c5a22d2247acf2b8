"""Arrays for a model that does not say what they mean: their shape and type are checked, their numbers are taken as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeai.engines.onnx.schema import Tensor
from edgeai.engines.onnx.tensors import Tensors
from edgeai.errors import UsageError

X = Tensor(name="x", dtype="float32", shape=(2, 3))
FREE = Tensor(name="x", dtype="float32", shape=(None, 3))
IDS = Tensor(name="ids", dtype="int64", shape=(2,))
ITEM = np.arange(6.0).reshape(2, 3)


def read(items: list[Any], *tensors: Tensor, rows: int = 8) -> list[Any]:
    return list(Tensors(tensors or (X,)).batches(items, rows))


def test_arrays_of_any_form_give_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ITEM)
    np.save(tmp_path / "b.npy", ITEM[None])
    (tmp_path / "c.json").write_text(json.dumps(ITEM.tolist()))
    (tmp_path / "d.json").write_text(json.dumps({"x": ITEM.tolist()}))
    for item in (
        ITEM,
        ITEM.tolist(),
        {"x": ITEM},
        ITEM.reshape(-1),
        *(tmp_path / f for f in ("a.npy", "b.npy", "c.json", "d.json")),
    ):
        (batch,) = read([item])
        assert np.array_equal(batch.feed["x"], ITEM[None])
        assert batch.feed["x"].dtype == np.float32


def test_several_inputs_are_given_by_name() -> None:
    (batch,) = read([{"x": ITEM, "ids": [1, 2]}] * 2, X, IDS)
    assert (batch.feed["x"].shape, batch.feed["ids"].shape, batch.feed["ids"].dtype) == ((2, 2, 3), (2, 2), np.int64)


def test_items_of_other_shapes_go_apart() -> None:
    assert [batch.feed["x"].shape for batch in read([ITEM, ITEM, ITEM[:1], ITEM], FREE)] == [
        (2, 2, 3),
        (1, 1, 3),
        (1, 2, 3),
    ]


def test_the_numbers_are_not_judged() -> None:
    (batch,) = read([np.full((2, 3), np.nan)])
    assert np.isnan(batch.feed["x"]).all()


@pytest.mark.parametrize(
    ("item", "tensors", "said"),
    [
        (ITEM[:1], (X,), "shape"), (ITEM, (IDS,), "int64"), ([1, 2**70], (IDS,), "numbers"), ([[1, 2], [3]], (X,), "differ in length"),
        (ITEM, (X, IDS), "takes x, ids"), ({"x": ITEM}, (X, IDS), "takes x, ids"), ("no.npy", (X,), "not there"),
        ([["a"] * 3] * 2, (X,), "numbers"),
        (None, (X,), "numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(item: Any, tensors: tuple[Tensor, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read([item], *tensors)


def test_numbers_that_would_be_changed_are_refused() -> None:
    small = Tensor(name="x", dtype="uint8", shape=(2,))
    assert read([[0, 255]], small)[0].feed["x"].dtype == np.uint8
    for wrong in ([0, 256], [-1, 0], [0.5, 1.0]):
        with pytest.raises(UsageError):
            read([wrong], small)


def test_the_short_way_takes_only_what_needs_no_change() -> None:
    into = np.zeros((1, 2, 3), np.float32)
    fill = Tensors([X]).filler(into)
    assert fill(ITEM.astype(np.float32))
    assert np.array_equal(into[0], ITEM)
    for other in (ITEM, ITEM[:1].astype(np.float32), ITEM.tolist()):
        assert not fill(other)
