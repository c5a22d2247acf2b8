"""What a file says of itself is checked: each wrong value is an InvalidModel that names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeai.artifact import open_artifact
from edgeai.engines.onnx.schema import Image, Series, Table, Tensor, Text, schema_of
from edgeai.errors import InvalidModel
from tests.engines.onnx.models import COLUMNS, IMAGE, LABELS, linear, schema, table

SERIES = {
    "kind": "series", "name": "series", "channels": 1, "length": 2,
    "columns": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number", "mean": 1.0, "std": 2.0}],
}  # fmt: skip
TEXT = {"kind": "text", "name": "text", "max_tokens": 8, "graph": ["input_ids", "attention_mask"]}
TENSOR = {"kind": "tensor", "name": "x", "dtype": "float32", "shape": [2, "length"]}


def read(tmp_path: Path, about: Any) -> Any:
    return schema_of(open_artifact(linear(tmp_path / "s.onnx", [2], about)))


@pytest.mark.parametrize(
    ("given", "kind"), [(IMAGE, Image), (table(), Table), (SERIES, Series), (TEXT, Text), (TENSOR, Tensor)]
)
def test_each_kind_of_input_is_read(tmp_path: Path, given: dict[str, Any], kind: type) -> None:
    found = read(tmp_path, schema(given))
    assert isinstance(found.inputs[0], kind)
    assert (found.labels, found.task, found.kind) == (tuple(LABELS), "classification", "logits")
    for name, value in given.items():
        if name not in ("kind", "columns", "shape"):
            have = getattr(found.inputs[0], name)
            assert have == (tuple(value) if isinstance(value, list) else value)


def test_columns_keep_their_order_scale_and_values(tmp_path: Path) -> None:
    width, colour, height = read(tmp_path, schema(table(COLUMNS))).inputs[0].columns
    assert (width.mean, width.std, width.values) == (2.0, 4.0, ())
    assert (colour.values, colour.width, height.width) == (("red", "green"), 2, 1)


def test_a_file_without_a_schema_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, None) is None


BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "task": lambda s: s.update(task="clustering"),
    "inputs": lambda s: s.update(inputs=s["inputs"] * 2),
    "output": lambda s: s.update(output=None),
    "output.kind": lambda s: s.update(output={"name": "logits", "kind": "values"}),
    "labels": lambda s: s.update(labels=["one"]),
    "labels twice": lambda s: s.update(labels=["a", "a"]),
    "labels of other kinds": lambda s: s.update(labels=[1, 2]),
    "kind": lambda s: s["inputs"][0].update(kind="sound"),
    "channels": lambda s: s["inputs"][0].update(channels=2),
    "height": lambda s: s["inputs"][0].update(height=10**9),
    "width": lambda s: s["inputs"][0].update(width=True),
    "resize": lambda s: s["inputs"][0].update(resize="lanczos"),
    "scale": lambda s: s["inputs"][0].update(scale="1"),
    "invert": lambda s: s["inputs"][0].update(invert=1),
    "mean": lambda s: s["inputs"][0].update(mean=[0.5, 0.5]),
    "std": lambda s: s["inputs"][0].update(std=[0]),
    "name": lambda s: s["inputs"][0].update(name=""),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    about = copy.deepcopy(schema(IMAGE))
    BREAKS[name](about)
    with pytest.raises(InvalidModel, match=name.split()[0]):
        read(tmp_path, about)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (table([]), "columns"), (table([COLUMNS[0]] * 2), "columns"), (table([{"name": "a", "kind": "date"}]), "kind"),
        (table([{"name": "a", "std": 0}]), "std"), (table([{"name": "a", "kind": "category", "values": []}]), "values"),
        ({**SERIES, "length": 3}, "columns"), ({**TEXT, "max_tokens": 0}, "max_tokens"), ({**TEXT, "graph": []}, "graph"),
        ({**TENSOR, "dtype": "complex64"}, "dtype"), ({**TENSOR, "shape": [0]}, "shape"), ({**TENSOR, "shape": [1 << 30]}, "shape"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidModel, match=named):
        read(tmp_path, schema(given))


@pytest.mark.parametrize("targets", [None, [], ["price"], [{"name": "a"}, {"name": "a"}], [{"name": "a", "std": 0}]])
def test_wrong_targets_are_named(tmp_path: Path, targets: Any) -> None:
    about = schema(table(), task="regression", output={"name": "v", "kind": "values"}, targets=targets)
    with pytest.raises(InvalidModel, match=r"targets|std"):
        read(tmp_path, about)


def test_nan_is_no_scale(tmp_path: Path) -> None:
    about = schema({**IMAGE, "mean": [float("nan")]})
    assert "NaN" in json.dumps(about)
    with pytest.raises(InvalidModel, match="mean"):
        read(tmp_path, about)
