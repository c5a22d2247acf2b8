"""`edgeai convert` of a GGUF file: quantized again, or read back as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from converters import hf_export
from converters.header import read_header
from converters.imports import checkpoint as imports
from converters.output import SUFFIX
from edgeai.cli import cli
from edgeai.evaluation import passport
from edgeai.paper import PREFIX
from tests.families import VARIANTS, make_variant, write_f32


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "models é").mkdir()
    return write_f32(llama_folder, tmp_path / "models é" / "model é.gguf")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import make

    return make(tmp_path_factory.mktemp("source") / "a model é")


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove without torch, which is quicker."""
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, args)])


def names(path: Path) -> set[str]:
    return {item.name for item in path.parent.iterdir()}


def test_a_folder_that_was_read_back_is_proved_in_torch(model: Path) -> None:
    before = model.read_bytes()
    result = run(model, "--to", "hf", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    rows = {row["name"]: row for row in done["report"]["rows"]}
    assert rows["F32 logits against torch: NMSE"]["ok"]
    assert (done["format"], done["quant"], done["path"]) == ("hf", "F32", str(model.with_name("model é-hf")))
    assert model.read_bytes() == before
    assert names(model) == {"model é.gguf", "model é-hf"}


def test_a_row_order_that_is_not_undone_fails_the_proof(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "INVERSE", {key: lambda rows, _size: rows for key in imports.INVERSE})
    result = run(model, "--to", "hf")
    assert result.exit_code == 9
    assert "NMSE" in result.stderr
    assert names(model) == {"model é.gguf"}


@pytest.mark.parametrize("torch", [True, False])
def test_rounding_is_said_and_held_to_the_limits_of_the_type(
    model: Path, monkeypatch: pytest.MonkeyPatch, *, torch: bool
) -> None:
    if not torch:
        monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")
    result = run(model, "--to", "hf", "--dtype", "bf16", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert "rounded" in {item["code"] for item in done["warnings"]}
    assert ("logits against torch: NMSE" in {row["name"] for row in done["report"]["rows"]}) is torch


@pytest.mark.usefixtures("no_torch")
def test_a_failed_write_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_export, "encode", full)
    result = run(model, "--to", "hf")
    assert result.exit_code == 5
    assert names(model) == {"model é.gguf"}


@pytest.mark.usefixtures("no_torch")
def test_an_old_folder_is_replaced_only_when_it_is_ours(model: Path) -> None:
    folder = model.with_name("model é-hf")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert run(model, "--to", "hf").exit_code == 2
    assert run(model, "--to", "hf", "--force").exit_code == 2
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "edgeai.json").write_text("{}")
    assert run(model, "--to", "hf", "--force").exit_code == 0
    assert not (folder / "notes.txt").exists()


@pytest.mark.usefixtures("no_torch")
def test_what_a_killed_process_left_is_removed(model: Path) -> None:
    left = model.with_name(f".model é-hf.0123abcd{SUFFIX}")
    left.mkdir()
    assert run(model, "--to", "hf").exit_code == 0
    assert names(model) == {"model é.gguf", "model é-hf"}


def test_a_file_is_quantized_and_compared_with_itself(model: Path) -> None:
    result = run(model, "--quant", "q8_0", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert done["path"] == str(model.with_name("model é-q8_0.gguf"))
    assert done["warnings"][0]["code"] == "runtime-reference"
    header = read_header(Path(done["path"]))
    assert header.kv[f"{PREFIX}ok"] is True
    assert header.array("tokenizer.ggml.tokens") == read_header(model).array("tokenizer.ggml.tokens")


def test_a_quantized_file_needs_the_users_word(model: Path) -> None:
    path = model.with_name("q8.gguf")
    assert run(model, "--quant", "q8_0", "-o", path).exit_code == 0
    refused = run(path, "--quant", "q4_0")
    assert refused.exit_code == 2
    assert "--requantize" in refused.stderr
    done = json.loads(run(path, "--quant", "q4_0", "--requantize", "--json").stdout)
    assert "requantized" in {item["code"] for item in done["warnings"]}
    assert read_header(Path(done["path"])).kv["edgeai.requantized_from"] == "Q8_0"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--to", "hf", "--quant", "q4_0"), "--quant belongs to --to gguf"),
        (("--dtype", "f32"), "--dtype belongs to --to hf"),
        (("--to", "hf", "--requantize"), "--requantize belongs to --to gguf"),
    ],
)
def test_an_option_of_another_target_is_an_error(model: Path, args: tuple[str, ...], said: str) -> None:
    result = run(model, *args)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_folder_cannot_be_read_back(llama_folder: Path) -> None:
    result = run(llama_folder, "--to", "hf")
    assert result.exit_code == 2
    assert "a GGUF file is read back" in result.stderr


def test_a_truncated_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    for target in ("hf", "gguf"):
        result = run(model, "--to", target)
        assert (result.exit_code, "cut off" in result.stderr) == (3, True)


def test_the_limit_is_that_of_the_weakest_type_that_was_asked_for(model: Path) -> None:
    result = run(model, "--quant", "q8_0", "--type", "*=q2_k", "--type", "*=q4_0", "--json")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("option", [("--base", "x"), ("--merge",)])
def test_options_of_adapters_are_refused_for_a_file(model: Path, option: tuple[str, ...]) -> None:
    result = run(model, *option)
    assert result.exit_code == 2
    assert "does nothing where the source is a GGUF file" in result.stderr


def test_an_embedding_model_is_compared_by_its_vectors(tmp_path: Path) -> None:
    folder = make_variant(tmp_path / "bert", VARIANTS["bert"])
    result = run(write_f32(folder, tmp_path / "bert.gguf"), "--quant", "q8_0", "--json")
    assert result.exit_code == 0, result.stderr
    names = [row["name"] for row in json.loads(result.stdout)["report"]["rows"]]
    assert any("least cosine" in name for name in names)


def edited(model: Path, old: bytes, new: bytes) -> Path:
    data = model.read_bytes()
    assert len(old) == len(new)
    assert old in data
    model.write_bytes(data.replace(old, new))
    return model


@pytest.mark.parametrize("more", [(), ("--to", "hf")])
def test_a_file_that_is_no_whole_model_is_named(model: Path, more: tuple[str, ...]) -> None:
    result = run(edited(model, b"blk.0.attn_q.weight", b"blk.0.attn_q.lora_a"), *more)
    assert result.exit_code == 3
    assert "is an adapter" in result.stderr or "attn_q" in result.stderr
    assert names(model) == {model.name}


def test_a_source_that_the_runtime_does_not_load_is_no_failed_proof(model: Path) -> None:
    result = run(edited(model, b"llama.context_length", b"llama.context_lengty"), "--quant", "q8_0")
    assert result.exit_code == 3
    assert "does not load the source" in result.stderr
    assert names(model) == {model.name}


@pytest.mark.usefixtures("no_torch")
def test_an_importance_matrix_reaches_the_encoder_of_a_file(model: Path) -> None:
    import numpy as np

    from converters.importance import ImportanceMatrix, write_importance

    tensors = [item for item in read_header(model).tensors if len(item.shape) > 1 and item.name.startswith("blk.")]
    draw = np.random.default_rng(1)
    sums = {item.name: draw.uniform(1, 100, (1, item.shape[0])).astype(np.float32) for item in tensors}
    matrix = ImportanceMatrix(sums=sums, counts={name: np.ones(1, np.float32) for name in sums})
    write_importance(model.with_name("m.imatrix.gguf"), matrix)
    for name, more in (("plain", ()), ("informed", ("--imatrix", model.with_name("m.imatrix.gguf")))):
        result = run(model, "--quant", "q4_0", "-o", model.with_name(f"{name}.gguf"), *more)
        assert result.exit_code == 0, result.stderr
    plain, informed = (read_header(model.with_name(f"{name}.gguf")) for name in ("plain", "informed"))
    assert informed.kv["quantize.imatrix.entries_count"] == len(sums)
    assert [item.type for item in plain.tensors] == [item.type for item in informed.tensors]
    for left, right in zip(plain.tensors, informed.tensors, strict=True):
        before, after = (
            head.path.read_bytes()[item.offset : item.offset + item.nbytes]
            for head, item in ((plain, left), (informed, right))
        )
        assert (before != after) == (left.name in sums), left.name


def test_a_text_gives_no_importance_matrix_of_a_file(model: Path) -> None:
    text = model.with_name("text.txt")
    text.write_text("some text " * 100)
    result = run(model, "--quant", "q4_0", "--imatrix", text)
    assert result.exit_code == 2
    assert "folder" in result.stderr
