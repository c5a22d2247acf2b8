"""`edgeai bench`: llama-bench's columns, the JSON of the contract, and honest refusals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from edgeai.cli import cli
from edgeai.cli.numbers import parse
from edgeai.device import cpu_facts
from edgeai.paths import home
from edgeai.tuning import read_tuned


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


SHORT = ("--pp", "8", "--tg", "2", "--repeat", "2")


def test_json_has_the_fields_of_the_contract(tiny_gguf: Path) -> None:
    result = bench(tiny_gguf, *SHORT, "--threads", "1,2", "--depth", "0,4", "--json")
    rows = json.loads(result.stdout)
    tests = ["pp8", "tg2", "pp8 @ d4", "tg2 @ d4"]
    assert [(row["test"], row["threads"]) for row in rows] == [
        (test, threads) for depth in (tests[:2], tests[2:]) for threads in (1, 2) for test in depth
    ]
    assert {
        "model", "size_bytes", "params", "backend", "threads", "gpu_layers", "test", "tok_s_mean", "tok_s_std", "n",
        "joules_per_token", "energy_source",
    } <= set(rows[0])  # fmt: skip
    assert all(row["tok_s_mean"] > 0 and row["n"] == 2 and row["backend"] == "CPU" for row in rows)


def test_the_table_has_llama_benchs_columns(tiny_gguf: Path) -> None:
    lines = bench(tiny_gguf, *SHORT).stdout.splitlines()
    names = [name.strip() for name in lines[0].strip("|").split("|")]
    assert names[:7] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert len(lines) == 4
    assert re.search(r"\| +tg2 \| +[\d.]+ ± [\d.]+ \|", lines[3])
    assert len(set(map(len, lines))) == 1


def test_streams_are_measured_through_the_engine(tiny_gguf: Path) -> None:
    [row] = json.loads(bench(tiny_gguf, *SHORT, "--streams", "3", "--json").stdout)
    assert (row["test"], row["streams"], row["n"]) == ("3x pp8+tg2", 3, 2)
    assert 0 < row["ttft_p50_s"] <= row["ttft_p95_s"]
    assert row["size_bytes"] == json.loads(bench(tiny_gguf, *SHORT, "--json").stdout)[0]["size_bytes"]  # of the library


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nowhere.gguf",), 3),
        (("--pp", "0", "--tg", "0"), 2),
        (("--threads", "0"), 2),
        (("--pp", "1.5"), 2),
        (("--repeat", "0"), 2),
        (("--tune", "--threads", "1"), 2),
        (("--streams", "2", "--depth", "8"), 2),
        (("--streams", "2", "--tg", "0"), 2),
        (("--kv-type", "q9"), 2),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_gguf: Path, arguments: tuple[str, ...], code: int) -> None:
    given = arguments if arguments[0].endswith(".gguf") else (tiny_gguf, *arguments)
    result = bench(*given)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr


def test_ctrl_c_keeps_what_is_measured(tiny_gguf: Path) -> None:
    command = [sys.executable, "-m", "edgeai", "bench", tiny_gguf, "--pp", "8", "--tg", "1000000", "--repeat", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        rows = [child.stdout.readline() for _ in range(3)]
        child.send_signal(signal.SIGINT)
        rest, error = child.communicate(timeout=60)
    assert "pp8" in rows[2]
    assert (rest, child.returncode, "Traceback" in error) == ("", 130, False)


def test_tuned_threads_are_remembered_and_used(tiny_gguf: Path) -> None:
    from edgeai.engines.opening import planned
    from edgeai.plan import LoadOptions

    result = bench(tiny_gguf, *SHORT, "--tune")
    assert result.exit_code == 0, result.stderr
    cpu = cpu_facts()
    [(kind, tuned)] = read_tuned(home() / "cache", cpu.name, cpu.usable).items()
    assert f"remembered for {kind}" in result.stderr
    assert 1 <= tuned.threads <= cpu.usable
    _, plan = planned(tiny_gguf, LoadOptions())
    assert (plan.threads, plan.threads_batch) == (tuned.threads, tuned.threads_batch)
    assert any("bench --tune" in reason for reason in plan.why)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("512", (512,)),
        ("512,128,512", (512, 128)),
        ("1-4", (1, 2, 3, 4)),
        ("1-9+4", (1, 5, 9)),
        ("1-16*2, 3", (1, 2, 4, 8, 16, 3)),
        ("4-4*1", (4,)),
        ("0-8*2", (0,)),
    ],
)
def test_numbers_are_written_as_llama_bench_takes_them(text: str, numbers: tuple[int, ...]) -> None:
    assert parse(text, 0, 1000) == numbers


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "1;2", "1.5", "4-1", "1-1000", "2000", "1-2/2", "٣", "9" * 400])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse(text, 1, 1000)


@given(st.text(alphabet="0123456789-+*, ", max_size=20))
def test_every_text_is_numbers_or_an_error(text: str) -> None:
    try:
        found = parse(text, 0, 10**6)
    except click.BadParameter:
        return
    assert 1 <= len(found) <= 64
    assert all(0 <= number <= 10**6 for number in found)
