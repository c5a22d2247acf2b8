"""`edgeai chaos` as it is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgeai.chaos.lab import Lab
from edgeai.cli import cli


def free_ports() -> list[str]:
    with Lab() as lab:
        return [str(lab.port), str(lab.ports["second"])]


def test_the_faults_are_listed() -> None:
    found = CliRunner().invoke(cli, ["chaos", "--list"])
    assert found.exit_code == 0
    assert " 8  eof: the stream ends in order before its end mark\n" in found.stdout
    faults = json.loads(CliRunner().invoke(cli, ["chaos", "--list", "--json"]).stdout)
    assert [fault["number"] for fault in faults] == list(range(1, 31))


def test_a_gateway_is_scored_and_the_exit_code_says_whether_all_passed() -> None:
    port, _ = free_ports()
    arguments = ["chaos", "--gateway", f"http://127.0.0.1:{port}/v1", "--listen", port, "--only"]
    good = CliRunner().invoke(cli, [*arguments, "25,1"])
    assert good.exit_code == 0, good.output
    assert good.stdout.endswith("\n1 of 1 faults as expected; 1 are not applicable to a gateway from outside\n")
    assert f"http://127.0.0.1:{port}/v1" in good.stderr
    bad = CliRunner().invoke(cli, [*arguments, "8", "--json"])
    assert bad.exit_code == 1
    card = json.loads(bad.stdout)
    assert (card["passed"], card["applicable"], card["ok"]) == (0, 1, False)
    table = CliRunner().invoke(cli, [*arguments, "8"]).stdout
    assert "\nFAIL   8  eof           eof-before-done (stream) " in table
    assert "\nok     8  eof           eof-before-done (whole) " in table


def test_random_faults_are_counted() -> None:
    port, _ = free_ports()
    found = CliRunner().invoke(
        cli, ["chaos", "--gateway", f"http://127.0.0.1:{port}/v1", "--listen", port, "--fuzz", "3", "--json"]
    )
    assert json.loads(found.stdout)["rows"][0] == {
        "name": "requests", "value": "3", "limit": "1 or more", "ok": True, "interval": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve", "9100"], "--serve and --fault go together"),
        (["--gateway", "http://127.0.0.1:1/v1"], "--gateway and --listen go together"),
        (["--key", "k"], "--second and --key are for --gateway"),
        (["--only", "31"], "there is no fault '31'"),
        (["--serve", "9100", "--fault", "nonsense"], "there is no fault 'nonsense'"),
    ],
)
def test_wrong_options_are_errors(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(cli, ["chaos", *arguments])
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way")
def test_a_fault_is_served_until_ctrl_c() -> None:
    port, _ = free_ports()
    command = [sys.executable, "-m", "edgeai", "chaos", "--serve", port, "--fault", "html-page"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"http://127.0.0.1:{port}/v1 serves 'html-page' until Ctrl-C\n"
        process.send_signal(signal.SIGINT)
        process.wait(5)
    assert process.returncode == 130
