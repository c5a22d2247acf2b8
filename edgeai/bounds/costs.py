"""What each type costs each tensor of a model: measured once, and kept under the hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from converters.curvature import FACTS, Curvature, Texts, measure_curvature, open_curvature
from converters.families import ModelPlan, TensorPlan
from converters.feedback import one_thread_each
from converters.manifest import tools
from converters.quantmap import is_matrix
from converters.sensitivity import costs
from edgeai.device import cpu_facts
from edgeai.paths import home
from edgeai.types import Progress

__all__ = ["curvature_of", "table_of"]

KEPT_BYTES = 4 << 30
"""Curvatures that are kept; the oldest go first."""
COSTS = "costs.json"
FORM = 5
"""Counted up when the sums or the costs come to mean something else."""


def curvature_of(source: Path, source_sha256: str, plan: ModelPlan, texts: Texts, progress: Progress) -> Curvature:
    """Return the curvature of the model in the folder SOURCE, measured unless it is kept. Raises ConvertError."""
    versions = {name: version for name, version in tools().items() if name in ("torch", "transformers", "numpy")}
    key = {"form": FORM, "source": source_sha256, "texts": asdict(texts), "tools": versions}
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    place = home() / "cache" / "curvature"
    place.mkdir(parents=True, exist_ok=True)
    folder = place / name
    if (folder / FACTS).exists():
        os.utime(folder)
        return open_curvature(folder)
    making = place / f"{name}.{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        measure_curvature(
            source,
            plan,
            texts,
            making,
            lambda done, total: progress("finding out which weights matter", done, total),
        )
        if not folder.exists():
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    trim(place, folder)
    return open_curvature(folder)


def trim(place: Path, newest: Path) -> None:
    """Remove the oldest curvatures in PLACE until the rest takes at most KEPT_BYTES; NEWEST stays."""
    folders = sorted((path for path in place.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    held = size_of(newest)
    for folder in folders:
        if folder == newest:
            continue
        held += size_of(folder)
        if held > KEPT_BYTES:
            shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Return the bytes of the files in FOLDER."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def table_of(
    plan: ModelPlan, curvature: Curvature, kinds: Callable[[TensorPlan], Sequence[str]], progress: Progress
) -> Mapping[str, Mapping[str, float]]:
    """Return tensor → type → expected rise of the KL, for the matrices of PLAN that CURVATURE knows and the KINDS of each."""
    path = curvature.folder / COSTS
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    wanted = [tensor for tensor in plan.tensors if is_matrix(tensor) and tensor.name in curvature]
    missing = {
        tensor.name: [kind for kind in kinds(tensor) if kind not in found.get(tensor.name, {})] for tensor in wanted
    }
    with one_thread_each(), ThreadPoolExecutor(cpu_facts().threads) as pool:  # libggml and BLAS let go of Python's lock
        todo = [
            (tensor, pool.submit(costs, tensor, curvature, missing[tensor.name]))
            for tensor in wanted
            if missing[tensor.name]
        ]
        for done, (tensor, result) in enumerate(todo, 1):
            found.setdefault(tensor.name, {}).update(result.result())
            progress("finding out what each type costs", done, len(todo))
    temporary = path.with_name(f"{COSTS}.{os.getpid()}")
    temporary.write_text(json.dumps(found, sort_keys=True))
    temporary.replace(path)
    return {tensor.name: {kind: found[tensor.name][kind] for kind in kinds(tensor)} for tensor in wanted}
