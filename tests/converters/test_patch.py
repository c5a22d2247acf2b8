"""Keys changed in place: the new value is there, and not one other byte is another."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter

from converters.errors import InvalidModel
from converters.header import read_header
from converters.patch import patch_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    import numpy as np

    path = tmp_path / "é.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_string("a.text", "text")
    writer.add_array("a.list", ["x", "y"])
    writer.add_bool("a.ok", False)
    writer.add_float32("a.number", 0.0)
    writer.add_uint32("a.count", 7)
    writer.add_tensor("t", np.arange(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_change_and_nothing_else_does(file: Path) -> None:
    before = file.read_bytes()
    patch_keys(file, {"a.ok": True, "a.number": 0.5, "a.count": 9})
    kv = read_header(file).kv
    assert (kv["a.ok"], kv["a.number"], kv["a.count"], kv["a.text"]) == (True, 0.5, 9, "text")
    after = file.read_bytes()
    assert len(after) == len(before)
    assert sum(left != right for left, right in zip(before, after, strict=True)) <= 1 + 4 + 4
    patch_keys(file, {"a.ok": False, "a.number": 0.0, "a.count": 7})
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("a.none", 1, KeyError),
        ("a.text", "other", KeyError),
        ("a.list", 1, KeyError),
        ("a.ok", 1, TypeError),
        ("a.number", 1, TypeError),
        ("a.count", True, TypeError),
        ("a.count", -1, OverflowError),
        ("a.number", float("nan"), OverflowError),
        ("a.number", 1e300, OverflowError),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    file: Path, key: str, value: float, error: type[Exception]
) -> None:
    before = file.read_bytes()
    with pytest.raises(error):
        patch_keys(file, {"a.ok": True, key: value} if key != "a.ok" else {key: value})
    assert file.read_bytes() == before


def test_a_damaged_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InvalidModel):
        patch_keys(file, {"a.ok": True})
