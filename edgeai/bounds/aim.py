"""From what a user wants, or a recipe says, to the type of every tensor and how each is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.curvature import Curvature
from converters.families import ModelPlan, TensorPlan, Value
from converters.feedback import DAMPING, Feedback
from converters.kept import Kept
from converters.quantmap import Override, QuantMap, chosen_types, is_matrix
from converters.sensitivity import check_finite
from converters.tokenizer import Vocabulary
from edgeai.bounds.calibration import Material, material
from edgeai.bounds.costs import curvature_of, table_of
from edgeai.bounds.goal import Goal
from edgeai.bounds.options import kinds_of, options_of
from edgeai.bounds.outcome import SPLIT, Outcome
from edgeai.bounds.recipe import Calibration, QuantRecipe, check_recipe
from edgeai.bounds.search import Search, feedback_for, file_limits, seek
from edgeai.bounds.speed import seconds_of, speed_text, time_limit
from edgeai.device import cpu_facts
from edgeai.errors import ConvertError, UnsupportedModel, UsageError
from edgeai.evaluation.corpus import read_text
from edgeai.evaluation.heldout import held_out_class, held_out_tokens
from edgeai.types import Progress

__all__ = ["Aim", "Found", "check_aim", "find_types", "replay"]

ROOM = 0.9
"""How much of the room the smallest types may take before smaller ones are tried."""
Say = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What the types of a file are chosen by: a goal, or a recipe that says them. `calibration` is the user's text, `tokens` how much of it
    is read; `presets` are measured for the picture."""

    goal: Goal | None = None
    recipe: QuantRecipe | None = None
    calibration: Path | None = None
    tokens: int | None = None
    presets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came out: the types, the encoder's feedback, what a recipe says of the calibration, and for a goal how it was found.

    `text` is what the proof compares on (None: the bundled text), `tokens` how many of it.
    """

    quantmap: QuantMap
    feedback: Callable[[TensorPlan], Feedback | None]
    calibration: Calibration
    outcome: Outcome | None
    text: str | None
    tokens: int | None


def check_aim(aim: Aim, plan: ModelPlan, overrides: tuple[Override, ...], text: str | None) -> None:
    """Raise for what can be known before a tensor is read: bounds of the wrong kind, types that do not fit, texts that are the same.

    Raises UsageError, UnsupportedModel and ConvertError.
    """
    import importlib.util

    goal = aim.goal
    given_text = read_text(aim.calibration) if aim.calibration is not None else None
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ConvertError(
                f"{name} is not installed, and what an error in each weight does is found out with it",
                hint="pip install 'edgeai[convert]', or give the quant type instead: --quant q4_k_m",
            )
    if plan.pooling == "rank":
        raise UnsupportedModel(
            "a reranker has no bound to be quantized to: it gives neither vectors nor tokens",
            hint="give the quant type instead: --quant q8_0",
        )
    if goal is None:
        return
    given = "max_kl" if goal.max_kl is not None else "min_top1" if goal.min_top1 is not None else None
    if plan.pooling is not None and given:
        raise UsageError(
            f"{given} {getattr(goal, given)!r} is of language models, and this one gives vectors",
            hint="--min-cosine 0.995",
        )
    if plan.pooling is None and goal.min_cosine is not None:
        raise UsageError(
            f"min_cosine {goal.min_cosine!r} is of models that give vectors, and this one writes text",
            hint="--max-kl 0.02",
        )
    kinds_of(plan, goal, overrides)
    if given_text is not None and text is not None and given_text.strip() == text.strip():
        raise UsageError(
            f"the text to compare on is the calibration text {str(aim.calibration)!r} itself, on which any file would look too good",
            hint="name another --eval-text, or none: a part of the calibration text is kept back for that",
        )


def find_types(
    aim: Aim,
    checkpoint: Checkpoint,
    plan: ModelPlan,
    vocabulary: Vocabulary,
    *,
    source_sha256: str,
    overrides: tuple[Override, ...],
    text: str | None,
    extra: Mapping[str, Value],
    kept: Kept,
    say: Say,
    progress: Progress,
) -> Found:
    """Search for the types that AIM's goal wants. TEXT is the user's to compare on, EXTRA are the keys of the file; what is encoded goes
    to KEPT.

    Raises UsageError for a size that is out of reach or a text that is no use, ProofFailed where nothing meets a bound.
    """
    goal = aim.goal
    assert goal is not None  # noqa: S101 - a recipe is replayed instead
    kinds = kinds_of(plan, goal, overrides)
    budget = file_limits(plan, vocabulary, goal, kinds, extra)
    texts = material(
        plan,
        vocabulary,
        aim.calibration,
        tokens=aim.tokens,
        keep_back=text is None,
        threads=cpu_facts().threads,
    )
    for done, tensor in enumerate(plan.tensors, 1):
        check_finite(tensor)
        progress("looking at every weight", done, len(plan.tensors))
    curvature = curvature_of(checkpoint.path, source_sha256, plan, texts.texts, progress)
    note_unmeasured(plan, curvature, say)
    quick = kinds_of(plan, goal, overrides, slow=False)
    costs = table_of(plan, curvature, lambda tensor: quick[tensor.name], progress)
    if needs_less(plan, goal, quick, costs, budget):
        quick = kinds
        costs = table_of(plan, curvature, lambda tensor: quick[tensor.name], progress)
    seconds = seconds_of(plan, quick, say, progress) if goal.prefer == "speed" else {}
    items = options_of(plan, quick, costs, seconds)
    compared = text if text is not None else texts.held_out
    tokens = held_out_tokens(plan.parameters, plan.vocab_size) if compared is None else None
    search = Search(
        checkpoint=checkpoint,
        plan=plan,
        vocabulary=vocabulary,
        goal=goal,
        curvature=curvature,
        items=items,
        budget=budget,
        seconds=time_limit(plan, items, budget, seconds) if seconds else None,
        extra=extra,
        comparison=lambda: held_out_class(plan.pooling)(
            checkpoint=checkpoint,
            plan=plan,
            vocabulary=vocabulary,
            base="Q8_0",
            exports=False,
            stores=False,
            torch=True,
            text=compared,
            tokens=tokens,
            progress=progress,
            files=goal.rounds + 8,
        ),
        progress=progress,
        kept=kept,
    )
    quantmap, outcome = seek(search, presets=aim.presets)
    notes = [SPLIT] if texts.held_out is not None else []
    notes += [speed_text(plan, quantmap, seconds)] if seconds else []
    return Found(
        quantmap=quantmap,
        feedback=feedback_for(curvature),
        calibration=replace(texts.facts, compared_sha256=digest_of(text)),
        outcome=replace(outcome, notes=tuple(notes)),
        text=compared,
        tokens=tokens,
    )


def needs_less(
    plan: ModelPlan,
    goal: Goal,
    kinds: Mapping[str, Sequence[str]],
    costs: Mapping[str, Mapping[str, float]],
    budget: int | None,
) -> bool:
    """Whether a file of the smallest of KINDS is too large for the BUDGET, or nearly, or much better than a bound asks for."""
    items = options_of(plan, kinds, costs, {})
    small = [min(item.options, key=lambda option: option.nbytes) for item in items]
    if budget is not None and sum(option.nbytes for option in small) > ROOM * budget:
        return True
    limit = goal.max_kl if goal.max_kl is not None else 1 - goal.min_cosine if goal.min_cosine is not None else None
    return budget is None and limit is not None and sum(option.cost for option in small) < limit


def note_unmeasured(plan: ModelPlan, curvature: Curvature, say: Say) -> None:
    """Say which matrices nothing is known of, and so get a type that does next to no harm."""
    names = [tensor.name for tensor in plan.tensors if is_matrix(tensor) and tensor.name not in curvature]
    if names:
        some = ", ".join(names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        say("types-unmeasured", f"torch says nothing about {len(names)} matrices, which stay in Q8_0: {some}{more}")


def replay(
    aim: Aim,
    checkpoint: Checkpoint,
    plan: ModelPlan,
    vocabulary: Vocabulary,
    *,
    source_sha256: str,
    text: str | None,
    progress: Progress,
) -> Found:
    """Return what the recipe of AIM says, with the feedback of the same texts.

    Raises RecipeError for a recipe of another model, UsageError where its calibration text is another one or is not given.
    """
    recipe = aim.recipe
    assert recipe is not None  # noqa: S101 - asked for with one
    check_recipe(recipe, plan, source_sha256)
    if recipe.calibration.compared_sha256 is not None and text is None:
        raise UsageError(
            f"the recipe's file was compared on a text of its own, with the sha256 {recipe.calibration.compared_sha256!r}",
            hint="name its file, or another one: --eval-text FILE; what comes out on it is in the file",
        )
    texts = same_material(aim, recipe.calibration, plan, vocabulary)
    curvature = curvature_of(checkpoint.path, source_sha256, plan, texts.texts, progress)
    kinds = {name: kind for name, kind in recipe.types.items() if kind != "F32" or name in matrices(plan)}
    compared = text if text is not None else texts.held_out
    return Found(
        quantmap=chosen_types(plan, kinds, dict.fromkeys(kinds, "the recipe says so")),
        feedback=feedback_for(curvature),
        calibration=replace(texts.facts, compared_sha256=digest_of(text)),
        outcome=None,
        text=compared,
        tokens=held_out_tokens(plan.parameters, plan.vocab_size) if compared is None else None,
    )


def digest_of(text: str | None) -> str | None:
    """Return the sha256 of a user's TEXT to compare on."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def matrices(plan: ModelPlan) -> set[str]:
    """Return the names of the matrices of PLAN."""
    return {tensor.name for tensor in plan.tensors if is_matrix(tensor)}


def same_material(aim: Aim, wanted: Calibration, plan: ModelPlan, vocabulary: Vocabulary) -> Material:
    """Return the texts of a recipe's calibration WANTED; raises UsageError where they cannot be had."""
    if wanted.text_sha256 is not None and aim.calibration is None:
        raise UsageError(
            f"the recipe was made with a calibration text of its own, with the sha256 {wanted.text_sha256!r}",
            hint="name its file: --calibration FILE",
        )
    if wanted.text_sha256 is None and aim.calibration is not None:
        raise UsageError(
            f"the recipe was made with the bundled calibration text, and not with {str(aim.calibration)!r}",
            hint="leave --calibration out",
        )
    found = material(
        plan, vocabulary, aim.calibration, tokens=wanted.tokens, keep_back=wanted.kept_back, threads=wanted.threads
    )
    facts = replace(found.facts, damping=DAMPING)
    for name in ("text_sha256", "tokens", "generated", "seed", "feedback", "damping"):
        have, want = getattr(facts, name), getattr(wanted, name)
        if have != want:
            raise UsageError(
                f"the recipe was made with {name} {want!r}, and here it is {have!r}",
                hint="name the calibration text that it was made with"
                if name == "text_sha256"
                else "this version of edgeai does it in another way; search again with the recipe's goal",
            )
    return found
