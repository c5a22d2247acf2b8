"""`edgeai run --schema` and its like: stdout is the answer in its form, and what cannot be is an error before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli


def run(model: Path | str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", str(model), "A dog: ", "--threads", "1", "--seed", "1", *arguments])


def test_a_schema_makes_stdout_json(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "--schema", "ok bool, kind: cat|dog, tags list[bool]{1,2}")
    answer = json.loads(result.stdout)
    assert (result.exit_code, list(answer)) == (0, ["ok", "kind", "tags"])
    assert answer["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (["--choice", "yes", "--choice", "no"], {"yes\n", "no\n"}),
        (["--regex", "[0-3]"], {"0\n", "1\n", "2\n", "3\n"}),
        (["--schema", '{"const": "x"}'], {'"x"\n'}),
    ],
)
def test_other_forms_hold_stdout_too(tiny_gguf: Path, options: list[str], answers: set[str]) -> None:
    assert run(tiny_gguf, *options).stdout in answers


def test_a_grammar_comes_from_a_file(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "grammar.lark"
    path.write_text('start: "é" DIGIT\nDIGIT: /[0-9]/', encoding="utf-8")
    result = run(tiny_gguf, "--grammar", str(path))
    assert result.stdout[:1] == "é"
    assert result.stdout[1:].strip().isdigit()


def test_a_cut_answer_is_exit_4_with_what_came_on_stdout(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "--schema", "name", "-n", "3")
    assert result.exit_code == 4
    assert '{"name":"'.startswith(result.stdout.strip()[:9])
    assert "before it was whole" in result.stderr
    assert "hint: " in result.stderr


def test_a_cut_answer_in_json_says_so_and_is_exit_4(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "--schema", "name", "-n", "3", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["finish_reason"]) == (4, "length")
    assert "incomplete-output" in [notice["code"] for notice in found["warnings"]]


def test_the_hint_of_a_cut_answer_is_of_its_form_and_of_the_command_line(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "--regex", "[a-z]{80}", "-n", "3")
    assert "regex" in result.stderr
    assert "schema" not in result.stderr
    assert "--max-tokens" in result.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--schema", "name, age itn"], "'itn'"),
        (["--schema", "none.json"], "'none.json'"),
        (["--schema", '{"propertis": {}}'], "'propertis'"),
        (["--schema", "{"], "JSON"),
        (["--schema", ""], "no field"),
        (["--schema", "a", "--regex", "b"], "exclude"),
        (["--schema", '{"type": "objekt"}'], "objekt"),
        (["--schema", '{"type": "string", "pattern": "["}'], "pattern"),
        (["--schema", "true"], "says nothing"),
        (["--regex", ""], "empty"),
        (["--regex", "(?=a)"], "look-around"),
        (["--grammar", "/no/where.lark"], "/no/where.lark"),
        (["--choice", ""], "choice"),
    ],
)
def test_a_form_that_cannot_be_is_refused_before_the_model_is_looked_at(options: list[str], named: str) -> None:
    result = run("/no/such/model.gguf", *options)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "\nhint: " in result.stderr
    assert result.stdout == ""


def test_a_form_needs_a_prompt(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeai.cli.run.is_terminal", lambda _: True)
    result = CliRunner().invoke(cli, ["run", str(tiny_gguf), "--choice", "a"])
    assert (result.exit_code, "needs a prompt" in result.stderr) == (2, True)
