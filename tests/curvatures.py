"""The curvature of tiny models, measured in this process."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from converters import curvature_child
from converters.checkpoint import open_checkpoint
from converters.child import Child, ChildFailed
from converters.curvature import Curvature, Texts, measure_curvature
from converters.families import ModelPlan, plan_model
from tests.families import some_ids

KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Folders with sums; they go with this process."""


class InProcessCurvature(Child):
    """The curvature's child without the child: its functions in this process, where torch and transformers are imported once."""

    def __init__(
        self, script: Path, request: Mapping[str, Any], *, what: str, env: Mapping[str, str] | None = None
    ) -> None:
        assert script.name == "curvature_child.py"
        self.request, self.what, self.env = {**request, "threads": 1}, what, env

    def result(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        assert progress is None or callable(progress)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return curvature_child.measure(self.request)
        except (ValueError, RuntimeError) as error:
            raise ChildFailed(str(error), reason=str(error), log=[]) from error

    def close(self) -> None:
        pass


def plan_of(folder: Path) -> ModelPlan:
    """Return the plan of the checkpoint in FOLDER."""
    return plan_model(open_checkpoint(folder))


def some_texts(plan: ModelPlan, *, count: int = 3, length: int = 24, generated: int = 2) -> Texts:
    """Return COUNT random windows of LENGTH tokens, and GENERATED texts as long that the model writes itself."""
    ids = some_ids(plan.vocab_size, count * length)
    windows = [ids[at : at + length] for at in range(0, len(ids), length)]
    return Texts(windows=windows, generated=generated, length=length, starts=[[1]], seed=5)


def measured(folder: Path, texts: Texts | None = None, **patches: Any) -> Curvature:
    """Return the curvature of the model in FOLDER on TEXTS; PATCHES are values of the module's constants."""
    plan = plan_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converters.curvature.Child", InProcessCurvature)
        for name, value in patches.items():
            patch.setattr(f"converters.curvature.{name}", value)
        KEPT.append(tempfile.TemporaryDirectory(prefix="curvature-"))
        return measure_curvature(folder, plan, texts or some_texts(plan), Path(KEPT[-1].name))
