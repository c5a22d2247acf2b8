"""What the time of a decoded token has to do with the choice of types, for those who prefer speed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from converters.errors import UnsupportedModel
from converters.families import ModelPlan
from converters.knapsack import Item
from converters.quantmap import QuantMap, plan_types
from edgeai.evaluation.typespeed import runnable, tensor_seconds, type_speeds
from edgeai.types import Progress

__all__ = ["seconds_of", "speed_text", "time_limit"]

YARDSTICKS = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
"""The files that one who thinks of speed would take otherwise."""
SLACK = 1.03
"""How much longer than with the fastest choice of all a token may always take: otherwise there would be no choice."""
SIMILAR = 0.95
"""How much smaller than the largest that fits one of them may be."""


def seconds_of(
    plan: ModelPlan, kinds: Mapping[str, Sequence[str]], say: Callable[[str, str], None], progress: Progress
) -> Mapping[str, Mapping[str, float]]:
    """Return tensor → type → seconds that it takes of one decoded token here, measured; also for the types of the usual files.

    What a matrix takes whatever its type is left out: of a model of a million weights it would hide the rest.
    """
    usual = [plan_types(plan, name, importance=kinds) for name in YARDSTICKS if fits(plan, name, kinds)]
    wanted = {name: {*some, *(each.type_of(name) for each in usual)} for name, some in kinds.items()}
    every = sorted(set().union(*wanted.values()))
    speeds = type_speeds(runnable(every), progress=progress)
    if speeds.notice is not None:
        say(speeds.notice.code, speeds.notice.message)
    tensors, speeds = {tensor.name: tensor for tensor in plan.tensors}, replace(speeds, matrix_s=0.0)
    return {
        name: {kind: tensor_seconds(speeds, plan, tensors[name], kind) for kind in some if kind in speeds.seconds}
        for name, some in wanted.items()
    }


def fits(plan: ModelPlan, quant: str, kinds: Collection[str]) -> bool:
    """Whether there is a file of the type QUANT of this model."""
    try:
        plan_types(plan, quant, importance=kinds)
    except UnsupportedModel:
        return False
    return True


def time_limit(
    plan: ModelPlan, items: Sequence[Item], budget: int | None, seconds: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Return how long a token may take in a file of at most BUDGET bytes of tensors: no longer than in the fastest of the usual files
    of about that size, unless hardly any choice of ITEMS is as fast. Much smaller ones are faster and worse than what was asked for.
    Without a budget there is no limit: the bound decides."""
    if budget is None:
        return None
    names = [item.name for item in items]
    found = fastest_usual(plan, names, budget, seconds)
    if found is None:
        return None
    _, fastest = found
    least = sum(min(option.seconds for option in item.options) for item in items)
    return max(fastest, SLACK * least)


def fastest_usual(
    plan: ModelPlan, names: Collection[str], nbytes: float, seconds: Mapping[str, Mapping[str, float]]
) -> tuple[str, float] | None:
    """Return the fastest of the usual files of at most NBYTES of tensors, and hardly less, and the seconds that the tensors NAMES take of
    a token in it; None where all are larger."""
    usual = {name: plan_types(plan, name, importance=seconds) for name in YARDSTICKS if fits(plan, name, seconds)}
    small = {name: quantmap for name, quantmap in usual.items() if quantmap.nbytes <= nbytes}
    if not small:
        return None
    about = SIMILAR * max(quantmap.nbytes for quantmap in small.values())
    timed = {name: token_seconds(each, names, seconds) for name, each in small.items() if each.nbytes >= about}
    return min(timed.items(), key=lambda item: item[1])


def speed_text(plan: ModelPlan, chosen: QuantMap, seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Return what the matrices of the CHOSEN types take of a token here, and those of the usual file beside it, as a sentence."""
    own = token_seconds(chosen, seconds, seconds)
    text = f"the weights of a token take {own * 1e3:.3g} ms here, as measured for each type"
    found = fastest_usual(plan, seconds, chosen.nbytes, seconds)
    return f"{text}; those of {found[0].lower()} {found[1] * 1e3:.3g} ms" if found else text


def token_seconds(quantmap: QuantMap, names: Iterable[str], seconds: Mapping[str, Mapping[str, float]]) -> float:
    """Return what the tensors NAMES take of a token with the types of QUANTMAP; a type that does not run here takes for ever."""
    return sum(seconds[name].get(quantmap.type_of(name), float("inf")) for name in names)
