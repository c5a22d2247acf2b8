"""PyTorch's own weight files: read as torch reads them, and never run."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters.checkpoint import BIN_INDEX, BIN_SINGLE, SINGLE, open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel
from converters.families import plan_model
from tests.conftest import Record


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """The small checkpoint with its weights in pytorch_model.bin."""
    copy = Path(shutil.copytree(llama, tmp_path / "copy é"))
    torch.save(load_file(copy / SINGLE), copy / BIN_SINGLE)
    (copy / SINGLE).unlink()
    return copy


def shard(folder: Path) -> dict[str, str]:
    tensors = torch.load(folder / BIN_SINGLE, weights_only=True)
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    (folder / BIN_SINGLE).unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / BIN_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def same(folder: Path, expected: Mapping[str, torch.Tensor]) -> bool:
    tensors = open_checkpoint(folder).tensors
    assert tensors.keys() == expected.keys()
    return all(np.array_equal(item.rows(0, item.shape[0]), expected[name].numpy()) for name, item in tensors.items())


def test_rows_are_those_of_the_safetensors_file(folder: Path, llama: Path) -> None:
    assert same(folder, load_file(llama / SINGLE))
    assert plan_model(open_checkpoint(folder)).layers == 2


def test_shards_are_read_through_their_index(folder: Path, llama: Path) -> None:
    shard(folder)
    assert same(folder, load_file(llama / SINGLE))


def test_the_format_before_zip_files_is_read(folder: Path, llama: Path) -> None:
    tensors = load_file(llama / SINGLE)
    torch.save(tensors, folder / BIN_SINGLE, _use_new_zipfile_serialization=False)
    assert same(folder, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read_as_torch_reads_it(folder: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[1.5, -2.25e-3], [3e4, 0.0], [6.1e-5, -0.1]], dtype=dtype)
    torch.save({"x": values}, folder / BIN_SINGLE)
    assert np.array_equal(open_checkpoint(folder).tensors["x"].rows(1, 3), values[1:].float().numpy())


def test_views_and_transposed_tensors_are_read_as_they_look(folder: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    torch.save({"whole": base, "part": base[1:3], "turned": base.T, "stepped": base[:, ::2]}, folder / BIN_SINGLE)
    tensors = open_checkpoint(folder).tensors
    assert tensors["part"].rows(0, 2).tolist() == base[1:3].tolist()
    assert tensors["turned"].rows(2, 4).tolist() == base.T[2:4].tolist()
    assert tensors["stepped"].rows(0, 4).tolist() == base[:, ::2].tolist()


def test_a_parameter_is_a_tensor(folder: Path) -> None:
    torch.save({"x": torch.nn.Parameter(torch.ones(2, 2))}, folder / BIN_SINGLE)
    assert open_checkpoint(folder).tensors["x"].rows(0, 2).tolist() == [[1, 1], [1, 1]]


class Code:
    """A pickle of this runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_run_and_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, *, zipped: bool) -> None:
    monkeypatch.chdir(folder)
    torch.save({"x": Code()}, folder / BIN_SINGLE, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BrokenCheckpoint, match=r"would run '\w+\.system'"):
        open_checkpoint(folder)
    assert not (folder / "ran").exists()


def test_a_plain_pickle_with_code_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / BIN_SINGLE).write_bytes(pickle.dumps(Code()))
    with pytest.raises(BrokenCheckpoint):
        open_checkpoint(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a checkpoint", b"\x80\x02}", b"version https://git-lfs"])
def test_what_is_no_file_of_weights_is_refused(folder: Path, data: bytes) -> None:
    (folder / BIN_SINGLE).write_bytes(data)
    with pytest.raises(BrokenCheckpoint, match=r"pytorch_model\.bin"):
        open_checkpoint(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    data = (folder / BIN_SINGLE).read_bytes()
    (folder / BIN_SINGLE).write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenCheckpoint, match="not a whole PyTorch file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [[torch.ones(2)], {"epoch": 3}, {"state_dict": {"x": torch.ones(2)}}])
def test_what_is_no_table_of_tensors_is_refused(folder: Path, value: Any) -> None:
    torch.save(value, folder / BIN_SINGLE)
    with pytest.raises(BrokenCheckpoint, match="name → tensor table"):
        open_checkpoint(folder)


def test_a_sparse_tensor_is_refused_by_name(folder: Path) -> None:
    torch.save({"thin": torch.eye(3).to_sparse()}, folder / BIN_SINGLE)
    with pytest.raises(UnsupportedModel, match="thin"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../up.bin", "/etc/passwd", "..", ""])
def test_an_index_cannot_point_out_of_the_folder(folder: Path, name: str) -> None:
    weight_map = shard(folder)
    (folder / BIN_INDEX).write_text(json.dumps({"weight_map": {**weight_map, "x": name}}))
    with pytest.raises(BrokenCheckpoint, match="plain file name"):
        open_checkpoint(folder)


def test_a_tensor_that_only_the_index_has_is_named(folder: Path) -> None:
    weight_map = shard(folder)
    ghost = {"ghost": next(iter(weight_map.values()))}
    (folder / BIN_INDEX).write_text(json.dumps({"weight_map": weight_map | ghost}))
    with pytest.raises(BrokenCheckpoint, match="ghost"):
        open_checkpoint(folder)


def test_without_torch_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConvertError, match="torch is not installed") as caught:
        open_checkpoint(folder)
    assert "edgeai[convert]" in str(caught.value.hint)


@pytest.mark.parametrize("head", ["version https://git-lfs.github.com/spec/v1\n", "<!DOCTYPE html>"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_what_stands_in_place_of_weights_is_named(folder: Path, head: str, name: str) -> None:
    (folder / name).write_text(head)
    with pytest.raises(BrokenCheckpoint, match=r"git-lfs pointer|web page"):
        open_checkpoint(folder)


def test_nobody_is_told_to_open_a_file_without_protection(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80garbage")
    with pytest.raises(BrokenCheckpoint) as caught:
        open_checkpoint(folder)
    assert "weights_only" not in caught.value.message


def test_a_whole_conversion_of_pickled_shards_is_proved_in_torch(
    folder: Path, tmp_path: Path, record_proof: Record
) -> None:
    from edgeai.pipeline import convert

    shard(folder)
    report = convert(folder, tmp_path / "out.gguf", "f32").report
    error = next(float(row.value) for row in report.rows if row.name == "F32 logits against torch: NMSE")
    assert error < 1e-6
    record_proof(model="LlamaForCausalLM", source=".bin", variant="sharded", proof="F32 logits NMSE", error=error)
