"""How good the answers on the test part are, with what is reached without learning beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["classification", "macro_f1", "regression", "wilson"]

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

Array = npt.NDArray[Any]


def classification(logits: Array, classes: Array, train_classes: Array) -> dict[str, Any]:
    """Return what LOGITS (rows, classes) are worth against CLASSES (rows).

    `baseline` is the accuracy of always saying the commonest class of TRAIN_CLASSES.
    """
    said = logits.argmax(axis=1)
    right = int((said == classes).sum())
    commonest = int(np.bincount(train_classes).argmax())
    return {
        "rows": len(classes),
        "accuracy": right / len(classes),
        "interval": list(wilson(right, len(classes))),
        "baseline": float((classes == commonest).mean()),
        "macro_f1": macro_f1(said, classes, logits.shape[1]),
    }


def regression(outputs: Array, answers: Array, target: dict[str, Any]) -> dict[str, Any]:
    """Return what OUTPUTS (rows) are worth against ANSWERS (rows), both of spread 1; errors are in the TARGET's own unit.

    `baseline` is the RMSE of always saying the mean of the training part, which is 0 here.
    """
    wrong = (outputs.astype(np.float64) - answers.astype(np.float64)) * target["std"]
    spread = answers.astype(np.float64) * target["std"]
    total = float(((spread - spread.mean()) ** 2).sum())
    return {
        "rows": len(answers),
        "rmse": math.sqrt(float((wrong**2).mean())),
        "mae": float(np.abs(wrong).mean()),
        "r2": 1 - float((wrong**2).sum()) / total if total > 0 else 0.0,
        "baseline": math.sqrt(float((spread**2).mean())),
    }


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of which RIGHT of COUNT were seen (Wilson 1927)."""
    share, square = right / count, Z95 * Z95 / count
    middle = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def macro_f1(said: Array, classes: Array, count: int) -> float:
    """Return the mean of the F1 of each of COUNT classes, each with the same weight; one that is nowhere has 0."""
    scores = []
    for label in range(count):
        hits = int(((said == label) & (classes == label)).sum())
        named, there = int((said == label).sum()), int((classes == label).sum())
        scores.append(2 * hits / (named + there) if named + there else 0.0)
    return float(np.mean(scores))
