"""From a path to an engine that runs: check the file, plan it for this machine, try it, load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeai.artifact import open_artifact
from edgeai.engines.base import Engine
from edgeai.errors import InvalidModel
from edgeai.plan import LoadOptions, make_plan

__all__ = ["open_engine"]


def open_engine(path: Path, **options: Any) -> Engine:
    """Check the file at PATH, plan it for this machine and load it; OPTIONS are those of plan.LoadOptions."""
    from edgeai.device import probe
    from edgeai.paths import home
    from edgeai.vetting import vet

    artifact = open_artifact(path)
    if artifact.format != "gguf":
        raise InvalidModel(
            f"{str(path)!r} is a {artifact.format} folder of full-precision weights, which the runtime does not run",
            hint=f"convert it first: edgeai convert {str(path)!r}",
        )
    wanted = LoadOptions(**options)
    plan = make_plan(artifact, probe(gpus=wanted.device == "cuda"), wanted)
    vet(artifact.path, home() / "cache", extra_bufts=plan.extra_bufts)
    from edgeai.engines.llamacpp import EmbeddingEngine, LlamaCppEngine

    if artifact.embedding:
        return EmbeddingEngine(artifact, plan)
    return LlamaCppEngine(artifact, plan)
