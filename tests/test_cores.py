"""Cores are counted as the machine has them and as this process may use them: made-up machines of each kind."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.cores import Cores, cpu_list, find_cores, linux_cores, macos_cores, windows_cores

CPU = "sys/devices/system/cpu"


def tree(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


def processors(groups: list[str], **each: list[object]) -> dict[str, str]:
    """One processor per entry of GROUPS, the list of the hardware threads of its core; EACH adds files named a__b for a/b."""
    found = {f"{CPU}/cpu{number}/topology/thread_siblings_list": group for number, group in enumerate(groups)}
    for name, values in each.items():
        file = name.replace("__", "/")
        found |= {f"{CPU}/cpu{number}/{file}": str(value) for number, value in enumerate(values) if value is not None}
    return found | {f"{CPU}/online": f"0-{len(groups) - 1}"}


SMT = ["0,4", "1,5", "2,6", "3,7"] * 2
ALDER_LAKE = processors(["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"])


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [(range(8), 4), ({0, 4}, 1), ({0, 1}, 2), ({0, 1, 4}, 2), ({3}, 1), (None, 4)],
)
def test_hardware_threads_of_one_core_count_once(tmp_path: Path, allowed: set[int] | None, cores: int) -> None:
    assert linux_cores(tree(tmp_path, processors(SMT)), allowed) == Cores(performance=cores)


def test_intels_efficiency_cores_are_told_by_its_own_lists(tmp_path: Path) -> None:
    root = tree(tmp_path, ALDER_LAKE | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert linux_cores(root, range(8)) == Cores(performance=2, efficiency=4, helpful=4)
    assert linux_cores(root, {0, 1, 4}) == Cores(performance=1, efficiency=1, helpful=1)


def test_a_process_bound_to_efficiency_cores_computes_on_them(tmp_path: Path) -> None:
    root = tree(tmp_path, ALDER_LAKE | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert linux_cores(root, {4, 5}) == Cores(performance=2)


def test_arm_cores_are_told_by_capacity_and_the_smallest_do_not_help(tmp_path: Path) -> None:
    capacity: list[object] = [160, 160, 160, 160, 500, 500, 1024, 1024]
    root = tree(tmp_path, processors([str(number) for number in range(8)], cpu_capacity=capacity))
    assert linux_cores(root, range(8)) == Cores(performance=2, efficiency=6, helpful=2)


def test_compact_cores_are_told_by_their_highest_frequency(tmp_path: Path) -> None:
    frequency: list[object] = [5_100_000, 5_000_000, 3_300_000, 3_300_000]
    root = tree(tmp_path, processors(["0", "1", "2", "3"], cpufreq__cpuinfo_max_freq=frequency))
    assert linux_cores(root, range(4)) == Cores(performance=2, efficiency=2, helpful=2)


def test_favoured_cores_are_no_other_kind(tmp_path: Path) -> None:
    frequency: list[object] = [5_700_000, 5_500_000, 5_200_000, 5_200_000]
    root = tree(tmp_path, processors(["0", "1", "2", "3"], cpufreq__cpuinfo_max_freq=frequency))
    assert linux_cores(root, range(4)) == Cores(performance=4)


@pytest.mark.parametrize("text", ["", "garbage", "-5", "0", "९"])
def test_odd_speeds_say_nothing(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, processors(["0", "1"], cpu_capacity=[text, text]))
    assert linux_cores(root, {0, 1}) == Cores(performance=2)


def test_a_system_that_shows_no_topology_is_not_guessed_at(tmp_path: Path) -> None:
    assert linux_cores(tmp_path, {0, 1}) is None
    assert linux_cores(tmp_path, None) is None


def test_a_list_of_the_kernel_is_read() -> None:
    assert cpu_list("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]


@given(st.text(alphabet="0123456789-, x\n", max_size=24))
def test_no_list_is_a_traceback_or_endless(text: str) -> None:
    assert len(cpu_list(text)) <= 65537 * 13


def test_this_machine_has_as_many_cores_as_the_kernel_says() -> None:
    found = find_cores(None)
    groups = {path.read_text() for path in Path("/").glob(f"{CPU}/cpu[0-9]*/topology/core_cpus_list")}
    assert found is not None
    assert found.performance + found.efficiency == len(groups)


def test_macos_computes_on_its_first_performance_level() -> None:
    m1 = {"hw.perflevel0.physicalcpu": 4, "hw.perflevel1.physicalcpu": 4, "hw.physicalcpu": 8}
    assert macos_cores(m1.get) == Cores(performance=4, efficiency=4)
    assert macos_cores({"hw.physicalcpu": 6}.get) == Cores(performance=6)
    assert macos_cores(lambda _: None) is None


def record(efficiency: int, mask: int, group: int = 0) -> bytes:
    """A SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of one core, as winnt.h lays it out on 64 bits."""
    body = struct.pack("<BB20xH", 1, efficiency, 1) + struct.pack("<QH6x", mask, group)
    return struct.pack("<II", 0, 8 + len(body)) + body


def test_windows_tells_kinds_by_efficiency_class_and_respects_affinity() -> None:
    records = record(1, 0b11) + record(1, 0b1100) + record(0, 1 << 4) + record(0, 1 << 5)
    assert windows_cores(records, None) == Cores(performance=2, efficiency=2, helpful=2)
    assert windows_cores(records, {0, 4}) == Cores(performance=1, efficiency=1, helpful=1)
    assert windows_cores(records, {4, 5}) == Cores(performance=2)


@pytest.mark.parametrize("records", [b"", b"\0" * 7, b"\0" * 64, record(0, 1)[:20]])
def test_windows_records_that_are_cut_are_no_cores(records: bytes) -> None:
    assert windows_cores(records, None) is None
