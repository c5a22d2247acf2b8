"""From a path to an engine that runs: check the file, plan it for this machine, try it, load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeai.artifact import Artifact, open_artifact
from edgeai.engines.base import Engine
from edgeai.errors import InvalidModel
from edgeai.plan import LoadOptions, Plan, make_plan

__all__ = ["open_engine", "planned"]


def open_engine(path: Path, **options: Any) -> Engine:
    """Check the file at PATH, plan it for this machine and load it; OPTIONS are those of plan.LoadOptions."""
    artifact, plan = planned(path, LoadOptions(**options))
    from edgeai.engines.llamacpp import EmbeddingEngine, LlamaCppEngine

    if artifact.embedding:
        return EmbeddingEngine(artifact, plan)
    return LlamaCppEngine(artifact, plan)


def planned(path: Path, wanted: LoadOptions) -> tuple[Artifact, Plan]:
    """Check the file at PATH, plan it for this machine and try it in a child; it can then be loaded."""
    from edgeai.device import probe
    from edgeai.paths import home
    from edgeai.vetting import vet

    artifact = open_artifact(path)
    if artifact.format != "gguf":
        raise InvalidModel(
            f"{str(path)!r} is a {artifact.format} folder of full-precision weights, which the runtime does not run",
            hint=f"convert it first: edgeai convert {str(path)!r}",
        )
    plan = make_plan(artifact, probe(gpus=wanted.device == "cuda"), wanted)
    vet(artifact.path, home() / "cache", extra_bufts=plan.extra_bufts)
    return artifact, plan
