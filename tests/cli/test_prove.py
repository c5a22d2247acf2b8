"""`edgeai prove`, the passport in `edgeai show`, and the warning of `edgeai run`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from converters.header import read_header
from converters.patch import patch_keys
from edgeai import pipeline
from edgeai.cli import cli
from edgeai.evaluation import passport
from tests.checkpoints import edit_json, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its proved file, made once."""
    place = tmp_path_factory.mktemp("made é")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")
        pipeline.convert(make(place / "m"), place / "m.gguf", "q8_0")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")
    return Path(shutil.copytree(made, tmp_path / "p"))


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def snapshot(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_file_is_proved_and_nothing_is_written(place: Path) -> None:
    before = snapshot(place)
    result = run("prove", place / "m", place / "m.gguf")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"is the model in {place / 'm'}\n")
    assert "mean KL on text, nats" in result.stderr
    assert "warning: the reference of the proof is the unquantized export" in result.stderr
    assert snapshot(place) == before


def test_json_is_one_object_and_the_exit_code_says_the_same(place: Path) -> None:
    result = run("prove", place / "m", place / "m.gguf", "--json", "--max-kl", "1e-9")
    found = json.loads(result.stdout)
    assert result.exit_code == 9
    assert found.keys() == {"path", "source", "quant", "sha256", "report", "measured", "timings", "warnings"}
    assert not found["report"]["ok"]
    assert [row["name"] for row in found["report"]["rows"] if not row["ok"]] == ["mean KL on text, nats"]
    assert found["measured"]["mean_kl"] > 1e-9


def test_the_passport_is_written_when_asked_for(place: Path) -> None:
    paper = place / "m.gguf.passport.json"
    paper.unlink()
    assert run("prove", place / "m", place / "m.gguf", "--write").exit_code == 0
    assert json.loads(paper.read_text())["report"]["ok"]
    assert run("prove", place / "m", place / "m.gguf", "--write").exit_code == 0
    paper.write_text("mine")
    assert run("prove", place / "m", place / "m.gguf", "--write").exit_code == 2
    assert paper.read_text() == "mine"


def test_a_source_of_other_shapes_is_a_verdict_and_no_crash(place: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", hidden_size=32, padding=16)
    result = run("prove", other, place / "m.gguf")
    assert result.exit_code == 9
    assert "FAIL" in result.stderr
    assert "vocabulary" in result.stderr
    assert "embedding length" in result.stderr


def test_a_source_of_the_same_shape_and_other_weights_is_found(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = place / "m" / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file(tensors | {name: tensors[name][::-1].copy()}, weights, metadata={"format": "pt"})
    assert run("prove", place / "m", place / "m.gguf").exit_code == 9


def test_a_file_whose_type_is_not_stated_is_proved_by_what_it_is(place: Path) -> None:
    patch_keys(place / "m.gguf", {"general.file_type": 0})
    result = run("prove", place / "m", place / "m.gguf", "--json")
    assert (result.exit_code, json.loads(result.stdout)["quant"]) == (0, "Q8_0")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["m", "m"], 3, "is not a file"),
        (["m", "m/config.json"], 3, "not a GGUF file"),
        (["m.gguf", "m.gguf"], 3, "a model folder is needed"),
        (["m", "none.gguf"], 3, "none.gguf"),
        (["m", "m.gguf", "--max-kl", "0"], 2, "--max-kl 0.0 is no limit"),
        (["m", "m.gguf", "--max-kl", "nan"], 2, "no limit"),
        (["m", "m.gguf", "--eval-text", "none.txt"], 2, "none.txt"),
    ],
)
def test_bad_input_is_one_clear_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(place)
    result = run("prove", *arguments)
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "is empty"), (b"\xff\xfe", "not UTF-8"), (b"a few words", "at least")]
)
def test_a_text_that_says_nothing_is_refused_before_the_work(place: Path, data: bytes, said: str) -> None:
    text = place / "t.txt"
    text.write_bytes(data)
    for verb in (["prove", place / "m", place / "m.gguf"], ["convert", place / "m", "-o", place / "n.gguf"]):
        result = run(*verb, "--eval-text", text)
        assert result.exit_code == 2, result.stderr
        assert said in result.stderr
        assert "running" not in result.stderr
    assert not (place / "n.gguf").exists()


def test_another_text_is_used(place: Path) -> None:
    text = place / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    found = [
        json.loads(run("prove", place / "m", place / "m.gguf", "--json", *more).stdout)["measured"]
        for more in ([], ["--eval-text", text])
    ]
    assert found[0]["text_sha256"] != found[1]["text_sha256"]


def test_max_kl_fails_a_conversion(place: Path) -> None:
    result = run("convert", place / "m", "-o", place / "n.gguf", "--quant", "q4_0", "--max-kl", "1e-6")
    assert result.exit_code == 9
    assert "mean KL" in result.stderr
    assert not (place / "n.gguf").exists()


def test_show_prints_the_passport_beside_the_file(place: Path) -> None:
    shown = run("show", place / "m.gguf").stdout
    assert "passed" in shown
    assert "mean KL on text, nats" in shown
    facts = json.loads(run("show", place / "m.gguf", "--json").stdout)["passport"]
    assert (facts["found"], facts["ok"], facts["changed"]) == ("beside", True, False)


def test_show_takes_the_keys_of_a_file_that_is_alone(place: Path) -> None:
    (place / "m.gguf.passport.json").unlink()
    facts = json.loads(run("show", place / "m.gguf", "--json").stdout)["passport"]
    assert (facts["found"], facts["ok"], facts["facts"]["reference"]) == ("inside", True, "runtime")
    assert "mean kl" in run("show", place / "m.gguf").stdout


def test_show_says_that_a_file_was_changed(place: Path) -> None:
    with (place / "m.gguf").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x01")
    assert "was changed after" in run("show", place / "m.gguf").stdout


def test_show_survives_a_passport_that_is_none(place: Path) -> None:
    paper = place / "m.gguf.passport.json"
    for text in ("", "[]", "{", "[" * 100000, json.dumps({**json.loads(paper.read_text()), "report": {"rows": [1]}})):
        paper.write_text(text)
        assert run("show", place / "m.gguf").exit_code == 0


def test_run_warns_of_a_file_that_failed_and_strict_refuses_it(place: Path) -> None:
    assert "proof" not in run("run", place / "m.gguf", "hi", "--raw", "-n", "2").stderr
    (place / "m.gguf.passport.json").unlink()
    patch_keys(place / "m.gguf", {"edgeai.passport.ok": False})
    assert "failed its proof" in run("run", place / "m.gguf", "hi", "--raw", "-n", "2").stderr
    assert run("run", place / "m.gguf", "hi", "--raw", "-n", "2", "--strict").exit_code == 1


def test_run_warns_of_a_failed_passport_beside_a_file_from_elsewhere(place: Path) -> None:
    assert run("prove", place / "m", place / "m.gguf", "--write", "--max-kl", "1e-9").exit_code == 9
    assert "failed its proof" in run("run", place / "m.gguf", "hi", "--raw", "-n", "2").stderr


def test_the_keys_say_what_was_measured_with_two_digits(place: Path) -> None:
    kv = read_header(place / "m.gguf").kv
    measured = json.loads((place / "m.gguf.passport.json").read_text())["measured"]
    assert kv["edgeai.passport.ok"] is True
    assert kv["edgeai.passport.mean_kl"] == pytest.approx(measured["mean_kl"], rel=0.06, abs=1e-5)
    assert kv["edgeai.passport.top1"] == pytest.approx(measured["top1"], abs=0.006)


def test_a_stop_token_that_the_file_does_not_know_fails(place: Path) -> None:
    path = place / "m" / "generation_config.json"
    if not path.exists():
        path.write_text("{}")
    edit_json(path, lambda config: config.update(eos_token_id=[2, 1]))
    result = run("prove", place / "m", place / "m.gguf")
    assert result.exit_code == 9
    assert "would not stop at the end tokens '<|im_start|>'" in result.stderr


def test_another_template_fails(place: Path) -> None:
    edit_json(place / "m" / "tokenizer_config.json", lambda config: config.update(chat_template="{{ messages[0] }}"))
    result = run("prove", place / "m", place / "m.gguf")
    assert result.exit_code == 9
    assert "not that of the source" in result.stderr


def test_two_runs_with_other_threads_give_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (place / "m.gguf").read_bytes()
    facts = passport.cpu_facts()
    monkeypatch.setattr(passport, "cpu_facts", lambda: replace(facts, physical=4, usable=4))
    monkeypatch.setattr(passport, "SMALL_BYTES", 0)
    again: Any = pipeline.convert(place / "m", place / "again.gguf", "q8_0")
    assert again.path.read_bytes() == first


@pytest.mark.parametrize("row", [{"value": 10**400}, {"interval": [0, 10**400]}, {"value": None, "interval": [[], {}]}])
def test_numbers_that_no_float_holds_are_shown_and_nothing_worse(place: Path, row: dict[str, Any]) -> None:
    paper = place / "m.gguf.passport.json"
    kept = paper.read_text()
    facts = json.loads(kept)
    facts["report"]["rows"][0] |= row
    paper.write_text(json.dumps(facts))
    try:
        result = run("show", place / "m.gguf")
    finally:
        paper.write_text(kept)
    assert result.exit_code == 0, result.output
    assert "passed" in result.stdout


@pytest.mark.parametrize("report", [{"ok": True, "rows": []}, {"ok": True}, {"ok": False}])
def test_a_report_that_contradicts_its_rows_is_no_passport(place: Path, report: dict[str, Any]) -> None:
    from edgeai.paper import read_report

    rows = json.loads((place / "m.gguf.passport.json").read_text())["report"]["rows"]
    broken = [*rows[:-1], {**rows[-1], "ok": not report["ok"]}]
    assert read_report({"rows": broken, **report}) is None
    assert read_report({"rows": rows, "ok": True}) is not None


def test_a_text_that_never_ends_is_refused(place: Path) -> None:
    os.mkfifo(place / "pipe")
    for text, said in (
        (place / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (place, "a folder"),
    ):
        result = run("prove", place / "m", place / "m.gguf", "--eval-text", text)
        assert result.exit_code == 2, result.stderr
        assert said in result.stderr


def test_a_changed_file_is_not_said_to_have_passed_as_it_is(place: Path) -> None:
    copy, paper = place / "c.gguf", place / "c.gguf.passport.json"
    copy.write_bytes((place / "m.gguf").read_bytes() + b"\0")
    paper.write_text((place / "m.gguf.passport.json").read_text())
    assert "before it was changed, by its own keys: passed" in run("show", copy).stdout


def test_an_end_token_that_is_an_ordinary_one_fails_and_is_named(place: Path) -> None:
    patch_keys(place / "m.gguf", {"tokenizer.ggml.eos_token_id": 5})
    result = run("prove", place / "m", place / "m.gguf")
    assert result.exit_code == 9, result.output
    assert "eos token" in result.stderr
