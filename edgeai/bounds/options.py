"""The matrices of a model as items of a knapsack: which types each may have, what they take, cost and need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converters.families import ModelPlan, TensorPlan
from converters.gguf import ALIGNMENT
from converters.knapsack import Item, Option
from converters.quantmap import BLOCK_OF, Override, is_matrix, match, obey, size_of
from converters.sensitivity import SLOW, candidates
from edgeai.bounds.goal import Goal
from edgeai.errors import UsageError

__all__ = ["UNMEASURED", "kinds_of", "options_of", "padded"]

UNMEASURED = "Q8_0"
"""The type of a matrix that torch says nothing about, such as stacked experts: next to no error."""


def kinds_of(
    plan: ModelPlan, goal: Goal, overrides: Sequence[Override], *, slow: bool = True
) -> Mapping[str, tuple[str, ...]]:
    """Return tensor → the types that it may have: those of the goal that fit, or the one that is asked for.

    Without SLOW those that take long to try are left out, unless the goal names its types.

    Raises UsageError where none is left, WrongChoice for an override that fits nothing.
    """
    asked = match(plan, overrides)
    found: dict[str, tuple[str, ...]] = {}
    for tensor in filter(is_matrix, plan.tensors):
        if tensor.name in asked:
            found[tensor.name] = (obey(tensor, asked[tensor.name]).type,)
            continue
        columns = tensor.shape[-1]
        wanted = goal.only or tuple(kind for kind in candidates(columns) if slow or kind not in SLOW)
        kinds = tuple(kind for kind in wanted if columns % BLOCK_OF[kind] == 0 and kind not in goal.exclude)
        if not kinds:
            names = ", ".join(kind.lower() for kind in wanted)
            raise UsageError(
                f"none of the types that may be used fits {tensor.name!r}, whose rows have {columns} columns: {names}",
                hint="allow one with blocks of 32, such as q4_0, iq4_nl, q5_0 or q8_0",
            )
        found[tensor.name] = kinds
    return found


def options_of(
    plan: ModelPlan,
    kinds: Mapping[str, Sequence[str]],
    costs: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, Mapping[str, float]],
) -> list[Item]:
    """Return an item for each matrix of PLAN. COSTS and SECONDS are by tensor and type; a tensor without costs gets one type."""
    items = []
    for tensor in plan.tensors:
        if tensor.name not in kinds:
            continue
        held = costs.get(tensor.name)
        wanted = kinds[tensor.name] if held is not None else unmeasured(tensor, kinds[tensor.name])
        options = tuple(
            Option(
                kind=kind,
                nbytes=padded(size_of(tensor, kind)),
                cost=held[kind] if held is not None else 0.0,
                seconds=seconds.get(tensor.name, {}).get(kind, 0.0),
            )
            for kind in wanted
        )
        items.append(Item(name=tensor.name, options=tuple(item for item in options if item.cost < float("inf"))))
    return items


def padded(nbytes: int) -> int:
    """Return what NBYTES of a tensor take in the file, where each begins at a multiple of 32."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def unmeasured(tensor: TensorPlan, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the one type for a tensor that nothing is known about."""
    if len(kinds) == 1 or UNMEASURED in kinds:
        return (kinds[0] if len(kinds) == 1 else UNMEASURED,)
    return (max(kinds, key=lambda kind: size_of(tensor, kind)),)
