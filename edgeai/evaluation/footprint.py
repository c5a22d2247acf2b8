"""What a loaded model really takes, beside what was predicted: measured in a child process, so that nothing else is counted.

Main memory is what the resident set (`VmRSS`, proc_pid_status(5); pages of the model file included) has grown by from before loading until
a whole batch has been read and a few tokens were decoded. A GPU is what libggml says is free there, before and after. Both are set
beside the predictions, and so are the buffers that libllama says it allocated.

Run as `python -m edgeai.evaluation.footprint PATH OPTIONS` the module is the child; OPTIONS is a JSON object of fields of LoadOptions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeai.artifact import Artifact
from edgeai.childprocess import CRASHES, ending, run_module
from edgeai.correction import remember_correction
from edgeai.device import Device
from edgeai.errors import DoesNotFit, EngineCrashed
from edgeai.paths import home
from edgeai.placement import CPU
from edgeai.plan import LoadOptions, Plan, make_plan

__all__ = ["Footprint", "Row", "measure"]

BASE_TIMEOUT_S = 300.0
SLOWEST_READ = 20_000_000  # bytes per second


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device: bytes predicted and measured."""

    device: str
    what: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """How much the prediction is too high, as a part of what was measured."""
        return self.predicted / self.measured - 1 if self.measured else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What was measured; the ratios are remembered for the next plan."""

    rows: tuple[Row, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return JSON-ready values."""
        return [
            {"device": row.device, "what": row.what, "predicted_bytes": row.predicted, "measured_bytes": row.measured}
            | {"error": round(row.error, 4)}
            for row in self.rows
        ]


def measure(artifact: Artifact, device: Device, options: LoadOptions, given: Mapping[str, Any]) -> Footprint:
    """Load ARTIFACT in a child process with OPTIONS (GIVEN are those that are not defaults), measure, and remember the ratios.

    Raises DoesNotFit where the child is killed for its memory, EngineCrashed where it ends in another way.
    """
    plan = make_plan(artifact, device, options)  # without the correction: what is remembered is of the arithmetic alone
    found = _ask(artifact, plan, given)
    rows = list(_rows(artifact, plan, found))
    whole = {row.device: row.measured / row.predicted for row in rows if row.what == "all" and row.predicted}
    remember_correction(home() / "cache", artifact, device, whole)
    return Footprint(rows=tuple(rows))


def measure_onnx(artifact: Artifact, plan: Plan, predicted: int, given: Mapping[str, Any]) -> Footprint:
    """Load the ONNX language model ARTIFACT in a child process with the options GIVEN, and have as many requests as PLAN has streams run.

    PREDICTED is what they are thought to take with the runtime. Nothing is remembered. Raises as `measure` does.
    """
    found = _ask(artifact, plan, given)
    return Footprint(rows=(Row(device=CPU, what="all", predicted=predicted, measured=found["resident"]),))


def _ask(artifact: Artifact, plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    timeout_s = BASE_TIMEOUT_S + artifact.size_bytes / SLOWEST_READ
    arguments = (str(artifact.path.absolute()), json.dumps(dict(given)))
    child = run_module("edgeai.evaluation.footprint", *arguments, timeout_s=timeout_s, gpu=plan.device == "cuda")
    if child.returncode == 0:
        result: dict[str, Any] = json.loads(child.stdout)
        return result
    if child.returncode < 0 and -child.returncode not in CRASHES:
        raise DoesNotFit(
            f"loading {artifact.name!r} in a child process ended: it {ending(child)}, as the system ends what takes too much memory",
            hint="use a smaller `ctx`, or free memory",
        )
    raise EngineCrashed(f"measuring {artifact.name!r} failed: the child process {ending(child)}", hint="edgeai doctor")


def _rows(artifact: Artifact, plan: Plan, found: Mapping[str, Any]) -> list[Row]:
    gpus = sum(share.total_bytes for share in plan.placement.gpus)
    rows = [Row(device=CPU, what="all", predicted=plan.memory_bytes - gpus, measured=found["resident"])]
    for share in plan.placement.gpus:
        if taken := found["gpus"].get(share.device):
            rows.append(Row(device=share.device, what="all", predicted=share.total_bytes, measured=taken))
    # Of an embedding model libllama says what it has before the first text, and it takes room for the logits of each token with these.
    reported = {} if artifact.embedding else {item["device"]: item for item in found["shares"]}
    for share in plan.placement.shares:
        if (item := reported.get(share.device)) is not None:
            predicted = share.total_bytes
            rows.append(
                Row(device=share.device, what="buffers", predicted=predicted, measured=int(item["total_bytes"]))
            )
    return rows


# ---- the child


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _free() -> dict[str, int]:
    from edgeai.native import backend_devices

    return {device.name: device.memory_free for device in backend_devices() if device.kind in ("gpu", "igpu")}


def _child(path: str, options: Mapping[str, Any]) -> None:
    """Load PATH, compute a batch, and print what that took."""
    # What the runtime imports is none of the model, so it is there before the first look.
    import numpy  # noqa: F401

    import edgeai.engines.llamacpp  # noqa: F401
    from edgeai import native
    from edgeai.engines.opening import load_engine

    native.library()
    resident, free = _resident(), _free()
    engine: Any = load_engine(Path(path), LoadOptions(**options))
    _work(engine)
    after = _free()
    result = {
        "resident": _resident() - resident,
        "gpus": {name: size - after[name] for name, size in free.items() if size > after[name]},
        "shares": engine.placement.to_dict()["shares"],
    }
    engine.close()
    # What libraries print must not be mixed with the answer.
    os.write(1, json.dumps(result).encode())


def _onnx_child(path: str, options: Mapping[str, Any]) -> None:
    """Load the ONNX model PATH, have its streams answer, each with room for the whole context, and print what that took."""
    from edgeai.engines.opening import load_engine
    from edgeai.types import GenerationConfig

    resident = _resident()
    engine: Any = load_engine(Path(path), LoadOptions(**options))
    plan = engine.plan
    ids = engine.tokenize(" a" * plan.batch)[: max(1, min(plan.batch, plan.context - 8))]
    config = GenerationConfig(max_tokens=plan.context - len(ids), temperature=0)
    streams = [engine.generate(engine.detokenize(ids), config) for _ in range(plan.streams)]
    for stream in streams:
        next(stream)
    taken = _resident() - resident
    for stream in streams:
        stream.close()
    engine.close()
    os.write(1, json.dumps({"resident": taken}).encode())


def _work(engine: Any) -> None:
    from edgeai.types import GenerationConfig

    plan = engine.plan
    if engine.artifact.embedding:  # as many tokens as are computed together: a text of the whole context, or several
        special = max(0, len(engine.tokenize(" the" * 8, add_special=True)) - 8)
        many = -(-plan.outputs // 64)
        engine.embed([" the" * max(1, min(plan.context, plan.outputs // many) - special)] * many)
        return
    room = max(1, min(plan.batch, plan.context - 8))
    ids = engine.tokenize(" a" * room)[:room]
    for chunk in engine.generate(engine.detokenize(ids), GenerationConfig(max_tokens=4, temperature=0)):
        assert chunk is not None  # noqa: S101 - read to its end


if __name__ == "__main__":
    work = _onnx_child if Path(sys.argv[1]).is_dir() else _child  # a language model in ONNX is a folder
    work(sys.argv[1], json.loads(sys.argv[2]))
