"""The options of `edgeai convert` that say what a file may take or must keep, instead of a quant type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.bounds.aim import Aim

__all__ = ["BOUNDS", "SizeParam", "aim_of", "given", "ranges_of"]

RANGES = ("minmax", "entropy", "percentile")
"""How ranges of activations are found for int8 in ONNX."""
BOUNDS = ("target_bytes", "target_bpw", "max_kl", "min_top1", "min_cosine")
FURTHER = ("prefer", "only", "exclude", "rounds", "plot")
"""Options that only say something beside a bound."""
NAMES_TYPES = ("quant", "imatrix", "imatrix_out", "dry_run")
"""Options that have nothing to say where the types are chosen."""


class SizeParam(click.ParamType[int]):
    """A size as people write it."""

    name = "size"

    def convert(self, value: Any, _param: click.Parameter | None, _context: click.Context | None) -> int:
        """Return bytes; raises UsageError."""
        from edgeai.bounds.goals import parse_size

        return value if isinstance(value, int) else parse_size(value)


def given(name: str) -> str | None:
    """Return the option of the parameter NAME where it stands on the command line."""
    context = click.get_current_context()
    if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
        return None
    return next(item.opts[0] for item in context.command.params if item.name == name)


def ranges_of(targets: tuple[str, ...], calibration: str | None) -> str | None:
    """Return CALIBRATION where it is a way to find ranges, and no text."""
    return calibration if calibration in RANGES and "onnx" in targets else None


def aim_of(
    goal: Mapping[str, Any],
    *,
    recipe: Path | None,
    calibration: Path | None,
    tokens: int | None,
    plot: Path | None,
    force: bool,
) -> Aim | None:
    """Return what the types are to be chosen by, None where --quant names them, or nothing does.

    Raises UsageError for options that contradict each other or say nothing.
    """
    bounds = [option for name in BOUNDS if (option := given(name))]
    if given("quant") and bounds == ["--max-kl"]:
        bounds = []  # with a type it is the limit of the proof
    if recipe is None and not bounds:
        if option := next((option for name in FURTHER if (option := given(name))), None):
            hint = (
                "leave --quant out: a bound chooses the types"
                if given("quant")
                else "--max-kl 0.02, --target-size 90MB, …"
            )
            raise UsageError(f"{option} is of no use without a bound", hint=hint)
        if calibration is not None:
            raise UsageError(
                f"--calibration {str(calibration)!r} is of no use without a bound",
                hint="--max-kl 0.02, --target-size 90MB, …; for an importance matrix it is --imatrix TEXT, "
                f"for ranges of int8 in ONNX one of: {', '.join(RANGES)}",
            )
        return None
    first = "--recipe" if recipe is not None else bounds[0]
    if option := next((option for name in NAMES_TYPES if (option := given(name))), None):
        raise UsageError(
            f"{option} and {first} exclude each other: with {first} the types are chosen", hint=f"leave {option} out"
        )
    return (
        with_recipe(recipe, bounds, calibration, tokens)
        if recipe is not None
        else with_goal(goal, calibration, tokens, plot, force=force)
    )


def with_recipe(path: Path, bounds: list[str], calibration: Path | None, tokens: int | None) -> Aim:
    """Return the aim to follow the recipe in PATH; raises RecipeError, and UsageError for options that it leaves nothing to say."""
    from edgeai.bounds.aim import Aim
    from edgeai.bounds.recipe import read_recipe

    said = [*bounds, *(option for name in (*FURTHER, "types", "calibration_tokens") if (option := given(name)))]
    if said:
        raise UsageError(
            f"{said[0]} and --recipe exclude each other: a recipe says it all", hint=f"leave {said[0]} out"
        )
    return Aim(recipe=read_recipe(path), calibration=calibration, tokens=tokens)


def with_goal(
    values: Mapping[str, Any], calibration: Path | None, tokens: int | None, plot: Path | None, *, force: bool
) -> Aim:
    """Return the aim to reach what VALUES, the fields of a goal as they were written, say; raises UsageError."""
    from edgeai.bounds.aim import Aim
    from edgeai.bounds.goal import Goal
    from edgeai.bounds.goals import check_goal
    from edgeai.bounds.picture import check_plot

    lists = {
        name: tuple(filter(None, (part.strip() for part in (values[name] or "").split(","))))
        for name in ("only", "exclude")
    }
    for name, found in lists.items():
        if values[name] is not None and not found:
            raise UsageError(f"--{name} {values[name]!r} names no type", hint=f"--{name} q4_k,q6_k, or leave it out")
    goal = check_goal(Goal(**{**values, **lists}))
    if plot is not None:
        check_plot(plot, force=force)
    return Aim(goal=goal, calibration=calibration, tokens=tokens, presets=plot is not None)
