from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.checkpoint import INDEX, SINGLE, open_checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from tests.checkpoints import edit_json


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy é"))


def shard(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    parts = {"one.safetensors": names[: len(names) // 2], "two.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / SINGLE).unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_rows_are_those_of_the_safetensors_library(llama: Path) -> None:
    expected = load_file(llama / SINGLE)
    for name, tensor in open_checkpoint(llama).tensors.items():
        assert np.array_equal(tensor.rows(0, tensor.shape[0]), expected[name])


def test_a_slab_is_those_rows_of_the_tensor(llama: Path) -> None:
    tensor = open_checkpoint(llama).tensors["model.embed_tokens.weight"]
    assert np.array_equal(tensor.rows(5, 9), tensor.rows(0, 12)[5:9])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_float_type_is_read_as_torch_reads_it(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.5, -2.25e-3], [3e4, 0.0], [6.1e-5, -0.1]], dtype=getattr(torch, dtype))
    save_torch({"x": values}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text("{}")
    assert np.array_equal(open_checkpoint(tmp_path).tensors["x"].rows(0, 3), values.float().numpy())


def test_shards_are_read_through_their_index(copy: Path, llama: Path) -> None:
    shard(copy)
    assert open_checkpoint(copy).tensors.keys() == open_checkpoint(llama).tensors.keys()


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard(copy)
    (copy / "two.safetensors").unlink()
    with pytest.raises(BrokenCheckpoint, match=r"two\.safetensors"):
        open_checkpoint(copy)


def test_a_tensor_that_only_the_index_has_is_named(copy: Path) -> None:
    shard(copy)
    edit_json(copy / INDEX, lambda index: index["weight_map"].update(ghost="one.safetensors"))
    with pytest.raises(BrokenCheckpoint, match="ghost"):
        open_checkpoint(copy)


def test_a_tensor_that_only_a_shard_has_is_named(copy: Path) -> None:
    weight_map = shard(copy)
    name = next(iter(weight_map))
    edit_json(copy / INDEX, lambda index: index["weight_map"].pop(name))
    with pytest.raises(BrokenCheckpoint, match=name.replace(".", r"\.")):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_cannot_point_out_of_the_folder(copy: Path, name: str) -> None:
    shard(copy)
    edit_json(copy / INDEX, lambda index: index["weight_map"].update(x=name))
    with pytest.raises(BrokenCheckpoint, match="plain file name"):
        open_checkpoint(copy)


def test_a_truncated_file_is_refused_at_once(copy: Path) -> None:
    data = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(data[:-1])
    with pytest.raises(BrokenCheckpoint, match="not a whole safetensors file"):
        open_checkpoint(copy)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(copy: Path) -> None:
    tensors = open_checkpoint(copy).tensors
    last = max(tensors.values(), key=lambda tensor: tensor.start)
    data = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(data[:-1])
    with pytest.raises(BrokenCheckpoint, match="ends inside"):
        last.rows(0, last.shape[0])


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "\\ud800"}', '{"a": ' * 100_000])
def test_a_broken_config_is_refused(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(BrokenCheckpoint, match=r"config\.json"):
        open_checkpoint(copy)


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(BrokenCheckpoint, match=r"no config\.json"):
        open_checkpoint(copy)


def test_weights_under_a_foreign_name_are_refused_by_name(copy: Path) -> None:
    (copy / SINGLE).rename(copy / "consolidated.00.pth")
    with pytest.raises(UnsupportedModel, match=r"consolidated\.00\.pth"):
        open_checkpoint(copy)


def test_the_only_file_of_weights_under_a_name_that_transformers_does_not_read_is_to_be_renamed(copy: Path) -> None:
    (copy / SINGLE).rename(copy / "weights é.safetensors")
    with pytest.raises(BrokenCheckpoint, match=r"weights é\.safetensors") as caught:
        open_checkpoint(copy)
    assert str(caught.value.hint).startswith("rename it: mv ")


def test_an_index_with_a_name_that_no_file_can_have_is_refused(copy: Path) -> None:
    shard(copy)
    edit_json(copy / INDEX, lambda index: index["weight_map"].update(x="x" * 5000))
    with pytest.raises(BrokenCheckpoint, match="names the shard"):
        open_checkpoint(copy)


def test_a_file_as_source_is_refused(llama: Path) -> None:
    with pytest.raises(UnsupportedModel, match="is a file"):
        open_checkpoint(llama / "config.json")
