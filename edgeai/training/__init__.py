"""The trainer: a recipe → full-precision weights in the Hugging Face layout. Importing this imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
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
