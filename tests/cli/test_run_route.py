"""`edgeai run` through the router: each path it can take, with what it says of it. The endpoint is the fault lab on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeai.chaos.answers import cloud_text
from edgeai.chaos.lab import Lab
from edgeai.cli import cli

CARD = "Is 4111 1111 1111 1111 a Visa?"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(autouse=True)
def configured(lab: Lab, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with the lab as its endpoint and the tiny model on this machine."""
    lab.set("good")
    path = tmp_path / "config.toml"
    path.write_text(
        f'[routing]\npolicy = "cloud-first"\nlocal_model = "{tiny_gguf}"\n[timeouts]\nfirst_token_s = 1.0\nstall_s = 0.5\n'
        f'[[cloud]]\nname = "lab"\nbase_url = "{lab.url}"\nmodel = "lab"\napi_key = "env:LAB_KEY"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("EDGEAI_CONFIG", str(path))
    monkeypatch.setenv("LAB_KEY", "sk-lab-0123456789")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", "--max-tokens", "8", *arguments])


def test_a_public_question_is_sent_and_that_is_said(lab: Lab) -> None:
    result = run("--route", "auto", "Why?")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == cloud_text("Why?") + "\n"
    assert f"bytes left for 127.0.0.1:{lab.port}" in result.stderr


def test_a_card_number_stays_here_and_that_is_said(lab: Lab) -> None:
    result = run("--route", "auto", CARD)
    assert result.exit_code == 0, result.stderr
    assert "stays here: card (1)" in result.stderr
    assert "0 bytes left this machine" in result.stderr
    assert lab.seen == []


def test_an_endpoint_that_fails_is_followed_by_this_machine_with_a_warning(lab: Lab) -> None:
    lab.set("status-401")
    result = run("auto", "Why?")
    assert result.exit_code == 0, result.stderr
    assert "warning: local/tiny answers, because cloud/lab" in result.stderr


def test_an_answer_that_breaks_off_keeps_its_text_and_is_exit_8(lab: Lab) -> None:
    lab.set("rst-after-tokens")
    result = run("auto", "Why?")
    assert result.exit_code == 8
    assert cloud_text("Why?").startswith(result.stdout.strip())
    assert "error: cloud/lab broke off" in result.stderr


def test_an_answer_that_breaks_off_goes_on_here_where_that_is_wanted(lab: Lab) -> None:
    lab.set("rst-after-tokens")
    result = run("auto", "Why?", "--resume-local")
    assert result.exit_code == 0, result.stderr
    assert "[cloud/lab broke off here; local/tiny goes on]" in result.stdout


def test_offline_nothing_is_sent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    result = run("auto", "Why?", "--explain")
    assert result.exit_code == 0, result.stderr
    assert "not asked: forced offline" in result.stderr
    assert lab.seen == []


def test_json_has_the_whole_route(lab: Lab) -> None:
    result = run("auto", "Why?", "--json")
    done = json.loads(result.stdout)
    assert done["model"] == "cloud/lab"
    assert done["route"]["target"] == "cloud/lab"
    assert done["route"]["attempts"][0]["status"] == "ok"
    assert done["route"]["egress_bytes"] == done["route"]["attempts"][0]["sent_bytes"] > 0


def test_the_key_is_nowhere(lab: Lab) -> None:
    result = run("auto", "Why?", "--json", "--verbose", "--explain")
    assert lab.attempts[0].key == "Bearer sk-lab-0123456789"
    assert "sk-lab-0123456789" not in result.output


def test_an_endpoint_by_name_and_a_local_model_by_name(tiny_gguf: Path) -> None:
    assert "cloud/lab" in run("cloud/lab", "Why?").stderr
    private = run("cloud/lab", CARD)
    assert private.exit_code == 2
    assert "stays on this machine" in private.stderr


def test_a_model_that_is_named_beside_the_route_is_the_local_one(lab: Lab, tiny_gguf: Path) -> None:
    result = run(str(tiny_gguf), "Why?", "--route", "local-only")
    assert result.exit_code == 0, result.stderr
    assert lab.seen == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--route", "atuo", "Why?"), "did you mean 'auto'?"),
        (("auto", "Why?", "--route", "auto"), "both say who answers"),
        (("cloud/nobody", "Why?"), "there is no endpoint 'nobody'"),
        (("auto", "Why?", "--policy", "cloud"), "policy 'cloud' is not possible"),
        ((), "Missing argument 'MODEL'"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_options_of_a_route_are_refused_where_one_model_answers(tiny_gguf: Path) -> None:
    result = run(str(tiny_gguf), "Why?", "--redact")
    assert result.exit_code == 2
    assert "--redact is for routed answers" in result.stderr
    assert run(str(tiny_gguf), "Why?", "--private").exit_code == 0


def test_the_ledger_shows_what_left_and_its_chain_holds(lab: Lab) -> None:
    run("auto", "Why?")
    run("auto", CARD)
    shown = CliRunner().invoke(cli, ["logs", "--egress"])
    assert f"127.0.0.1:{lab.port}" in shown.stdout
    assert "Why?" not in shown.stdout
    verified = CliRunner().invoke(cli, ["logs", "verify"])
    assert (verified.exit_code, "2 rows" in verified.stdout) == (0, True)
