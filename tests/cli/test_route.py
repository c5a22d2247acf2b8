"""`edgeai route` as a user types it; what decides stands in for itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.errors import UsageError

ASKED: list[tuple[Any, dict[str, Any]]] = []


class Planned:
    """What router.plan returns."""

    def __init__(self, prompt: Any) -> None:
        self.prompt = prompt

    def to_dict(self) -> dict[str, Any]:
        return {"placement": "any", "target": "local/smollm2", "text": self.prompt[-1]["content"]}

    def lines(self) -> list[str]:
        return ["first line", "second \x1b[31mline"]

    def line(self) -> str:
        return "local/smollm2 · stays here: card (1) in message 1"


def plan(prompt: Any, **options: Any) -> Planned:
    ASKED.append((prompt, options))
    if options["scope"] == "nowhere":
        raise UsageError("'nowhere' is no route", hint="routes are auto")
    return Planned(prompt)


@pytest.fixture(autouse=True)
def router(monkeypatch: pytest.MonkeyPatch) -> None:
    ASKED.clear()
    module = ModuleType("edgeai.routing.router")
    module.plan = plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgeai.routing.router", module)


def route(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, ["route", *arguments], **options)


def test_one_line_says_who_and_why() -> None:
    assert route("my card").stdout == "local/smollm2 · stays here: card (1) in message 1\n"
    assert ASKED[0][0] == [{"role": "user", "content": "my card"}]


def test_explain_has_all_lines_and_drives_no_terminal() -> None:
    out = route("x", "--explain").stdout
    assert out == "first line\nsecond \\x1b[31mline\n"


def test_json_is_one_object() -> None:
    assert json.loads(route("--json", "x").stdout)["target"] == "local/smollm2"


def test_every_option_reaches_the_decision(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("n")
    result = route(
        "text", "--policy", "cascade", "--private", "--redact", "-m", "cloud/x", "--system", "S", "--attach", str(note)
    )
    assert result.exit_code == 0, result.stderr
    prompt, options = ASKED[0]
    assert prompt == [{"role": "system", "content": "S"}, {"role": "user", "content": "text"}]
    del options["config"]
    assert options == {
        "scope": "cloud/x", "policy": "cascade", "private": True, "redact": True, "files": (note,),
    }  # fmt: skip
    route("text", "--no-redact")
    assert ASKED[1][1]["redact"] is False
    route("text")
    assert ASKED[2][1]["redact"] is None


def test_piped_text_is_taken_where_none_is_given() -> None:
    assert route(input="from é pipe\n").exit_code == 0
    assert ASKED[0][0][0]["content"] == "from é pipe\n"
    route("given", input="not this")
    assert ASKED[1][0][0]["content"] == "given"


@pytest.mark.parametrize("arguments", [(), ("",), ("  ",)])
def test_no_text_is_an_error(arguments: tuple[str, ...]) -> None:
    result = route(*arguments, input="")
    assert result.exit_code == 2
    assert "there is no text" in result.stderr


def test_a_text_without_quotes_is_an_error() -> None:
    result = route("two", "words")
    assert result.exit_code == 2
    assert "quotes" in result.stderr


def test_what_cannot_be_a_route_is_the_routers_error() -> None:
    result = route("x", "-m", "nowhere")
    assert result.exit_code == 2
    assert "'nowhere' is no route" in result.stderr


def test_an_unknown_policy_is_refused() -> None:
    assert route("x", "--policy", "cheap").exit_code == 2


def test_the_name_of_a_subcommand_after_dashes_is_a_text() -> None:
    assert route("--", "replay").exit_code == 0
    assert ASKED[0][0][0]["content"] == "replay"


# Files of texts.


def test_a_file_gives_a_line_of_json_for_each_of_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "b\u2028c"}]
    lines = [json.dumps({"text": "a"}), "", json.dumps({"messages": messages}, ensure_ascii=False)]
    file.write_text("\n".join(lines), encoding="utf-8")
    result = route("--file", str(file))
    assert [json.loads(line)["text"] for line in result.stdout.rstrip("\n").split("\n")] == ["a", "b\u2028c"]
    assert ASKED[1][0] == messages


@pytest.mark.parametrize(
    "line",
    [
        "{", "3", "[]", "{}", '{"text": 1}', '{"text": "a", "messages": []}', '{"messages": []}', '{"messages": [1]}',
        '{"messages": [{"role": "boss", "content": "x"}]}', '{"messages": [{"role": "user"}]}', '{"text": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_bad_line_is_named_before_anything_is_decided(tmp_path: Path, line: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n", encoding="utf-8")
    result = route("--file", str(file))
    assert result.exit_code == 2
    assert "line 2 of" in result.stderr
    assert result.stdout == ""
    assert ASKED == []


def test_a_text_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    assert route("x", "--file", str(tmp_path / "f")).exit_code == 2


# Subcommands.


def test_help_names_the_subcommands(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_calibrate(monkeypatch)
    out = route("--help").stdout
    for part in ("--explain", "replay", "calibrate", "[TEXT]"):
        assert part in out


def test_a_subcommand_has_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_calibrate(monkeypatch)
    assert route("calibrate", "--twice", "DATA").stdout == "calibrated DATA True\n"
    assert route("replay", "--help").stdout.startswith("Usage: cli route replay [OPTIONS] FILE")
    wrong = route("replay", "--nonsense")
    assert wrong.exit_code == 2
    assert "cli route replay --help" in wrong.stderr


def stub_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("calibrate", short_help="Calibrate.")
    @click.argument("data")
    @click.option("--twice", is_flag=True)
    def calibrate_command(data: str, twice: bool) -> None:
        click.echo(f"calibrated {data} {twice}")

    module = ModuleType("edgeai.cli.calibrate")
    module.calibrate_command = calibrate_command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgeai.cli.calibrate", module)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_replay_takes_what_logs_exports(tmp_path: Path, form: str) -> None:
    row = {
        "seq": 1, "kind": "request", "facts": {"placement": "local_only", "prompt_tokens": 1}, "state": {"local": {"model": "s"}},
        "decision": {"target": "local/s"}, "answered_by": "local/s", "attempts": [], "cost_usd": 0.0, "usage": None,
    }  # fmt: skip
    file = tmp_path / "export.json"
    file.write_text(
        json.dumps([row], indent=2) if form == "array" else json.dumps(row) + "\n" + json.dumps(row | {"seq": 2})
    )
    result = route("replay", str(file), "--policy", "cloud-first", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["requests"], found["moved"], found["policy"]) == (1 if form == "array" else 2, 0, "cloud-first")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "3"])
def test_what_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(text)
    result = route("replay", str(file))
    assert result.exit_code == 2
    assert "edgeai logs --json" in result.stderr


def test_a_file_without_a_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    result = CliRunner().invoke(cli, ["route", "--file", str(tmp_path / "empty.jsonl"), "--json"])
    assert result.exit_code == 2
    assert "is empty" in result.stderr
