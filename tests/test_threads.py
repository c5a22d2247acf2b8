"""Thread counts: what was asked for, else what was tuned, else what the cores suggest; each with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeai.cores import Cores
from edgeai.device import CPU
from edgeai.plan import LoadOptions
from edgeai.threads import choose_threads
from edgeai.tuning import Tuned, kind_of, read_tuned, remember
from tests.test_plan import LLAMA, machine, make_plan
from tests.test_plan import plan as planned


def cpu(
    cores: Cores | None = None, *, physical: int = 4, logical: int = 4, usable: int = 4, quota: float | None = None
) -> CPU:
    return CPU(name="x", physical=physical, logical=logical, usable=usable, quota=quota, isa=(), cores=cores)


HYBRID = Cores(performance=6, efficiency=8, helpful=8)


@pytest.mark.parametrize(
    ("machine_cpu", "decode", "batch", "reason"),
    [
        (cpu(), 4, 4, "4 physical cores"),
        (cpu(Cores(performance=1), usable=1), 1, 1, "1 physical core that"),
        (cpu(Cores(performance=8), physical=8, logical=16, usable=16), 8, 8, "share one arithmetic unit"),
        (cpu(Cores(performance=1), physical=8, logical=16, usable=2), 1, 1, "1 physical core that"),
        (cpu(HYBRID, physical=14, logical=20, usable=20), 6, 14, "help with prompts only"),
        (cpu(Cores(performance=4, efficiency=4), physical=8, usable=8), 4, 4, "are left out"),
        (cpu(Cores(performance=8), physical=8, usable=2, quota=1.5), 2, 2, "the cgroup allows 1.5 cores"),
        (cpu(Cores(performance=8), physical=8, usable=1, quota=0.5), 1, 1, "the cgroup allows 0.5 cores"),
        (cpu(HYBRID, physical=14, usable=8, quota=8.0), 6, 8, "6 performance cores"),
    ],
)
def test_cores_suggest_threads(machine_cpu: CPU, decode: int, batch: int, reason: str) -> None:
    found = choose_threads(machine_cpu, decode=None, batch=None, tuned=None)
    assert (found.decode, found.batch) == (decode, batch)
    assert reason in " ".join(found.why)


def test_threads_asked_for_win_over_everything() -> None:
    tuned = Tuned(threads=2, threads_batch=3)
    one = choose_threads(cpu(), decode=5, batch=None, tuned=tuned)
    assert (one.decode, one.batch) == (5, 5)
    assert "asked for" in one.why[0]
    batch = choose_threads(cpu(), decode=None, batch=7, tuned=tuned)
    assert (batch.decode, batch.batch) == (2, 7)


def test_a_plan_uses_what_was_tuned_and_says_so() -> None:
    kind = kind_of(LLAMA)
    tuned = replace(machine(), tuned={kind: Tuned(threads=1, threads_batch=3)})
    found = planned(LLAMA, tuned)
    assert (found.threads, found.threads_batch) == (1, 3)
    assert any(f"{kind}, found by edgeai bench --tune" in line for line in found.why)
    assert planned(LLAMA, tuned, threads=2).threads_batch == 2
    bigger = replace(LLAMA, size_bytes=900_000_000)
    assert make_plan(bigger, tuned, LoadOptions()).threads == machine().cpu.threads


def test_kinds_are_type_and_size() -> None:
    sizes = {1: 1, 1 << 20: 1, (1 << 20) + 1: 2, 100_000_000: 128, 4_000_000_000: 4096}
    assert [kind_of(replace(LLAMA, size_bytes=size)) for size in sizes] == [
        f"Q4_0 up to {mib} MiB" for mib in sizes.values()
    ]


def test_what_was_tuned_is_found_again_on_the_same_machine_only(tmp_path: Path) -> None:
    remember(tmp_path, "cpu", 4, "Q4_0", Tuned(threads=3, threads_batch=4))
    remember(tmp_path, "cpu", 4, "Q8_0", Tuned(threads=1, threads_batch=2))
    assert read_tuned(tmp_path, "cpu", 4) == {
        "Q4_0": Tuned(threads=3, threads_batch=4),
        "Q8_0": Tuned(threads=1, threads_batch=2),
    }
    assert read_tuned(tmp_path, "cpu", 2) == {}
    assert read_tuned(tmp_path, "other", 4) == {}


@pytest.mark.parametrize(
    "entry",
    ["3", '{"threads": 0, "threads_batch": 1}', '{"threads": true, "threads_batch": 1}', '{"threads": 2}', "[]"],
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, entry: str) -> None:
    remember(tmp_path, "cpu", 4, "Q4_0", Tuned(threads=3, threads_batch=4))
    file = tmp_path / "threads.json"
    file.write_text(file.read_text().replace('{"threads": 3, "threads_batch": 4}', entry))
    assert read_tuned(tmp_path, "cpu", 4) == {}
    file.write_text("not JSON")
    assert read_tuned(tmp_path, "cpu", 4) == {}
