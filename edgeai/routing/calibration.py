"""Fit the confidence of a model on questions with known answers, and say how good it is on answers that it has not seen.

Every figure is of cross-validation: each answer is judged by a head that was fitted, and calibrated, without its fold. Beside what the
confidence brings stand a random choice and an oracle, which hand on as many answers.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.errors import UsageError
from edgeai.routing.confidence import (
    FEATURES,
    TOP,
    Fitted,
    Head,
    agreement,
    features,
    file_sha256,
    fit,
    folds,
    save_head,
)  # fmt: skip
from edgeai.routing.metrics import BINS, Estimate, accuracy_at, aurc, auroc, calibration_error, estimate
from edgeai.routing.questions import Question, is_right
from edgeai.routing.tasks import task_of
from edgeai.types import Completion, Notice, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgeai.model import Model

    F64 = npt.NDArray[np.float64]

__all__ = ["Answered", "CalibrationReport", "answer_all", "calibrate", "cross_validate", "figures", "hand_offs"]

LEAST_ROWS = 40
LEAST_OF_A_KIND = 10
"""Right and wrong answers, and questions of a kind of task before its ability is recorded."""
HAND_OFFS = (0.1, 0.2, 0.3)
MAX_TOKENS = 256
SEED = 1
SAMPLE_TEMPERATURE = 0.7
"""At least; answers that are drawn beside the first to see whether they agree must be able to differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the model made of one question: features of its answer, whether it is right, and whether the stronger model was."""

    features: dict[str, float]
    right: bool
    task: str
    strong: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """The outcome: the head, where it was kept, its figures, and what is less than could be expected of it."""

    head: Head
    path: Path
    figures: dict[str, Any]
    warnings: tuple[Notice, ...] = ()
    model: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what `edgeai route calibrate --json` prints."""
        return {
            "model": self.model,
            "path": str(self.path),
            "sha256": self.head.sha256,
            "quant": self.head.quant,
            "engine": self.head.engine,
            "rows": self.head.rows,
            "ability": dict(self.head.ability),
            "counts": self.counts,
            "settings": dict(self.head.settings),
            "figures": self.figures,
            "warnings": [asdict(notice) for notice in self.warnings],
        }


def calibrate(
    model: Model, questions: Sequence[Question], *, samples: int = 0, max_tokens: int = MAX_TOKENS,
    progress: Progress = no_progress,
) -> CalibrationReport:  # fmt: skip
    """Have MODEL answer QUESTIONS as it usually does, fit its confidence, and keep that with the model file.

    SAMPLES: so many more answers are drawn of each question, and how far they agree is a feature; each costs as much as the first, then
    and whenever an answer is judged. Nothing is kept unless all of it is done. Raises UsageError for fewer than 40 questions, and where
    fewer than 10 answers are right, or wrong.
    """
    check_count(questions)
    answered = answer_all(model, questions, samples=samples, max_tokens=max_tokens, progress=progress)
    names = (*FEATURES, "agreed") if samples else FEATURES
    x, right = as_arrays(answered, names)
    check_kinds(right)
    strong, given = strong_of(answered)
    found = figures(cross_validate(x, right), right, strong) | {"strong": given}
    counts = {task: sum(item.task == task for item in answered) for task in sorted({item.task for item in answered})}
    head = Head(
        sha256=file_sha256(model.artifact),
        quant=model.artifact.quant,
        engine=model.plan.engine,
        names=names,
        fitted=fit(x, right),
        settings=settings_of(model, samples, max_tokens),
        ability=ability_of(answered),
        counts=counts,
        metrics=found,
        rows=len(answered),
        made_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    path = save_head(head, model.artifact.path)
    return CalibrationReport(
        head=head, path=path, figures=found, warnings=warnings_of(found), model=model.artifact.name, counts=counts
    )


def check_count(questions: Sequence[Question]) -> None:
    """Raise UsageError for too few questions."""
    if len(questions) < LEAST_ROWS:
        raise UsageError(
            f"{len(questions)} questions are too few to calibrate on", hint=f"give at least {LEAST_ROWS}, better 300"
        )


def check_kinds(right: F64) -> None:
    """Raise UsageError unless there are right answers and wrong ones."""
    good = int(right.sum())
    if min(good, len(right) - good) < LEAST_OF_A_KIND:
        raise UsageError(
            f"{good} of {len(right)} answers are right, and a confidence needs {LEAST_OF_A_KIND} right and as many wrong ones",
            hint="take questions that the model answers right about half of the time; look at a few answers with `edgeai run`",
        )


def settings_of(model: Model, samples: int, max_tokens: int) -> dict[str, Any]:
    """Return how the answers are made, as a head keeps it."""
    config = model.config()
    return {
        "logprobs": TOP,
        "samples": samples,
        "max_tokens": max_tokens,
        "temperature": config.temperature,
        "chat": model.artifact.template is not None,
    }


# ---- answering


def answer_all(
    model: Model, questions: Sequence[Question], *, samples: int = 0, max_tokens: int = MAX_TOKENS,
    progress: Progress = no_progress,
) -> list[Answered]:  # fmt: skip
    """Have MODEL answer each of QUESTIONS, from fixed seeds."""
    answered = []
    label = f"answering {len(questions)} questions"
    for number, question in enumerate(questions):
        progress(label, number, len(questions))
        found = _answer(model, question, max_tokens, seed=SEED + number)
        others = [
            _answer(model, question, max_tokens, seed=SEED + number + len(questions) * each, warm=True).text
            for each in range(1, samples + 1)
        ]
        agreed = agreement(found.text, others) if samples else None
        answered.append(
            Answered(
                features=features(found.logprobs or (), found.finish_reason, agreed=agreed),
                right=is_right(question, found.text),
                task=task_of(question.text),
                strong=question.strong_correct,
            )
        )
    progress(label, len(questions), len(questions))
    return answered


def _answer(model: Model, question: Question, max_tokens: int, *, seed: int, warm: bool = False) -> Completion:
    """Return the answer of MODEL, whole or cut; WARM draws it at SAMPLE_TEMPERATURE at least."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "logprobs": TOP}
    if question.choices:
        options["choices"] = list(question.choices)
    if warm:
        options["temperature"] = max(SAMPLE_TEMPERATURE, model.config().temperature)
    chat = model.artifact.template is not None
    with model.stream(question.prompt(chat=chat), **options) as stream:
        for _ in stream:
            pass
    return stream.completion()


def as_arrays(answered: Sequence[Answered], names: Sequence[str]) -> tuple[F64, F64]:
    """Return the features NAMES of all answers, (answers, features), and whether each is right, (answers,)."""
    import numpy as np

    x = np.array([[item.features[name] for name in names] for item in answered], dtype=np.float64)
    return x, np.array([item.right for item in answered], dtype=np.float64)


def strong_of(answered: Sequence[Answered]) -> tuple[F64, str]:
    """Return whether the stronger model was right, (answers,), and whether that was given, or is assumed."""
    import numpy as np

    if all(item.strong is not None for item in answered):
        return np.array([item.strong for item in answered], dtype=np.float64), "given"
    return np.ones(len(answered)), "assumed to be always right: the rows do not say"


def ability_of(answered: Sequence[Answered]) -> dict[str, float]:
    """Return the share of right answers of each kind of task that was asked often enough."""
    found = {}
    for task in sorted({item.task for item in answered}):
        of_task = [item.right for item in answered if item.task == task]
        if len(of_task) >= LEAST_OF_A_KIND:
            found[task] = round(sum(of_task) / len(of_task), 4)
    return found


# ---- judging


def cross_validate(x: F64, right: F64) -> F64:
    """Return the probability that each answer is right, from a head that was fitted and calibrated without its fold."""
    import numpy as np

    found = np.zeros(len(right))
    for test in folds(right):
        head: Fitted = fit(x[~test], right[~test])
        found[test] = [head.probability(row) for row in x[test]]
    return found


def figures(probability: F64, right: F64, strong: F64) -> dict[str, Any]:
    """Return how good PROBABILITY is at telling the RIGHT answers, each figure with its 95 % interval."""
    import numpy as np

    base = float(right.mean())
    return {
        "local": _rounded(estimate(lambda y: float(y.mean()), right)),
        "strong_accuracy": round(float(strong.mean()), 4),
        "auroc": _rounded(estimate(auroc, probability, right)),
        "ece": {**_rounded(estimate(calibration_error, probability, right)), "bins": BINS},
        "aurc": {
            **_rounded(estimate(aurc, probability, right)),
            "random": round(1 - base, 4),
            "oracle": round(aurc(right, right), 4),
        },
        "brier": round(float(np.mean((probability - right) ** 2)), 4),
        "hand_off": {f"{share:.0%}": hand_offs(share, probability, right, strong) for share in HAND_OFFS},
    }


def hand_offs(share: float, probability: F64, right: F64, strong: F64) -> dict[str, Any]:
    """Return the accuracy where the SHARE of least PROBABILITY goes to the stronger model, beside random and oracle."""
    by_chance = (1 - share) * float(right.mean()) + share * float(strong.mean())
    ours = estimate(lambda p, weak, other: accuracy_at(share, p, weak, other), probability, right, strong)
    gain = estimate(
        lambda p, weak, other: (
            accuracy_at(share, p, weak, other) - (1 - share) * float(weak.mean()) - share * float(other.mean())
        ),
        probability,
        right,
        strong,
    )
    return {
        "confidence": _rounded(ours),
        "random": round(by_chance, 4),
        "oracle": round(accuracy_at(share, right - strong, right, strong), 4),
        "above_random": _rounded(gain),
    }


def warnings_of(found: dict[str, Any]) -> tuple[Notice, ...]:
    """Return a warning where the confidence tells right answers from wrong ones no better than chance."""
    if found["auroc"]["low"] > 0.5:
        return ()
    message = (
        f"the confidence hardly tells right answers from wrong ones: AUROC {found['auroc']['value']:.2f}, "
        f"95 % interval from {found['auroc']['low']:.2f}"
    )
    return (Notice(code="weak-confidence", message=message),)


def _rounded(found: Estimate) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(found).items()}
