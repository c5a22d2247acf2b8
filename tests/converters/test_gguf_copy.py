"""A GGUF file written again: keys and vocabulary as they are, tensors in other types."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.gguf import write_model
from converters.gguf_copy import copy_gguf
from converters.header import GGUFHeader, read_header
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary
from tests.families import write_f32


@pytest.fixture(scope="module")
def source(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_f32(llama, tmp_path_factory.mktemp("copy é") / "model.gguf")


def data(header: GGUFHeader) -> dict[str, bytes]:
    raw = header.path.read_bytes()
    return {tensor.name: raw[tensor.offset : tensor.offset + tensor.nbytes] for tensor in header.tensors}


def test_a_copy_with_the_same_types_has_the_same_keys_and_bytes(source: Path, tmp_path: Path) -> None:
    header = read_header(source)
    copy_gguf(header, tmp_path / "copy.gguf", {tensor.name: "F32" for tensor in header.tensors}, "F32", {})
    copy = read_header(tmp_path / "copy.gguf")
    assert data(copy) == data(header)
    assert copy.types == {key: kind for key, kind in header.types.items() if not key.startswith("edgeai.")}
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"):
        assert copy.array(key) == header.array(key)
    assert {key: copy.kv[key] for key in copy.kv if copy.types[key] != "array"} == {
        key: header.kv[key] for key in copy.kv if copy.types[key] != "array"
    }


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_tensors_are_those_of_a_conversion_from_the_folder(
    llama: Path, source: Path, tmp_path: Path, quant: str
) -> None:
    checkpoint = open_checkpoint(llama)
    plan = plan_model(checkpoint)
    types = plan_types(plan, quant)
    direct, copy = tmp_path / "direct.gguf", tmp_path / "copy.gguf"
    write_model(direct, plan, read_vocabulary(checkpoint, plan.vocab_size), types, {})
    copy_gguf(read_header(source), copy, {name: types.type_of(name) for name in types.choices}, quant, {})
    assert data(read_header(direct)) == data(read_header(copy))
    assert read_header(direct).kv["general.file_type"] == read_header(copy).kv["general.file_type"]


def test_new_keys_are_written_by_their_kind(source: Path, tmp_path: Path) -> None:
    header = read_header(source)
    extra = {"edgeai.quant": "F32", "edgeai.a": True, "edgeai.b": 0.5, "edgeai.c": 7}
    copy_gguf(header, tmp_path / "copy.gguf", {tensor.name: "F32" for tensor in header.tensors}, "F32", extra)
    copy = read_header(tmp_path / "copy.gguf")
    assert {key: copy.kv[key] for key in extra} == extra
    assert [copy.types[key] for key in extra] == ["string", "bool", "f32", "u32"]
