"""README shows commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from edgeai.cli import cli
from tests import ledger

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^\s+\$ (?:.*\| )?(edgeai .*)$", text, flags=re.MULTILINE)
    return [part.strip() for line in found for part in line.split("&&")]


def test_readme_shows_commands() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("command", commands())
def test_command_in_readme_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, verb, *arguments = shlex.split(command)
    parser = cli.get_command(click.Context(cli), verb)
    assert parser is not None
    parser.make_context(verb, arguments)


@pytest.mark.parametrize("target", ["run", "test", "check", "bench", "help"])
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_linked_files_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_table_of_families_is_that_of_the_record() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ledger.BEGIN in text
    assert text == ledger.with_table(text, ledger.table(ledger.recorded()))
