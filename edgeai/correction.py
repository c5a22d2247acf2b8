"""What was measured of a model on this machine, remembered: the next prediction is multiplied with it.

A ratio is of what was really taken to what was predicted, by device. It holds for one file (its architecture, number of weights and
bytes), one processor or GPU and one version of the native library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeai.artifact import Artifact
from edgeai.childprocess import read_memo, write_memo
from edgeai.device import Device
from edgeai.placement import CPU, Placement
from edgeai.plan import Plan

__all__ = ["LEAST", "MOST", "bounded", "ratios", "read_correction", "remember_correction"]

LEAST, MOST = 0.8, 1.5
"""What a measurement may change a prediction to. Beyond that something else has been measured, and it is not remembered."""
REMEMBERED = 200
FILE = "memory.json"


def read_correction(cache_dir: Path, artifact: Artifact, device: Device) -> dict[str, float]:
    """Return device ("CPU", "CUDA0", …) → ratio for ARTIFACT on DEVICE; nothing where it was not measured."""
    known = read_memo(cache_dir / FILE).get(_key(artifact, device))
    if not isinstance(known, dict):
        return {}
    return {
        name: bounded(ratio)
        for name, ratio in known.items()
        if type(ratio) in (int, float) and 0 < ratio < float("inf")
    }


def remember_correction(cache_dir: Path, artifact: Artifact, device: Device, ratios: Mapping[str, float]) -> None:
    """Keep those of RATIOS that can be; a change of less than one percent is not worth a write."""
    before = read_correction(cache_dir, artifact, device)
    after = before | {name: round(ratio, 4) for name, ratio in ratios.items() if bounded(ratio) == ratio}
    if all(abs(after[name] - before.get(name, 1.0)) < 0.01 for name in after):
        return
    known = read_memo(cache_dir / FILE)
    key = _key(artifact, device)
    kept = dict([item for item in known.items() if item[0] != key][-REMEMBERED + 1 :])
    write_memo(cache_dir / FILE, {**kept, key: after})


def ratios(plan: Plan, found: Placement) -> dict[str, float]:
    """Return device → how much more was allocated (FOUND) than PLAN's own arithmetic said; what no buffer is, is taken as predicted."""
    actual = {share.device: share.total_bytes for share in found.shares}
    result = {}
    for share in plan.placement.shares:
        other = plan.overhead_bytes if share.device == CPU else 0
        if share.total_bytes and share.device in actual:
            result[share.device] = (actual[share.device] + other) / (share.total_bytes + other)
    return result


def bounded(ratio: float) -> float:
    """Return RATIO within LEAST and MOST."""
    return min(MOST, max(LEAST, ratio))


def _key(artifact: Artifact, device: Device) -> str:
    gpus = ", ".join(gpu.description for gpu in device.cuda_devices)
    place = f"{device.cpu.name} | {gpus} | {device.library.version}"
    return f"{artifact.arch} {artifact.params} {artifact.size_bytes} | {place}"
