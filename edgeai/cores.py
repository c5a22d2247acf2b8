"""Which physical cores this process may compute on, and which of them are the slower kind.

Hardware threads of one core share its arithmetic units, so a core counts once however many of its threads are allowed. Processors with
two kinds of cores are told apart as the system tells it: on Linux by the lists of Intel's two core types, by `cpu_capacity` or by the
highest frequency; on Windows by the efficiency class; on macOS by the performance level. The readers for Windows and macOS follow the
vendors' documentation and are tested on made-up answers only.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cores", "cpu_list", "find_cores", "linux_cores", "macos_cores", "windows_cores"]

SLOWER = 0.75
"""A core below this part of the fastest one's speed is an efficiency core. Favoured cores of one kind differ by less than 10 %, the kinds
of Intel's and ARM's hybrids by more than 35 %."""

HELPFUL = 0.4
"""An efficiency core above this part of the fastest one's speed helps to read prompts: libggml cuts a matrix product into four chunks a
thread and hands them out as threads get free (ggml-cpu/repack.cpp, ggml-cpu.c), so a core slower than that makes the others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Physical cores that this process may use: `performance` of the fastest kind, `efficiency` of slower kinds, `helpful` of those fast
    enough to help with prompts. Where all cores are alike they are all `performance`.
    """

    performance: int
    efficiency: int = 0
    helpful: int = 0


def find_cores(allowed: Iterable[int] | None, root: Path = Path("/")) -> Cores | None:
    """Return the cores behind the logical processors ALLOWED (None: all), or None where the system does not tell."""
    if sys.platform == "darwin":
        return macos_cores(_sysctl)
    if sys.platform == "win32":
        return windows_cores(_processor_records(), None if allowed is None else set(allowed))
    return linux_cores(root, allowed)


# ---- Linux


_INTEL_SLOW = ("cpu_atom", "cpu_lowpower")
"""Performance-counter units of Intel's slower cores, each with the list of its processors (the kernel's arch/x86/events/intel/core.c)."""


def linux_cores(root: Path, allowed: Iterable[int] | None) -> Cores | None:
    """Return the cores behind the processors ALLOWED as ROOT/sys describes them (Documentation/ABI/stable/sysfs-devices-system-cpu)."""
    base = root / "sys/devices/system/cpu"
    numbers = cpu_list(_read(base / "online")) if allowed is None else sorted(allowed)
    siblings = {number: _read(base / f"cpu{number}/topology/thread_siblings_list") for number in numbers}
    one_each: dict[str, int] = {}
    for number, group in siblings.items():
        if not group:
            return None
        one_each.setdefault(group, number)
    slow = {number for kind in _INTEL_SLOW for number in cpu_list(_read(root / "sys/devices" / kind / "cpus"))}
    return _classify({number: _speed(base / f"cpu{number}") for number in one_each.values()}, slow)


def _classify(speeds: dict[int, float | None], slow: set[int]) -> Cores | None:
    """Sort processors, one a core, by SPEEDS; those in SLOW are efficiency cores whatever their speed."""
    if not speeds:
        return None
    known = [speed for speed in speeds.values() if speed]
    fastest = max(known, default=1.0)
    # Frequency alone flatters an efficiency core, so a missing or equal figure of a core that is known to be slow decides nothing more.
    share = {number: (speed or fastest) / fastest for number, speed in speeds.items()}
    lesser = [number for number in speeds if number in slow or share[number] < SLOWER]
    if len(lesser) == len(speeds):  # bound to slow cores only: they are all there is
        return Cores(performance=len(speeds))
    helpful = sum(share[number] >= HELPFUL for number in lesser)
    return Cores(performance=len(speeds) - len(lesser), efficiency=len(lesser), helpful=helpful)


def _speed(folder: Path) -> float | None:
    """Return how fast a processor is, in units that only compare: its capacity (of 1024), else its highest frequency."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _read(folder / name)
        if text.isascii() and text.isdigit() and int(text):
            return float(text)
    return None


def cpu_list(text: str) -> list[int]:
    """Return the numbers in a list of the kernel's form, "0-3,8,10-11"; what is not of that form counts as nothing."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            numbers += range(int(first), min(int(last or first), int(first) + 65536) + 1)
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# ---- macOS: sysctl(3), "hw.perflevelN.physicalcpu", level 0 being the fastest


def macos_cores(sysctl: Callable[[str], int | None]) -> Cores | None:
    """Return the cores that SYSCTL names: performance level 0 and the levels below. llama.cpp computes on level 0 alone, and so do we."""
    fast = sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu")
    return Cores(performance=fast, efficiency=sysctl("hw.perflevel1.physicalcpu") or 0) if fast else None


def _sysctl(name: str) -> int | None:
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    call = ctypes.CDLL(None).sysctlbyname
    failed = call(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


# ---- Windows: GetLogicalProcessorInformationEx with RelationProcessorCore, winnt.h


_RELATION_PROCESSOR_CORE = 0


def windows_cores(records: bytes, allowed: set[int] | None) -> Cores | None:
    """Return the cores in RECORDS, a buffer of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, that have a processor in ALLOWED (None: all).

    Processor numbers are those of group 0; with several groups every core counts, since an affinity mask names one group only.
    """
    classes, at = [], 0
    while at + 48 <= len(records):
        relation, size = struct.unpack_from("<II", records, at)
        if size < 48:
            break
        # Flags, EfficiencyClass, Reserved[20], GroupCount; then GROUP_AFFINITY: Mask (8), Group (2), Reserved (6)
        efficiency, (mask, group) = records[at + 9], struct.unpack_from("<QH", records, at + 32)
        inside = allowed is None or group > 0 or any(mask >> number & 1 for number in allowed if number < 64)
        if relation == _RELATION_PROCESSOR_CORE and inside:
            classes.append(efficiency)
        at += size
    if not classes:
        return None
    fast = sum(kind == max(classes) for kind in classes)
    return Cores(performance=fast, efficiency=len(classes) - fast, helpful=len(classes) - fast)


def _processor_records() -> bytes:
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 - the attribute exists on Windows only, and mypy checks for Linux
    size = ctypes.c_uint32(0)
    kernel.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    filled = kernel.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, buffer, ctypes.byref(size))
    return buffer.raw[: size.value] if filled else b""
