"""`edgeai convert` of a LoRA folder: an adapter file, or merged into its base, proved against PEFT in torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from converters import lora_gguf
from converters.header import read_header
from converters.lora import ADAPTER_CONFIG
from edgeai.cli import cli
from tests.checkpoints import edit_json, make
from tests.conftest import Record
from tests.converters.test_lora import ONLY_MERGED, PLAIN, train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and two adapters."""
    place = tmp_path_factory.mktemp("lora é")
    base = make(place / "base")
    train(base, place / "plain", **PLAIN)
    train(base, place / "dora", **ONLY_MERGED["dora"])
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, args)])


def test_an_adapter_file_is_proved_against_peft(place: Path) -> None:
    result = run(place / "plain", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    rows = {row["name"]: row for row in done["report"]["rows"]}
    assert rows["F32 logits against torch: NMSE"]["value"] < 1e-6
    assert (done["format"], done["path"]) == ("gguf-adapter", str(place / "plain-lora.gguf"))
    assert read_header(place / "plain-lora.gguf").kv["adapter.lora.alpha"] == 8


def test_a_wrong_scale_fails_the_proof(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora_gguf.halves
    monkeypatch.setattr(lora_gguf, "halves", lambda *args: (right(*args)[0], right(*args)[1] * 1.5))
    assert run(place / "plain", "--base", place / "base").exit_code == 9
    assert not (place / "plain-lora.gguf").exists()


def test_a_merged_file_is_proved_against_peft(place: Path, record_proof: Record) -> None:
    result = run(place / "dora", "--merge", "--quant", "f32", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert done["path"] == str(place / "dora.gguf")
    sources = json.loads((place / "dora.gguf.passport.json").read_text())["source"]["files"]
    assert {"config.json", ADAPTER_CONFIG, "adapter_model.safetensors"} <= sources.keys()
    rows = {row["name"]: row for row in done["report"]["rows"]}
    error = rows["F32 logits against torch: NMSE"]["value"]
    record_proof(model="LlamaForCausalLM", source="LoRA, merged", variant="DoRA", proof="F32 logits NMSE", error=error)


def test_a_base_on_the_hub_is_not_downloaded_unasked(place: Path) -> None:
    edit_json(
        place / "plain" / ADAPTER_CONFIG, lambda config: config.update(base_model_name_or_path="someone/not-there")
    )
    result = run(place / "plain")
    assert result.exit_code == 2
    assert "--base hf:someone/not-there" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("dora",), "--merge"),
        (("plain", "--quant", "q4_0"), "without --merge"),
        (("base", "--merge"), "no LoRA adapter"),
        (("plain", "--to", "hf"), "a GGUF file is read back"),
        (("plain", "--base", "plain"), "config.json"),
        (("plain", "--merge", "-o", "plain/merged.gguf"), "inside the source folder"),
    ],
)
def test_what_cannot_be_is_said_and_writes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    result = run(*args)
    assert result.exit_code in (2, 3)
    assert said in result.stderr
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ["a"], None])
def test_a_base_that_can_be_no_path_is_a_usage_error(place: Path, name: object) -> None:
    edit_json(place / "plain" / ADAPTER_CONFIG, lambda config: config.update(base_model_name_or_path=name))
    result = run(place / "plain")
    assert result.exit_code == 2
    assert "--base FOLDER" in result.stderr
