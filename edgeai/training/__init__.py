"""The trainer: a recipe → full-precision weights in the Hugging Face layout. Importing this imports no torch."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.training.loop import Trained
    from edgeai.training.monitor import Event
    from edgeai.training.recipe import Recipe

__all__ = ["require_torch", "train"]

NEEDED = ("torch", "transformers")


def require_torch() -> None:
    """Raise UsageError unless the libraries of the `train` extra are installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
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


def train(
    recipe: Recipe,
    folder: Path,
    *,
    steps: int | None = None,
    resume: bool = False,
    device: str = "auto",
    observe: Callable[[Event], None] | None = None,
    resume_command: str | None = None,
) -> Trained:
    """Train RECIPE and write the model into FOLDER, an HF folder with its working state in FOLDER/run.

    STEPS says where to stop (default: the recipe's steps); the learning-rate schedule stays the recipe's. RESUME goes
    on from the last checkpoint, and gives bit for bit the weights of a run that was never interrupted. OBSERVE is
    told of each step. Raises UsageError, OutputError, DeviceUnavailable, DoesNotFit, Diverged or Interrupted.
    """
    require_torch()
    with _waiting_threads_sleep():
        from edgeai.training import loop

    return loop.train(
        recipe,
        folder,
        steps=steps,
        resume=resume,
        device=device,
        observe=observe or (lambda _: None),
        resume_command=resume_command,
    )
