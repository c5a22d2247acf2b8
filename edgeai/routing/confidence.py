"""How sure a model is of an answer: a probability that it is right, from the log-probabilities of its own tokens.

A head is a logistic regression on a few features of an answer, calibrated on answers that it had not seen. It is of one file: other bytes
or another quant type answer differently, so a head whose sha256 is not the file's is not used. It lies beside the file, as
FILE.confidence.json, or in the user's data folder where that one cannot be written, or the model is a folder, whose files its proof counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.errors import UsageError
from edgeai.types import FinishReason, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]

__all__ = [
    "FEATURES",
    "NOT_CALIBRATED",
    "TOP",
    "Fitted",
    "Head",
    "agreement",
    "features",
    "fit",
    "fit_logistic",
    "head_path",
    "load_head",
    "save_head",
]

TOP = 5
"""How many alternatives of each token the features are made from: `GenerationConfig.logprobs` of an answer that is to be judged."""
FEATURES = (
    "mean", "total", "least", "low", "first", "last", "entropy", "entropy_first", "margin", "log_tokens", "stopped",
)  # fmt: skip
FLOOR = -20.0
"""Log-probabilities below this count as this: a form can force tokens that the model thinks impossible."""
L2 = 1.0
FOLDS = 5
SEED = 20240229
NEWTON_STEPS = 50
NEWTON_DONE = 1e-10
NOT_CALIBRATED = "not calibrated for this file"
MAX_BYTES = 1 << 20
REMEMBERED = 200
"""Hashes of files; the oldest are forgotten first."""


# ---- what is seen of an answer


def features(
    logprobs: Sequence[TokenLogprob], finish_reason: FinishReason, *, agreed: float | None = None
) -> dict[str, float]:
    """Return what can be told from the tokens of an answer, and AGREED, how far other answers to the same prompt say the same.

    Of the alternatives only the TOP likeliest count, so that a caller who asks for more gets the same. In nats: the `mean`
    log-probability and the sum (`total`), the `least`, the 10th percentile (`low`), those of the `first` and `last` token; the mean and
    first entropy of what could have stood there; the mean lead over the best alternative (`margin`).
    """
    own = [max(FLOOR, token.logprob) for token in logprobs] or [FLOOR]
    entropies = [_entropy(token) for token in logprobs] or [0.0]
    margins = [_margin(token) for token in logprobs] or [0.0]
    found = {
        "mean": math.fsum(own) / len(own),
        "total": math.fsum(own),
        "least": min(own),
        "low": sorted(own)[(len(own) - 1) // 10],
        "first": own[0],
        "last": own[-1],
        "entropy": math.fsum(entropies) / len(entropies),
        "entropy_first": entropies[0],
        "margin": math.fsum(margins) / len(margins),
        "log_tokens": math.log(len(own)),
        "stopped": float(finish_reason == "stop"),
    }
    return found if agreed is None else found | {"agreed": agreed}


def _entropy(token: TokenLogprob) -> float:
    """Return the entropy of the likeliest tokens and of one more that stands for all others: no more than the true one."""
    shares = [math.exp(max(FLOOR, logprob)) for _, _, logprob in token.top[:TOP]]
    rest = max(0.0, 1.0 - math.fsum(shares)) if shares else 0.0
    return -math.fsum(share * math.log(share) for share in (*shares, rest) if share > 0)


def _margin(token: TokenLogprob) -> float:
    others = [logprob for id_, _, logprob in token.top[:TOP] if id_ != token.id]
    return max(FLOOR, token.logprob) - max(FLOOR, *others) if others else 0.0


def agreement(answer: str, others: Sequence[str]) -> float:
    """Return how far OTHERS say what ANSWER says: the mean share of words that both have, of those that either has (Jaccard)."""
    words = set(answer.lower().split())
    shares = []
    for other in others:
        theirs = set(other.lower().split())
        shares.append(len(words & theirs) / len(words | theirs) if words or theirs else 1.0)
    return math.fsum(shares) / len(shares) if shares else 0.0


# ---- the regression


def fit_logistic(x: F64, y: F64, l2: float = L2) -> F64:
    """Return the weights of X, (rows, columns), and the bias last, of a logistic regression of Y with a penalty of L2 / 2 · |weights|².

    Newton's method (iteratively reweighted least squares); the bias is not penalised. Y may be shares between 0 and 1.
    """
    import numpy as np

    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.full(rows.shape[1], l2)
    penalty[-1] = 0.0
    weights = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(rows @ weights)
        gradient = rows.T @ (y - p) - penalty * weights
        curvature = np.maximum(p * (1 - p), 1e-9)
        step = np.linalg.solve((rows * curvature[:, None]).T @ rows + np.diag(penalty + 1e-9), gradient)
        weights = weights + step * min(1.0, 10.0 / max(1e-12, float(np.abs(step).max())))
        if float(np.abs(step).max()) < NEWTON_DONE:
            break
    return np.asarray(weights, dtype=np.float64)


def _sigmoid(z: F64) -> F64:
    import numpy as np

    return np.asarray(1 / (1 + np.exp(-np.clip(z, -60, 60))), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Numbers of a head: the mean and scale of each feature, its weight, the bias, and Platt's slope and shift of what comes out."""

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    slope: float = 1.0
    shift: float = 0.0

    def logit(self, values: Sequence[float]) -> float:
        """Return the log-odds, before they are calibrated, of an answer with the features VALUES."""
        parts = zip(values, self.means, self.scales, self.weights, strict=True)
        return self.bias + math.fsum((value - mean) / scale * weight for value, mean, scale, weight in parts)

    def probability(self, values: Sequence[float]) -> float:
        """Return the probability that an answer with the features VALUES is right."""
        return 1 / (1 + math.exp(-min(60.0, max(-60.0, self.slope * self.logit(values) + self.shift))))


def fit(x: F64, y: F64) -> Fitted:
    """Fit a head to features X, (answers, features), and Y, whether each is right.

    Its probabilities are calibrated on log-odds of answers that were left out: FOLDS fits without a part of them (Platt 1999, with his
    smoothed targets). A slope below 0 would turn the order around, and is none.
    """
    import numpy as np

    left_out = np.zeros(len(y))
    for test in folds(y):
        part = _regress(x[~test], y[~test])
        left_out[test] = [part.logit(row) for row in x[test]]
    good = float(y.sum())
    bad = len(y) - good
    targets = np.where(y > 0, (good + 1) / (good + 2), 1 / (bad + 2))
    slope, shift = fit_logistic(left_out[:, None], targets, 0.0)
    if slope < 0:  # nothing was learned: the share of right answers is the best guess
        slope, shift = 0.0, math.log((good + 1) / (bad + 1))
    whole = _regress(x, y)
    return Fitted(whole.means, whole.scales, whole.weights, whole.bias, float(slope), float(shift))


def _regress(x: F64, y: F64) -> Fitted:
    import numpy as np

    means, scales = x.mean(axis=0), x.std(axis=0)
    scales = np.where(scales > 1e-9, scales, 1.0)  # what never changes has no weight
    *weights, bias = (float(weight) for weight in fit_logistic((x - means) / scales, y))
    return Fitted(tuple(map(float, means)), tuple(map(float, scales)), tuple(weights), bias)


def folds(y: F64, count: int = FOLDS) -> list[npt.NDArray[np.bool_]]:
    """Return COUNT masks of answers to leave out, each with its share of right and of wrong ones, drawn from a fixed seed."""
    import numpy as np

    draw, number = np.random.default_rng(SEED), np.zeros(len(y), dtype=np.int64)
    for kind in (0, 1):
        members = np.flatnonzero((y > 0) == bool(kind))
        number[draw.permutation(members)] = (np.arange(len(members)) + kind) % count
    return [number == each for each in range(count)]


# ---- the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head as it is kept: the file it is of, how its answers were made, its numbers, and how good it was on answers it had not seen.

    `settings` has `logprobs` (alternatives of each token), `samples` (answers beside it, 0 for none), `max_tokens` and `temperature`.
    `ability` is the share of right answers of each kind of task, `counts` of how many; `metrics` is what calibration.py found.
    """

    sha256: str
    quant: str
    engine: str
    names: tuple[str, ...]
    fitted: Fitted
    settings: Mapping[str, Any] = field(default_factory=dict)
    ability: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    made_at: str = ""

    def probability(self, found: Mapping[str, float]) -> float:
        """Return the probability that an answer with the features FOUND is right. Raises UsageError where one is missing."""
        missing = [name for name in self.names if name not in found]
        if missing:
            raise UsageError(f"the confidence needs {missing[0]!r} of an answer", hint="judge it as it was calibrated")
        return self.fitted.probability([found[name] for name in self.names])

    @property
    def samples(self) -> int:
        """How many answers beside it are needed to judge one; 0 for none."""
        return int(self.settings.get("samples", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {"format": 1, **asdict(self)}


def head_path(path: Path) -> Path | None:
    """Return where the head of the model file PATH lies; None of a folder, whose files belong to its proof."""
    return None if path.is_dir() else path.with_name(f"{path.name}.confidence.json")


def home_path(sha256: str) -> Path:
    """Return where the head of a file that starts with SHA256 lies, when it cannot lie beside it."""
    from edgeai.paths import home

    return home() / "routing" / "confidence" / f"{sha256[:16]}.json"


def save_head(head: Head, path: Path) -> Path:
    """Keep HEAD beside the model file PATH, or in the user's data folder where that cannot be; return where. It appears whole or not."""
    from edgeai.shelf import write_whole

    text = json.dumps(head.to_dict(), indent=1) + "\n"
    beside = head_path(path)
    if beside is not None:
        try:
            write_whole(beside, text)
        except OSError:  # a folder of somebody else's; the caller is told the path
            pass
        else:
            return beside
    kept = home_path(head.sha256)
    write_whole(kept, text)
    return kept


def load_head(artifact: Artifact, *, engine: str | None = None) -> tuple[Head | None, str]:
    """Return the head of the model in ARTIFACT, and where it lies; or None, and why there is none that can be used.

    The file is hashed, and its hash remembered, only where there is a head that may be its own. ENGINE: what computes it, if that matters.
    """
    beside = head_path(artifact.path)
    known = [path for path in (beside, *home_path("").parent.glob("*.json")) if path is not None and path.is_file()]
    if not known:
        return None, NOT_CALIBRATED
    sha256 = file_sha256(artifact)
    why = NOT_CALIBRATED
    for path in (beside, home_path(sha256)):
        if path is None or not path.is_file():
            continue
        head = read_head(path)
        if head is None:
            why = f"{path.name} is damaged"
        elif head.sha256 != sha256 or head.quant != artifact.quant:
            why = f"{NOT_CALIBRATED}: {path.name} is of other bytes"
        elif engine is not None and head.engine != engine:
            why = f"{NOT_CALIBRATED} in {engine}: {path.name} is of {head.engine}"
        else:
            return head, str(path)
    return None, why


def read_head(path: Path) -> Head | None:
    """Return the head in the file PATH; None where it is none, or has numbers that are not finite or not as many as it needs."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        values = json.loads(path.read_bytes())
        if values.pop("format") != 1:
            return None
        numbers = values.pop("fitted")
        means, scales, weights = (tuple(map(float, numbers[name])) for name in ("means", "scales", "weights"))
        bias, slope, shift = (float(numbers[name]) for name in ("bias", "slope", "shift"))
        fitted = Fitted(means, scales, weights, bias, slope, shift)
        head = Head(names=tuple(map(str, values.pop("names"))), fitted=fitted, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return head if _sound(head) else None


def _sound(head: Head) -> bool:
    fitted = head.fitted
    numbers = (*fitted.means, *fitted.scales, *fitted.weights, fitted.bias, fitted.slope, fitted.shift)
    texts = all(isinstance(getattr(head, name), str) for name in ("sha256", "quant", "engine", "made_at"))
    tables = all(isinstance(getattr(head, name), dict) for name in ("settings", "ability", "counts", "metrics"))
    return (
        texts
        and tables
        and len(head.names) == len(fitted.means) == len(fitted.scales) == len(fitted.weights)
        and all(map(math.isfinite, numbers))
        and all(scale > 0 for scale in fitted.scales)
        and all(type(share) in (int, float) and 0 <= share <= 1 for share in head.ability.values())
    )


def file_sha256(artifact: Artifact) -> str:
    """Return the sha256 of the model in ARTIFACT; computed once for a file of the same path, size, time and inode."""
    from edgeai.childprocess import read_memo, write_memo
    from edgeai.paper import sha256_of
    from edgeai.paths import home

    if artifact.sha256 is not None:
        return artifact.sha256
    if artifact.path.is_dir():
        return sha256_of(artifact.path)
    file = artifact.path.stat()
    key = f"{artifact.path.absolute()} {file.st_size} {file.st_mtime_ns} {file.st_ino}"
    memo = home() / "cache" / "sha256.json"
    known = read_memo(memo)
    if not isinstance(known.get(key), str):
        known = {**dict(list(known.items())[-REMEMBERED:]), key: sha256_of(artifact.path)}
        write_memo(memo, known)
    return str(known[key])
