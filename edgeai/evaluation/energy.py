"""Energy in joules, where the machine counts it: Intel's and AMD's RAPL through Linux powercap, NVIDIA GPUs through NVML.

What is counted is the whole package or the whole GPU, whoever uses it: on a machine that does other work, that work is in the figure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Counter", "Meter", "RaplCounter", "find_meter"]


class Counter(Protocol):
    """Something that counts joules."""

    name: str

    def joules(self) -> float:
        """Return the joules counted since this counter was made; it never runs backwards."""


class RaplCounter:
    """One processor package in /sys/class/powercap (the kernel's Documentation/power/powercap/powercap.rst).

    `energy_uj` starts again at 0 after `max_energy_range_uj`, which takes minutes under load: it must be read more often than that.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self.name = f"RAPL {(folder / 'name').read_text().strip()}"
        self._last = int(self._file.read_text())
        self._sum = 0

    def joules(self) -> float:
        """Return the joules since the beginning."""
        now = int(self._file.read_text())
        self._sum += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._sum / 1e6


class NvmlCounter:
    """One NVIDIA GPU (nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded, Volta and later)."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self.name = f"NVML {nvml.nvmlDeviceGetName(self._handle)}"
        self._first = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def joules(self) -> float:
        """Return the joules since the beginning."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first) / 1e3


@dataclass(frozen=True, slots=True)
class Meter:
    """The counters of this machine; without one, `problem` says why there is none."""

    counters: tuple[Counter, ...] = ()
    problem: str | None = None

    @property
    def source(self) -> str | None:
        """The names of what counts, None where nothing does."""
        return " + ".join(counter.name for counter in self.counters) or None

    def joules(self) -> float | None:
        """Return the joules counted so far, None where nothing counts."""
        return sum(counter.joules() for counter in self.counters) if self.counters else None


def find_meter(root: Path = Path("/"), *, gpus: int = 0) -> Meter:
    """Return the meter of this machine: its packages, and GPUS of its NVIDIA GPUs."""
    counters: list[Counter] = []
    problems = []
    for folder in packages(root):
        try:
            counters.append(RaplCounter(folder))
        except (OSError, ValueError) as error:
            problems.append(f"{folder / 'energy_uj'} cannot be read ({getattr(error, 'strerror', None) or error})")
    try:
        counters += _nvml(gpus)
    except _nvml_errors() as error:
        problems.append(f"the NVIDIA driver gives no energy ({error})")
    if counters:
        return Meter(counters=tuple(counters))
    return Meter(problem=problems[0] if problems else "this machine shows no energy counter")


def packages(root: Path) -> Iterator[Path]:
    """Yield the folders of the processor packages; parts of a package (core, dram) and the whole platform (psys) would count twice."""
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        with contextlib.suppress(OSError):
            if folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package"):
                yield folder


def _nvml(gpus: int) -> list[Counter]:
    if not gpus:
        return []
    import pynvml

    pynvml.nvmlInit()  # never shut down: the counters use it until the process ends
    return [NvmlCounter(pynvml, index) for index in range(gpus)]


def _nvml_errors() -> type[Exception]:
    import pynvml

    return pynvml.NVMLError  # type: ignore[no-any-return]
