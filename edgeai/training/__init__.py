"""The trainer: a recipe → full-precision weights in the Hugging Face layout. Importing this imports no torch."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.training.loop import Trained
    from edgeai.training.monitor import Event
    from edgeai.training.recipe import Recipe
    from edgeai.training.tasks.loop import TrainedTask
    from edgeai.training.tasks.recipe import TaskRecipe

__all__ = ["load", "require_torch", "train"]

NEEDED = {"torch": "torch", "transformers": "transformers", "sklearn": "scikit-learn", "PIL": "pillow"}
"""The libraries of the `train` extra: how they are imported → how they are installed."""


def require_torch() -> None:
    """Raise UsageError unless the libraries of the `train` extra are installed."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"training needs {' and '.join(missing)}, not installed here", hint="pip install 'edgeai[train]'"
        )


@contextlib.contextmanager
def _waiting_threads_sleep() -> Iterator[None]:
    """Let OpenMP threads of a library imported here sleep, not spin, while they wait for each other.

    Where other programs want the same cores, spinning made a run of two threads three times slower. OpenMP reads the
    variable when it is loaded, so it is set for that moment only; a value that the user has set stays.
    """
    ours = "OMP_WAIT_POLICY" not in os.environ
    if ours:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        if ours:
            os.environ.pop("OMP_WAIT_POLICY", None)


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe | TaskRecipe:
    """Read the recipe at PATH with OVERRIDES; one with a table [task] is of a classifier or a regression.

    Raises RecipeError naming the setting, its value and what it may be.
    """
    from edgeai.training import recipe, settings

    values = settings.read(path)
    if "task" not in values:
        return recipe.from_values(values, path, overrides)
    from edgeai.training.tasks import recipe as tasks

    return tasks.from_values(values, path, overrides)


def train(
    recipe: Recipe | TaskRecipe,
    folder: Path,
    *,
    steps: int | None = None,
    resume: bool = False,
    device: str = "auto",
    observe: Callable[[Event], None] | None = None,
    resume_command: str | None = None,
) -> Trained | TrainedTask:
    """Train RECIPE and write the model into FOLDER, with its working state in FOLDER/run.

    A language model becomes an HF folder; what a classifier becomes is in `edgeai.training.tasks.export`.

    STEPS says where to stop (default: the recipe's steps); the learning-rate schedule stays the recipe's. RESUME goes
    on from the last checkpoint, and gives bit for bit the weights of a run that was never interrupted. OBSERVE is
    told of each step. Raises UsageError, OutputError, DeviceUnavailable, DoesNotFit, Diverged or Interrupted.
    """
    require_torch()
    options: dict[str, Any] = {
        "steps": steps,
        "resume": resume,
        "device": device,
        "observe": observe or (lambda _: None),
        "resume_command": resume_command,
    }
    from edgeai.training.recipe import Recipe

    if isinstance(recipe, Recipe):
        with _waiting_threads_sleep():
            from edgeai.training import loop
        return loop.train(recipe, folder, **options)
    with _waiting_threads_sleep():
        from edgeai.training.tasks import loop as tasks
    return tasks.train(recipe, folder, **options)
