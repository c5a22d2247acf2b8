"""From a path to an engine that runs: check the file, plan it for this machine, try it, load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeai.artifact import Artifact, open_artifact
from edgeai.engines.base import Engine
from edgeai.errors import InvalidModel
from edgeai.plan import LoadOptions, Plan, make_plan

__all__ = ["load_engine", "open_engine", "open_model", "planned"]


def open_engine(path: Path, **options: Any) -> Engine:
    """Check the file at PATH, plan it for this machine and load it; OPTIONS are those of plan.LoadOptions."""
    wanted = LoadOptions(**options)
    if not wanted.isolated:
        return load_engine(path, wanted)
    from edgeai.engines.worker.engine import WorkerEngine

    return WorkerEngine(open_model(path), wanted)


def load_engine(path: Path, wanted: LoadOptions, *, vetted: bool = False) -> Engine:
    """Plan the file at PATH for this machine and load it into this process; one that is VETTED is not tried in a child before."""
    artifact, plan = planned(path, wanted, vetted=vetted)
    from edgeai.engines.llamacpp import EmbeddingEngine, LlamaCppEngine

    if artifact.embedding:
        return EmbeddingEngine(artifact, plan)
    if wanted.draft is None:
        return LlamaCppEngine(artifact, plan)
    beside = LoadOptions(
        ctx=plan.context, streams=plan.streams, prefix_bytes=0, threads=plan.threads, device=wanted.device
    )
    return LlamaCppEngine(artifact, plan, draft=planned(wanted.draft, beside, vetted=vetted))


def open_model(path: Path) -> Artifact:
    """Return the facts of the model file at PATH. Raises InvalidModel for one that the runtime does not run."""
    artifact = open_artifact(path)
    if artifact.format != "gguf":
        raise InvalidModel(
            f"{str(path)!r} is a {artifact.format} folder of full-precision weights, which the runtime does not run",
            hint=f"convert it first: edgeai convert {str(path)!r}",
        )
    return artifact


def planned(path: Path, wanted: LoadOptions, *, vetted: bool = False) -> tuple[Artifact, Plan]:
    """Check the file at PATH, plan it for this machine and try it in a child unless it is VETTED; it can then be loaded."""
    from edgeai.device import probe
    from edgeai.paths import home
    from edgeai.vetting import vet

    artifact = open_model(path)
    plan = make_plan(artifact, probe(gpus=wanted.device == "cuda"), wanted)
    if not vetted:
        vet(artifact.path, home() / "cache", extra_bufts=plan.extra_bufts)
    return artifact, plan
