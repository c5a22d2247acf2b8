"""What stays of a search: the recipe beside the file, and the same facts in its passport."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from converters.families import ModelPlan, Value
from converters.header import read_header
from converters.manifest import tools
from converters.quantmap import Override, is_matrix, plan_types
from edgeai import __version__
from edgeai.bounds.aim import Aim, Found
from edgeai.bounds.recipe import FILE_NAME, QuantRecipe
from edgeai.errors import OutputError
from edgeai.quantization import Quantization

__all__ = ["recipe_name", "recipe_of", "tensors_sha256", "undecided"]

DETERMINED = 8
"""Significant digits of a measured value in a recipe."""


def undecided(plan: ModelPlan, aim: Aim, overrides: tuple[Override, ...] = ()) -> Quantization:
    """Return the types that a file has at most, before they are chosen: for what has to be known of its size."""
    quantmap = replace(plan_types(plan, "F16"), mixed=True, overrides=overrides)
    text = aim.calibration
    keys: dict[str, Value] = {
        "edgeai.calibration.sha256": hashlib.sha256(text.read_bytes()).hexdigest() if text else "bundled"
    }
    return Quantization(quantmap=quantmap, keys=keys)


def recipe_name(output: Path, *, force: bool) -> Path:
    """Return where the recipe of the file OUTPUT goes: beside it, under the usual name unless that is taken, and then under the file's.

    Raises OutputError where that is taken too, and FORCE does not allow to replace it.
    """
    usual, own = output.with_name(FILE_NAME), output.with_name(f"{output.name}.quant.toml")
    if not os.path.lexists(usual):
        return usual
    if os.path.lexists(own) and not force:
        raise OutputError(f"{str(own)!r} is there already", hint="--force replaces it, -o names another file")
    return own


def recipe_of(
    aim: Aim,
    found: Found,
    plan: ModelPlan,
    model: str,
    source_sha256: str,
    path: Path,
    measured: Mapping[str, float | str],
) -> QuantRecipe:
    """Return the recipe of the file PATH of PLAN, which was made as FOUND says from the MODEL with SOURCE_SHA256."""
    goal = aim.goal or (aim.recipe.goal if aim.recipe else None)
    assert goal is not None  # noqa: S101 - an aim has one of the two
    kinds = {tensor.name: tensor.type for tensor in read_header(path).tensors}
    return QuantRecipe(
        model=model,
        source=source_sha256,
        goal=goal,
        calibration=found.calibration,
        types={tensor.name: kinds[tensor.name] for tensor in plan.tensors if is_matrix(tensor)},
        tensors_sha256=tensors_sha256(path),
        tools={"edgeai": __version__, **tools()},
        measured={
            name: float(f"{value:.{DETERMINED}g}") for name, value in measured.items() if isinstance(value, float)
        },
    )


def tensors_sha256(path: Path) -> str:
    """Return the sha256 over the data of all tensors of the GGUF file PATH, in their order, without what pads them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for tensor in read_header(path).tensors:
            file.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                part = file.read(min(left, 1 << 22))
                digest.update(part)
                left -= len(part)
    return digest.hexdigest()
