"""pull, list, show, rm and verify, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.paper import paper_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "é 模型 x"
    folder.mkdir()
    monkeypatch.setenv("EDGEAI_HOME", str(folder / "home"))
    monkeypatch.setenv("EDGEAI_CATALOGUE", str(folder / "catalogue.toml"))
    return folder


@pytest.fixture
def model(place: Path) -> Path:
    """A tiny model with a name in the catalogue, "tiny"; not pulled yet."""
    path = place / "Tiny Model.F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(2)
    writer.add_name("evil \x1b[31mname")
    writer.add_token_list(["a", "b"])
    writer.add_chat_template("{{ '\x1b[31m' }}\nsecond line")
    writer.add_float32("llama.rope.freq_base", float("nan"))
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    add(place, path)
    return path


def add(place: Path, path: Path, sha256: str | None = None) -> None:
    content = path.read_bytes()
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    (place / "catalogue.toml").write_text(
        f"""
        [models.tiny]
        description = "tiny model of a test"
        licence = "MIT"
        quant = "F32"
        sources = ["{path.name}"]
        files = [{{ path = "tiny.gguf", size_bytes = {len(content)}, sha256 = "{sha256}" }}]
        """,
        encoding="utf-8",
    )


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def test_pull_then_list_then_rm(model: Path) -> None:
    pulled = run("pull", "tiny")
    assert pulled.exit_code == 0
    assert pulled.stdout == ""
    assert "tiny: " in pulled.stderr
    assert " s\n" in pulled.stderr
    listed = run("list")
    assert listed.stdout.splitlines()[0].split() == ["NAME", "SIZE", "QUANT", "LICENCE", "PULLED"]
    assert listed.stdout.splitlines()[1].split()[0] == "tiny"
    removed = run("rm", "tiny")
    assert (removed.exit_code, removed.stdout) == (0, "")
    assert "freed" in removed.stderr
    assert run("list").stdout == ""


def test_pull_of_a_model_that_is_here_says_so(model: Path) -> None:
    run("pull", "tiny")
    again = run("pull", "tiny")
    assert again.exit_code == 0
    assert "here already" in again.stderr


def test_pull_checks_every_name_before_it_begins(model: Path) -> None:
    done = run("pull", "tiny", "tinny")
    assert done.exit_code == 3
    assert "'tinny'" in done.stderr
    assert "did you mean 'tiny'?" in done.stderr
    assert run("list").stdout == ""


def test_rm_checks_every_name_before_it_begins(model: Path) -> None:
    run("pull", "tiny")
    assert run("rm", "tiny", "nope").exit_code == 3
    assert "tiny" in run("list").stdout


def test_wrong_hash_ends_with_3_and_keeps_nothing(place: Path, model: Path) -> None:
    add(place, model, "0" * 64)
    done = run("pull", "tiny")
    assert done.exit_code == 3
    assert "sha256" in done.stderr
    assert "hint: nothing of it was kept" in done.stderr
    assert run("list").stdout == ""


def test_offline_ends_with_8(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    done = run("pull", "smollm2")
    assert done.exit_code == 8
    assert "EDGEAI_OFFLINE" in done.stderr


def test_json_of_every_verb_is_one_document(model: Path) -> None:
    pulled = json.loads(run("pull", "tiny", "--json", "-q").stdout)
    assert [(item["name"], item["pulled"]) for item in pulled] == [("tiny", True)]
    listed = json.loads(run("list", "--json").stdout)
    assert [item["name"] for item in listed] == ["tiny"]
    assert listed[0]["path"] == pulled[0]["path"]
    shown = json.loads(run("show", "tiny", "--json").stdout)
    assert (shown["params"], shown["licence"], shown["claimed_quant"]) == (128, "MIT", "Q4_0")
    assert shown["metadata"]["llama.rope.freq_base"] is None  # JSON has no NaN
    verified = json.loads(run("verify", "--json").stdout)
    assert [(item["name"], item["ok"]) for item in verified] == [("tiny", True)]
    removed = json.loads(run("rm", "tiny", "--json").stdout)
    assert removed == [{"name": "tiny", "freed_bytes": model.stat().st_size}]
    assert json.loads(run("list", "--json").stdout) == []


def test_quiet_is_quiet(model: Path) -> None:
    for args in (("pull", "tiny"), ("verify", "tiny"), ("rm", "tiny")):
        assert run(*args, "-q").stderr == ""


def test_list_all_adds_what_can_be_pulled(model: Path) -> None:
    run("pull", "tiny")
    rows = {line.split()[0]: line for line in run("list", "--all").stdout.splitlines()[1:]}
    assert {"tiny", "smollm2", "gemma3-270m", "minilm"} <= set(rows)
    assert "tiny model of a test" in rows["tiny"]


def test_list_of_nothing_says_how_to_go_on(model: Path) -> None:
    done = run("list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "list --all" in done.stderr


def test_show_has_its_sections_and_what_the_file_claims(model: Path) -> None:
    run("pull", "tiny")
    lines = run("show", "tiny").stdout.splitlines()
    titles = [line.strip() for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert titles == ["Model", "Tokenizer", "Tensors", "Lineage", "Licence", "Passport"]
    assert any("F32 (the file says Q4_0)" in line for line in lines)


def test_show_takes_a_path(model: Path) -> None:
    done = run("show", str(model))
    assert done.exit_code == 0
    assert "Tiny Model" in done.stdout
    assert "not stated" in done.stdout


def test_show_prints_the_template_as_it_is(model: Path) -> None:
    assert run("show", str(model), "--template").stdout == "{{ '\x1b[31m' }}\nsecond line\n"


def test_metadata_does_not_drive_the_terminal(place: Path, model: Path) -> None:
    evil = model.rename(place / "model.gguf")  # a file without a name of its own shows the one inside
    shown = run("show", str(evil)).stdout
    assert "\x1b" not in shown
    assert r"evil \x1b[31mname" in shown


def test_model_without_a_template_ends_with_3(place: Path, model: Path) -> None:
    writer = gguf.GGUFWriter(place / "bare.gguf", "llama")
    writer.add_tensor("a", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("show", str(place / "bare.gguf"), "--template")
    assert done.exit_code == 3
    assert "no chat template" in done.stderr


def test_verify_names_each_harmed_file_and_ends_with_3(place: Path, model: Path) -> None:
    run("pull", "tiny")
    blob = next((place / "home" / "blobs").iterdir())
    blob.write_bytes(b"!" + blob.read_bytes()[1:])
    done = run("verify", "tiny")
    assert done.exit_code == 3
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["BAD   tiny/tiny.gguf"]
    assert "edgeai rm tiny; edgeai pull tiny" in done.stderr
    as_json = run("verify", "tiny", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)[0]["ok"] is False


def test_verify_of_a_path_checks_the_extents(model: Path) -> None:
    good = run("verify", str(model))
    assert (good.exit_code, good.stdout) == (0, f"ok    {model}\n")
    os.truncate(model, model.stat().st_size - 5)
    bad = run("verify", str(model))
    assert bad.exit_code == 3
    assert "are missing" in bad.stdout


def test_verify_of_a_path_finds_bytes_that_are_not_those_of_its_passport(model: Path) -> None:
    facts = {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "quant": "F16", "source": {},
             "tools": {}, "report": {"ok": True, "rows": []}}  # fmt: skip
    paper_of(model).write_text(json.dumps(facts))
    good = run("verify", str(model))
    assert (good.exit_code, good.stdout) == (0, f"ok    {model}\nok    {model}, by its passport\n")
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    bad = run("verify", str(model))
    assert bad.exit_code == 3
    assert f"BAD   {model}, by its passport: sha256 {hashlib.sha256(data).hexdigest()}, and" in bad.stdout


@pytest.mark.parametrize("verb", ["show", "verify", "rm", "pull"])
def test_unknown_model_ends_with_3_and_a_hint(model: Path, verb: str) -> None:
    done = run(verb, "tinyy")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "did you mean 'tiny'?" in done.stderr


def test_damaged_manifest_is_named_and_the_others_are_listed_and_verified(place: Path, model: Path) -> None:
    run("pull", "tiny")
    (place / "home" / "manifests" / "bad.json").write_text("{}")
    listed = run("list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["NAME", "tiny"]
    assert "warning: 'bad' is left out" in listed.stderr
    assert "edgeai pull bad" in listed.stderr
    assert run("list", "--strict").exit_code == 1
    verified = run("verify")
    assert verified.exit_code == 3
    assert [line.split(":")[0] for line in verified.stdout.splitlines()] == ["BAD   bad", "ok    tiny/tiny.gguf"]
    assert "edgeai pull bad" in verified.stderr
    assert "rm" not in verified.stderr


def test_wrong_catalogue_ends_with_2(place: Path) -> None:
    (place / "catalogue.toml").write_text("colour = 1", encoding="utf-8")
    done = run("list", "--all")
    assert done.exit_code == 2
    assert "'colour'" in done.stderr


def test_program_works_as_a_process_with_any_path(model: Path) -> None:
    command = [sys.executable, "-m", "edgeai"]
    pulled = subprocess.run([*command, "pull", "tiny"], capture_output=True, text=True, encoding="utf-8")
    assert (pulled.returncode, pulled.stdout) == (0, "")
    shown = subprocess.run([*command, "list", "--json"], capture_output=True, text=True, encoding="utf-8", check=True)
    assert Path(json.loads(shown.stdout)[0]["path"]).exists()
