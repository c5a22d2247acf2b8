"""What every bench script shares: the machine, paired runs, and results that say how they were made."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    from edgeai.device import cpu_facts

    cpu = cpu_facts()
    return {
        "cpu": cpu.name,
        "threads": cpu.threads,
        "isa": list(cpu.isa),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit that was measured, with `+` when the tree has changes."""
    described = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True)
    return described.stdout.strip()


def pairs(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Measure both in turns, ROUNDS times, and return medians, all values, and the ratio of the medians (ours / theirs)."""
    values: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        values["ours"].append(ours())
        values["theirs"].append(theirs())
    medians = {name: statistics.median(series) for name, series in values.items()}
    return {**medians, "ratio": medians["ours"] / medians["theirs"], "values": values}


def wall_s(command: Sequence[str]) -> float:
    """Return the seconds that a whole process takes. Raises CalledProcessError when it fails."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def save(name: str, results: dict[str, Any], *, keep: bool = True, show: bool = True) -> None:
    """Write results/NAME.json with machine, commit and command, and print the figures; with KEEP or SHOW false, only the other."""
    record = {
        "command": " ".join(Path(part).name for part in sys.argv),
        "commit": commit(),
        "machine": machine(),
        **results,
    }
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for key, value in results.items() if show else ():
        if isinstance(value, dict) and "ratio" in value:
            print(f"{name} {key}: ours {value['ours']:.4g}, theirs {value['theirs']:.4g}, ratio {value['ratio']:.3f}")
        else:
            print(f"{name} {key}: {value}")
