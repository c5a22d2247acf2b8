"""The machine is described as it limits this process, not as it was sold."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from edgeai import device
from edgeai.device import CPU

CPUINFO = "processor\t: 0\nmodel name\t: Test CPU 9000\nflags\t\t: fpu avx2 avx512f amx_tile\n"


def make_root(tmp_path: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, "proc/cpuinfo": CPUINFO, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_quota_of_a_parent_group_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "150000 100000"}
    assert device.cpu_quota(make_root(tmp_path, "0::/a/b\n", files)) == 1.5


def test_quota_of_version_one_is_read(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
    }
    assert device.cpu_quota(make_root(tmp_path, "3:cpu,cpuacct:/x\n", files)) == 0.5


def test_no_limit_is_none(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"})
    assert (device.cpu_quota(root), device.memory_cgroup(root)) == (None, (None, 0))


@pytest.mark.parametrize("text", ["", "max", "garbage", "-1 100000", "0", "100000 0", "1e5 x", "٣ 100000"])
def test_odd_files_are_no_limit_and_no_traceback(tmp_path: Path, text: str) -> None:
    names = ("cpu.max", "memory.max", "memory.current", "memory.stat")
    files = {f"sys/fs/cgroup/{name}": text for name in names}
    root = make_root(tmp_path, "0::/\nnonsense\n:\n", files)
    assert device.cpu_quota(root) in (None, 1.0)
    assert device.memory_cgroup(root)[0] in (None, 0)


def test_page_cache_is_not_counted_as_used(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/job"
    files = {
        f"{folder}/memory.max": "4000",
        f"{folder}/memory.current": "3000",
        f"{folder}/memory.stat": "anon 500\ninactive_file 2000",
    }
    assert device.memory_cgroup(make_root(tmp_path, "0::/job\n", files)) == (4000, 1000)


def test_a_quota_of_one_and_a_half_cores_gives_two_usable(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000"})
    cpu = device.cpu_facts(root)
    assert cpu.usable == min(2, len(os.sched_getaffinity(0)))
    assert (cpu.name, cpu.isa) == ("Test CPU 9000", ("avx2", "avx512f", "amx_tile"))


def test_threads_are_physical_cores_that_may_be_used() -> None:
    def cpu(physical: int, usable: int) -> CPU:
        return CPU(name="x", physical=physical, logical=2 * physical, usable=usable, quota=None, isa=())

    assert [cpu(8, 16).threads, cpu(8, 3).threads, cpu(4, 1).threads] == [8, 3, 1]


def test_probe_describes_this_machine() -> None:
    found = device.probe()
    assert found.memory.total <= psutil.virtual_memory().total
    assert found.cpu.logical == psutil.cpu_count()
    assert any(entry.kind == "cpu" for entry in found.library.devices)


def test_without_a_driver_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    gpus, problem = device.nvidia_gpus()
    assert gpus == ()
    assert problem is not None
    assert "no NVIDIA driver" in problem
