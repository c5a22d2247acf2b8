"""`edgeai prove` of ONNX models: the source's own passes, every other one fails by name, and the passport says so at `run`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.onnx.header import read_header
from converters.onnx.metadata import load_graph, write_metadata
from edgeai.cli import cli
from edgeai.evaluation import passport
from edgeai.exporting.contents import context_rows
from edgeai.exporting.proving import types_of
from tests.checkpoints import InProcessTorch, edit_json, make
from tests.families import VARIANTS, make_variant

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def prove(*args: str | Path) -> tuple[int, dict[str, Any]]:
    """Return the exit code and {row: (ok, value)}, with the whole verdict under ""."""
    result = run("prove", *args, "--json")
    assert result.exit_code in (0, 9), result.stderr
    found = json.loads(result.stdout)
    return result.exit_code, {row["name"]: (row["ok"], row["value"]) for row in found["report"]["rows"]} | {"": found}


def failing(rows: dict[str, Any]) -> list[str]:
    return [name for name, found in rows.items() if name and not found[0]]


@pytest.fixture(autouse=True, scope="module")
def torch_in_this_process() -> Iterator[None]:
    """Run the source in this process: torch is imported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passport, "Child", InProcessTorch)
        yield


@pytest.fixture
def tiny(onnx_tiny_for_verbs: Path, tmp_path: Path) -> Path:
    """A copy of the language model."""
    return Path(shutil.copytree(onnx_tiny_for_verbs, tmp_path / "copy"))


@pytest.fixture
def digits(onnx_classifiers: Path, tmp_path: Path) -> Path:
    """A copy of the classifier of pictures, without its passport."""
    return Path(shutil.copy(onnx_classifiers / "cnn.onnx", tmp_path / "d.onnx"))


def turn_round(path: Path) -> None:
    """Put the rows of the largest tensor in the file PATH into the other order."""
    model = load_graph(path)
    tensor = max(model.graph.initializer, key=lambda item: int(np.prod(item.dims)))
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(model, path)


# ---- language models


def test_a_folder_is_proved_by_what_is_in_it_without_a_word_of_its_own(tiny: Path) -> None:
    for name in ("edgeai.json", "passport.json"):
        (tiny / name).unlink()
    before = sorted(path.name for path in tiny.iterdir())
    code, rows = prove(TINY, tiny)
    assert code == 0, failing(rows)
    assert next(iter(rows)) == "architecture and shapes"
    assert {"onnx.checker", "token ids", "logits against torch: NMSE", "mean KL on text, nats"} <= set(rows)
    assert not any(name.startswith("F32 logits") for name in rows)  # no export is made
    assert rows["weights"][1].startswith("1443072: 99.9% INT4")
    assert (rows[""]["quant"], rows[""]["measured"]["reference"]) == ("INT4", "torch")
    assert sorted(path.name for path in tiny.iterdir()) == before


def test_the_passport_is_written_into_the_folder_and_read_by_run_show_and_verify(tiny: Path) -> None:
    assert run("prove", TINY, tiny, "--write").exit_code == 0
    assert json.loads((tiny / "passport.json").read_text())["file"] == "copy"
    assert "by its passport" in run("verify", tiny).stdout
    assert "proof" not in run("run", tiny, "hi", "-n", "2").stderr
    assert run("prove", TINY, tiny, "--write", "--max-kl", "1e-9").exit_code == 9
    assert "failed its proof" in run("run", tiny, "hi", "-n", "2").stderr
    assert run("run", tiny, "hi", "-n", "2", "--strict").exit_code == 1
    assert "FAILED" in run("show", tiny).stdout
    assert json.loads(run("show", tiny, "--json").stdout)["passport"]["ok"] is False


def test_other_weights_of_the_same_shape_fail(tiny: Path) -> None:
    data = bytearray((tiny / "model.onnx.data").read_bytes())
    codes = max(read_header(tiny / "model.onnx").tensors, key=lambda tensor: tensor.nbytes * (tensor.dtype == "uint8"))
    assert codes.offset is not None
    place = slice(codes.offset, codes.offset + codes.nbytes)
    data[place] = data[place][::-1]
    (tiny / "model.onnx.data").write_bytes(data)
    code, rows = prove(TINY, tiny)
    assert code == 9
    assert "mean KL on text, nats" in failing(rows)


def test_the_folder_of_another_model_is_a_verdict(tiny: Path, tmp_path: Path) -> None:
    result = run("prove", make(tmp_path / "other"), tiny)
    assert result.exit_code == 9
    assert "FAIL hidden size" in " ".join(result.stderr.split())
    assert "NMSE" not in result.stderr


@pytest.mark.parametrize(
    ("place", "value", "row"),
    [
        ("eos_token_id", [1, 5], "end token"),
        ("eos_token_id", 99_999, "end token"),
        ("eos_token_id", 5, "end token"),
    ],
)
def test_settings_that_are_not_the_sources_fail(tiny: Path, place: str, value: Any, row: str) -> None:
    edit_json(tiny / "genai_config.json", lambda config: config["model"].update({place: value}))
    code, rows = prove(TINY, tiny)
    assert (code, row in failing(rows)) == (9, True)


def test_a_longer_context_than_the_sources_fails_and_a_shorter_one_does_not() -> None:
    plan = plan_model(open_checkpoint(TINY))
    found = {
        size: [row.ok for row in context_rows(size, plan)]
        for size in (plan.context // 2, plan.context, 2 * plan.context)
    }
    assert list(found.values()) == [[True], [], [False]]


def test_other_tokens_fail_and_are_named(tiny: Path) -> None:
    def swap(spec: dict[str, Any]) -> None:
        vocab = spec["model"]["vocab"]
        first, second = list(vocab)[700:702]
        vocab[first], vocab[second] = vocab[second], vocab[first]

    edit_json(tiny / "tokenizer.json", swap)
    code, rows = prove(TINY, tiny)
    assert (code, failing(rows)) == (9, ["tokens"])
    assert "2 differ" in rows["tokens"][1]


# ---- embedding models


def test_an_embedder_is_proved_with_and_without_a_word_of_its_own(onnx_embedder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(onnx_embedder, tmp_path / "e"))
    for name in ("edgeai.json", "passport.json"):
        (place / name).unlink()
    code, rows = prove(onnx_embedder.with_name("bert"), place, "--write")
    assert code == 0, failing(rows)
    assert rows[""]["quant"] == "F16"
    assert any(name.startswith("vectors of texts: least cosine") for name in rows)
    assert not any(name.startswith("F32") for name in rows)
    assert json.loads((place / "passport.json").read_text())["report"]["ok"]
    assert len(json.loads(run("run", place, "hi").stdout)) > 8


def test_an_embedder_of_other_weights_fails(onnx_embedder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(onnx_embedder, tmp_path / "e"))
    turn_round(place / "model.onnx")
    code, rows = prove(onnx_embedder.with_name("bert"), place)
    assert code == 9
    assert "vectors of texts against torch: NMSE" in failing(rows)


def test_an_embedder_of_another_size_fails_before_it_runs(onnx_embedder: Path, tmp_path: Path) -> None:
    code, rows = prove(make_variant(tmp_path / "wide", VARIANTS["bert-256-cls"]), onnx_embedder)
    assert (code, "output" in failing(rows)) == (9, True)
    assert not any("cosine" in name for name in rows)


# ---- classifiers


@pytest.mark.parametrize("name", ["cnn", "text-encoder"])
def test_a_classifier_is_proved_on_its_test_set(onnx_classifiers: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(onnx_classifiers / f"{name}.onnx", tmp_path / "c.onnx"))
    code, rows = prove(onnx_classifiers / name, path, "--write")
    assert code == 0, failing(rows)
    assert next(iter(rows)) == "inputs and outputs"
    assert any(row.startswith("accuracy lost in INT8") for row in rows)
    assert json.loads((tmp_path / "c.onnx.passport.json").read_text())["sha256"] == rows[""]["sha256"]
    assert "by its passport" in run("verify", path).stdout


def test_a_claim_does_not_make_the_limits_milder(onnx_classifiers: Path, digits: Path) -> None:
    write_metadata(digits, {"edgeai.quant": "F32"})
    code, rows = prove(onnx_classifiers / "cnn", digits)
    assert (code, rows[""]["quant"]) == (0, "INT8")
    for header, claim, found in (
        (read_header(digits), "INT4", ("INT8", "INT8")),
        (read_header(digits), "INT8-DYNAMIC", ("INT8-DYNAMIC", "INT8")),
    ):
        assert types_of(header, claim) == found


def test_a_classifier_of_other_weights_fails(onnx_classifiers: Path, digits: Path) -> None:
    turn_round(digits)
    code, rows = prove(onnx_classifiers / "cnn", digits)
    assert code == 9
    assert "INT8 outputs against torch: NMSE" in failing(rows)


def test_exchanged_labels_fail(onnx_classifiers: Path, digits: Path) -> None:
    schema = json.loads(read_header(digits).metadata["edgeai.schema"])
    schema["labels"] = schema["labels"][::-1]
    write_metadata(digits, {"edgeai.schema": json.dumps(schema)})
    code, rows = prove(onnx_classifiers / "cnn", digits)
    assert (code, failing(rows)) == (9, ["schema, labels"])


def test_a_classifier_with_another_tokenizer_fails(onnx_classifiers: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(onnx_classifiers / "text-encoder.onnx", tmp_path / "t.onnx"))
    spec = json.loads(read_header(path).metadata["edgeai.tokenizer"])
    write_metadata(path, {"edgeai.tokenizer": json.dumps(spec | {"normalizer": {"type": "Lowercase"}})})
    code, rows = prove(onnx_classifiers / "text-encoder", path)
    assert (code, failing(rows)) == (9, ["tokenizer in the file"])


def test_run_warns_of_a_classifier_that_failed(onnx_classifiers: Path, digits: Path) -> None:
    np.save(digits.with_name("a.npy"), np.zeros((8, 8), np.uint8))
    write_metadata(digits, {"edgeai.passport.ok": "false"})
    assert "failed its proof" in run("run", digits, onnx_classifiers / "none.png").stderr
    assert "FAILED" in run("show", digits).stdout


# ---- what does not go together


def test_another_kind_of_model_is_a_verdict(onnx_classifiers: Path, onnx_embedder: Path, tiny: Path) -> None:
    for source, artifact in (
        (TINY, onnx_classifiers / "cnn.onnx"),
        (TINY, onnx_embedder),
        (onnx_embedder.with_name("bert"), tiny),
        (onnx_classifiers / "cnn", tiny),
    ):
        code, rows = prove(source, artifact)
        assert (code, failing(rows)) == (9, ["task"])


def test_options_that_mean_nothing_are_refused(onnx_classifiers: Path, onnx_embedder: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a text of a few words. " * 40)
    for source, artifact, option in (
        (onnx_classifiers / "cnn", onnx_classifiers / "cnn.onnx", ("--max-kl", "1")),
        (onnx_classifiers / "cnn", onnx_classifiers / "cnn.onnx", ("--eval-text", text)),
        (onnx_embedder.with_name("bert"), onnx_embedder, ("--max-kl", "1")),
    ):
        result = run("prove", source, artifact, *option)
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert f"leave {option[0]} out" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none", "c.onnx"), 3, "no model 'none'"),
        (("c.onnx", "c.onnx"), 3, "folder is needed"),
        ((TINY, "none.onnx"), 3, "none.onnx"),
        ((TINY, "bad.onnx"), 3, "is not valid"),
        ((TINY, "tiny/model.onnx"), 3, "name its folder"),
    ],
)
def test_bad_input_is_one_clear_error(
    onnx_classifiers: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tiny.parent)
    tiny.rename("tiny")
    shutil.copy(onnx_classifiers / "cnn.onnx", "c.onnx")
    Path("bad.onnx").write_bytes(b"\0" * 64)
    result = run("prove", *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


@pytest.mark.real
@pytest.mark.slow
def test_the_real_minilm_is_proved(minilm_path: Path, tmp_path: Path) -> None:
    from edgeai.exporting import convert_onnx

    made = convert_onnx(minilm_path, tmp_path / "minilm-onnx", "f16").path
    code, rows = prove(minilm_path, made)
    assert code == 0, failing(rows)
