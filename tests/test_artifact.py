"""The facts of GGUF files and Hugging Face folders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.weight_files import read_weights
from edgeai.artifact import Artifact, claimed_quant, open_artifact
from edgeai.errors import InvalidModel, ModelNotFound

Q4_0, Q5_0, F16 = (gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q5_0", "F16"))
BLOCK_BYTES = {Q4_0: 18, Q5_0: 22}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 9,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
}


def write_gguf(path: Path, *, file_type: int | None = 2, block: Any = Q4_0, **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_token_list([f"t{index}" for index in range(20)])
    writer.add_bos_token_id(keys.pop("bos", 1))
    if file_type is not None:
        writer.add_file_type(file_type)
    for name, value in keys.items():
        dotted = name.replace("__", ".")
        writer.add_string(dotted, value) if isinstance(value, str) else writer.add_uint32(dotted, value)
    writer.add_tensor("token_embd.weight", np.ones((20, 256), np.float32))
    if block == F16:
        writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 256), np.float16))
    else:
        rows = np.zeros((4, 8 * BLOCK_BYTES[block]), np.uint8)
        writer.add_tensor("blk.0.ffn_up.weight", rows, raw_dtype=block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder: Path, config: object = CONFIG, dtype: Any = np.float16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {"a": np.ones((4, 8), dtype), "norm": np.ones(8, np.float32)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "é 模型 x"
    folder.mkdir()
    return folder


def test_facts_of_a_gguf_file(place: Path) -> None:
    keys: dict[str, Any] = {"tokenizer__chat_template": "{{ messages }}", "tokenizer__ggml__eos_token_id": 2}
    found = open_artifact(write_gguf(place / "my-model.Q4_0.gguf", **keys))
    assert (found.name, found.format, found.arch, found.quant) == ("my-model", "gguf", "llama", "Q4_0")
    assert (found.params, found.context, found.vocab) == (24 * 256, 64, 20)
    assert (found.bos, found.eos, found.template) == (1, 2, "{{ messages }}")
    assert found.types == {"F32": 1, "Q4_0": 1}
    assert found.bpw == pytest.approx(8 * (20 * 256 * 4 + 4 * 144) / (24 * 256))
    assert found.size_bytes == found.path.stat().st_size
    assert found.metadata["tokenizer.ggml.tokens"] == 20
    assert found.metadata["llama.context_length"] == 64


@pytest.mark.parametrize(
    ("file_type", "block", "quant"),
    [
        (2, Q4_0, "Q4_0"),  # says Q4_0 and is
        (15, Q5_0, "Q5_0"),  # says Q4_K_M and fell back
        (None, Q5_0, "Q5_0"),  # says nothing
        (999, Q4_0, "Q4_0"),  # says something unheard of
        (1, F16, "F16"),
        (0, F16, "F16"),  # says F32
    ],
)
def test_quant_is_what_the_weights_are_not_what_the_file_says(
    place: Path, file_type: int | None, block: Any, quant: str
) -> None:
    assert open_artifact(write_gguf(place / "m.gguf", file_type=file_type, block=block)).quant == quant


def test_claimed_quant_is_what_the_file_says(place: Path) -> None:
    assert claimed_quant(open_artifact(write_gguf(place / "m.gguf", file_type=15, block=Q5_0))) == "Q4_K_M"


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("gemma-3-270m-q4_k_m", "gemma-3-270m"),
        ("x-IQ2_XXS", "x"),
        ("x-bf16", "x"),
        ("model", "named inside"),
        ("ggml-model-f16", "named inside"),
        ("Q-learning", "Q-learning"),
    ],
)
def test_display_name_is_the_file_name_without_its_quant(place: Path, stem: str, name: str) -> None:
    assert open_artifact(write_gguf(place / f"{stem}.gguf", general__name="named inside")).name == name


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"bos": 20}, "bos_token_id is 20"),
        ({"split__count": 3}, "one part of 3"),
    ],
)
def test_gguf_with_impossible_facts_is_refused(place: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        open_artifact(write_gguf(place / "m.gguf", **keys))


@pytest.mark.parametrize("key", ["general__base_model__0__name", "edgeai__source__sha256"])
def test_parent_is_what_the_file_was_made_from(place: Path, key: str) -> None:
    assert open_artifact(write_gguf(place / "m.gguf", **{key: "the source"})).parent == "the source"


def test_absent_token_written_as_minus_one_is_none(place: Path) -> None:
    assert open_artifact(write_gguf(place / "m.gguf", bos=0xFFFFFFFF)).bos is None


def test_vocabulary_alone_is_not_a_model(place: Path) -> None:
    writer = gguf.GGUFWriter(place / "v.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InvalidModel, match="only a vocabulary"):
        open_artifact(place / "v.gguf")


def test_facts_of_a_folder(place: Path) -> None:
    folder = write_folder(place / "my model")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ a }}"}', encoding="utf-8")
    found = open_artifact(folder)
    assert (found.name, found.format, found.arch, found.quant) == ("my model", "hf", "llama", "F16")
    assert (found.params, found.context, found.vocab, found.bos, found.eos) == (40, 64, 9, 0, 1)
    assert found.types == {"F16": 1, "F32": 1}
    assert found.bpw == pytest.approx(8 * (64 + 32) / 40)
    assert found.template == "{{ a }}"


def test_jinja_file_wins_over_the_tokenizer_config(place: Path) -> None:
    folder = write_folder(place / "m")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "old"}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text("new é", encoding="utf-8")
    assert open_artifact(folder).template == "new é"


def test_default_of_several_named_templates_is_taken(place: Path) -> None:
    folder = write_folder(place / "m")
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    assert open_artifact(folder).template == "d"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([], "not a JSON object"),
        ({}, "model_type"),
        ({"model_type": 3}, "model_type"),
        ({"model_type": "llama", "vocab_size": "many"}, "vocab_size is 'many'"),
        ({"model_type": "llama", "vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_folder_with_a_wrong_config_is_refused(place: Path, config: object, says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        open_artifact(write_folder(place / "m", config))


def test_config_that_nests_without_end_is_refused(place: Path) -> None:
    folder = write_folder(place / "m")
    (folder / "config.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(InvalidModel, match="is not JSON"):
        open_artifact(folder)


def test_quantized_checkpoint_names_its_method(place: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    assert open_artifact(write_folder(place / "m", config)).quant == "GPTQ"


def header(entries: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = json.dumps(entries).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(start: int = 0, end: int = 8, *, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a whole safetensors file"),
        (header({}, length=1 << 62), "not a whole safetensors file"),
        (header([]), "not a JSON object"),
        (header({"a": 1}), "the entry of 'a'"),
        (header({"a": entry(dtype="F7")}, bytes(8)), "type 'F7'"),
        (header({"a": entry(dtype=[])}, bytes(8)), "type"),
        (header({"a": entry(shape=(-2,))}, bytes(8)), "shape"),
        (header({"a": entry(shape="x")}, bytes(8)), "shape"),
        (header({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)), "shape"),
        (header({"a": entry(8, 0)}, bytes(8)), "data_offsets"),
        (header({"a": entry(0, 12)}, bytes(12)), "needs 8"),
        (header({"a": entry(), "b": entry(4, 12)}, bytes(12)), "overlaps"),
        (header({"a": entry(8, 16)}, bytes(16)), "leaves a hole"),
        (header({"a": entry()}, bytes(5)), "3 are missing"),
        (header({"a": entry()}, bytes(9)), "1 bytes follow"),
    ],
)
def test_wrong_safetensors_header_is_refused(place: Path, content: bytes, says: str) -> None:
    folder = write_folder(place / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModel, match=says) as caught:
        open_artifact(folder)
    assert caught.value.hint


def write_shards(folder: Path, where: dict[str, str]) -> Path:
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    save_file({"a": np.ones(4, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.ones(4, np.float32)}, folder / "two.safetensors")
    index = {"weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_shards_are_read_in_whole(place: Path) -> None:
    folder = write_shards(place / "m", {"a": "one.safetensors", "b": "two.safetensors"})
    assert {tensor.name: tensor.file.name for tensor in read_weights(folder)} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({}, "no weight_map"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "places|no file has"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "'c'"),
        ({"a": "../one.safetensors"}, "only a .safetensors file beside it"),
        ({"a": "gone.safetensors"}, "cannot be read"),
    ],
)
def test_index_that_does_not_agree_with_the_shards_is_refused(place: Path, where: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        open_artifact(write_shards(place / "m", where))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("empty", "config.json and safetensors"), ("with gguf", "x.gguf"), ("with bin", "safe_serialization")],
)
def test_folder_that_is_no_model_has_a_hint(place: Path, name: str, hint: str) -> None:
    folder = place / name
    folder.mkdir()
    if name == "with gguf":
        write_gguf(folder / "x.gguf")
    if name == "with bin":
        (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InvalidModel) as caught:
        open_artifact(folder)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["nothing.gguf", "x" * 5000, "a\0b", "\ud800"], ids=["none", "long", "zero", "half"])
def test_nothing_there_is_not_found(place: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        open_artifact(place / name)


def test_one_shard_points_to_its_folder(place: Path) -> None:
    folder = write_folder(place / "m")
    with pytest.raises(InvalidModel) as caught:
        open_artifact(folder / "model.safetensors")
    assert str(folder) in str(caught.value.hint)


@pytest.mark.real
def test_real_model_is_opened_without_reading_its_tensors(smollm2_path: Path) -> None:
    open_artifact(smollm2_path)
    start = time.process_time()
    found = open_artifact(smollm2_path)
    assert time.process_time() - start < 0.6  # it takes 0.05 s; a busy machine makes even processor time longer
    assert (found.name, found.arch, found.quant) == ("SmolLM2-135M-Instruct", "llama", "Q4_1")
    assert (found.params, found.context, found.vocab) == (134_515_008, 8192, 49152)


def test_opening_changes_nothing(place: Path) -> None:
    path = write_gguf(place / "m.gguf")
    before = (path.read_bytes(), sorted(place.iterdir()))
    assert isinstance(open_artifact(path), Artifact)
    assert (path.read_bytes(), sorted(place.iterdir())) == before


def test_import_brings_no_heavy_library() -> None:
    code = "import sys, edgeai.artifact, edgeai.store; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "gguf", "torch", "httpx2", "huggingface_hub", "filelock", "rich", "tomllib", "llama_cpp"}
    assert not heavy & set(done.stdout.split())
