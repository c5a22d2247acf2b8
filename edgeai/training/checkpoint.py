"""The state of a run after a step: model, optimiser, random numbers, and of which recipe and text they are."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeai.errors import InvalidModel, RecipeError
from edgeai.training.workspace import Workspace, write_whole

__all__ = ["load", "save"]

KEEP = 2


def save(space: Workspace, step: int, model: Any, adamw: Any, facts: dict[str, Any]) -> Path:
    """Write the state after STEP with FACTS (plain values), and drop all but the last two checkpoints."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": adamw.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "facts": facts,
    }
    path = space.run / f"step-{step:09d}.pt"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's archive writer hides the reason, such as a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    write_whole(path, write)
    for old in space.checkpoints[:-KEEP]:
        old.unlink()
    return path


def load(path: Path, model: Any, adamw: Any, facts: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Put the state at PATH into MODEL and ADAMW; return its step and facts.

    Raises RecipeError when one of FACTS is not the checkpoint's, and InvalidModel when the file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, saved = int(state["step"]), dict(state["facts"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidModel(
            f"the checkpoint {str(path)!r} is damaged", hint="delete it: --resume then takes the one before it"
        ) from error
    for key, value in facts.items():
        if saved.get(key) != value:
            raise RecipeError(
                f"the checkpoint {str(path)!r} is of another {key.removesuffix('_sha256')}: "
                f"{str(saved.get(key))[:12]!r}…, not {value[:12]!r}…",
                hint="resume with the recipe, --set and text that the run began with, or start another run with -o",
            )
    model.load_state_dict(state["model"])
    adamw.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return step, saved
