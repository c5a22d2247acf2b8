"""Joules are counted where the machine counts them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.evaluation.energy import find_meter


def package(root: Path, name: str, label: str, joules: float, most: float = 1000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(most * 1e6)}\n")
    count(folder, joules)
    return folder


def count(folder: Path, joules: float) -> None:
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_packages_add_up_and_their_parts_do_not(tmp_path: Path) -> None:
    folders = [package(tmp_path, f"intel-rapl:{index}", f"package-{index}", 5) for index in range(2)]
    part = package(tmp_path, "intel-rapl:0:0", "core", 1)
    platform = package(tmp_path, "intel-rapl:2", "psys", 1)
    meter = find_meter(tmp_path)
    for folder in (*folders, part, platform):
        count(folder, 8)
    assert meter.joules() == pytest.approx(6)
    assert meter.source == "RAPL package-0 + RAPL package-1"


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", "package-0", 990)
    meter = find_meter(tmp_path)
    seen = []
    for joules in (999, 4, 4, 10):
        count(folder, joules)
        seen.append(meter.joules())
    assert seen == pytest.approx([9, 14, 14, 20])


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    meter = find_meter(tmp_path)
    assert (meter.joules(), meter.source) == (None, None)
    assert meter.problem == "this machine shows no energy counter"


def test_a_counter_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()  # what root too cannot read as a file
    meter = find_meter(tmp_path)
    assert meter.joules() is None
    assert "intel-rapl:0/energy_uj cannot be read" in (meter.problem or "")
