"""How well a text alone tells which questions gain from a stronger model: APGR, CPT50 and CPT80 beside random, length and oracle.

    python bench/routing.py mmlu_weak_strong.csv.gz [--fit] [--json OUT]

The data are the responses of a weaker and a stronger model (Mixtral 8x7B and GPT-4) to the 14,042 questions of MMLU that
lm-sys/RouteLLM (Apache-2.0) publishes, as CSV: domain, prompt, weak_correct, strong_correct. Every question is scored by weights that were
fitted without its domain: ten folds of whole domains. Also the words that count are chosen without it. Labels of options are taken out
of the texts; "as it stands" has them in. `--fit` writes the weights of all domains to edgeai/routing/difficulty.json.

PGR at a share of strong calls is what is gained over the weak model, of what the strong one gains over it. APGR is the area under PGR
from no to all strong calls, 0.5 for random; CPT(x) is the least share with PGR ≥ x (Ong et al., RouteLLM, 2024; the area is exact here,
over all 14,043 shares, not over ten). Intervals: percentiles of 1000 resamples of questions, and of whole domains for differences.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import save

from edgeai.routing import tasks

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEED = 20260101
FOLDS = 10
RESAMPLES = 1000
LEAST_DOMAINS = 20
"""Of 57: a word that stands in fewer domains is about a subject, and says nothing of others."""
LEAST_TEXTS = 30
RIDGE = 30.0
QUANTILES = 65
OPTION = re.compile(r"\n[A-D]\. ")
SOURCE = "lm-sys/RouteLLM@0b64fda routellm/evals/mmlu/responses (Apache-2.0): 14,042 questions of MMLU, weak and strong model right or not"


class Data:
    """Prompts without the labels of their options, their domains, and who was right."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.raw = [row["prompt"] for row in rows]
        self.texts = [OPTION.sub("\n", prompt.removesuffix("\nAnswer:")) for prompt in self.raw]
        self.domains: Ints = np.unique([row["domain"] for row in rows], return_inverse=True)[1]
        self.weak = np.array([row["weak_correct"] == "True" for row in rows], dtype=np.float64)
        self.strong = np.array([row["strong_correct"] == "True" for row in rows], dtype=np.float64)
        self.log_chars = np.array([math.log(1 + len(text)) for text in self.texts])

    @property
    def gain(self) -> F64:
        """What asking the strong model brings: 1, 0 or -1."""
        return self.strong - self.weak


# ---- fitting


class Terms:
    """Which terms stand in which text, (texts, terms), of all that stand in enough texts."""

    def __init__(self, data: Data) -> None:
        found = [tasks.terms(text) for text in data.texts]
        counts: dict[str, int] = {}
        for each in found:
            for term in each:
                counts[term] = counts.get(term, 0) + 1
        self.names = sorted(term for term, count in counts.items() if count >= LEAST_TEXTS)
        column = {name: at for at, name in enumerate(self.names)}
        self.there = np.zeros((len(found), len(self.names)), dtype=np.float32)
        for row, each in enumerate(found):
            self.there[row, [column[term] for term in each if term in column]] = 1
        self.by_domain = np.stack([self.there[data.domains == one].max(axis=0) for one in np.unique(data.domains)])

    def common(self, domains: Ints) -> npt.NDArray[np.bool_]:
        """Return which terms stand in enough of DOMAINS."""
        share = LEAST_DOMAINS / len(self.by_domain)
        kept: npt.NDArray[np.bool_] = self.by_domain[domains].sum(axis=0) >= share * len(domains)
        return kept

    def units(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Return the texts as unit vectors over the KEPT terms."""
        part = self.there[:, kept]
        return part / np.sqrt(np.maximum(1, part.sum(axis=1, keepdims=True)))


def ridge(x: npt.NDArray[np.float32], y: F64) -> F64:
    """Return the weights of ridge regression of Y on X, both centred."""
    centred = (x - x.mean(axis=0)).astype(np.float32)
    gram = (centred.T @ centred).astype(np.float64) + RIDGE * np.eye(x.shape[1])
    return np.linalg.solve(gram, (centred.T @ (y - y.mean()).astype(np.float32)).astype(np.float64))


def quantiles(values: F64) -> list[float]:
    """Return evenly spaced quantiles, each above the one before."""
    found = np.quantile(values, np.linspace(0, 1, QUANTILES))
    return [float(value) for value in found + np.arange(QUANTILES) * 1e-9]


def ranks(values: F64, among: F64) -> F64:
    """Return the rank of each of VALUES among the values AMONG, 0 to 1, as tasks.rank finds it."""
    return np.interp(values, quantiles(among), np.linspace(0, 1, QUANTILES))


def out_of_fold(data: Data, known: Terms, seed: int) -> tuple[F64, F64]:
    """Return for each question (score of its words, difficulty), from weights and quantiles that saw nothing of its domain."""
    order = np.random.default_rng(seed).permutation(data.domains.max() + 1)
    words, hard = np.zeros(len(data.texts)), np.zeros(len(data.texts))
    for fold in np.array_split(order, FOLDS):
        test = np.isin(data.domains, fold)
        x = known.units(known.common(np.setdiff1d(order, fold)))
        scores = (x @ ridge(x[~test], data.gain[~test]).astype(np.float32)).astype(np.float64)
        both = ranks(scores, scores[~test]) + ranks(data.log_chars, data.log_chars[~test])
        words[test], hard[test] = scores[test], ranks(both, both[~test])[test]
    return words, hard


def out_of_fold_raw(data: Data, known: Terms, seed: int) -> F64:
    """Return the difficulty of each prompt as it stands, as edgeai computes it, with weights that saw nothing of its domain."""
    order, hard = np.random.default_rng(seed).permutation(data.domains.max() + 1), np.zeros(len(data.texts))
    for fold in np.array_split(order, FOLDS):
        test = np.isin(data.domains, fold)
        fitted = weights_of(data, known, np.setdiff1d(order, fold), ~test)
        for at in np.flatnonzero(test):
            hard[at] = tasks.difficulty(data.raw[at], fitted)
    return hard


def weights_of(data: Data, known: Terms, domains: Ints, rows: npt.NDArray[np.bool_]) -> tasks.Weights:
    """Return what a difficulty is computed with, from the ROWS of DOMAINS; the weights are whole numbers of a thousandth of the largest."""
    kept = known.common(domains)
    weights = ridge(known.units(kept)[rows], data.gain[rows])
    scale = float(np.abs(weights).max() / 999)
    names = [name for name, keep in zip(known.names, kept, strict=True) if keep]
    scaled = {name: round(weight / scale) * scale for name, weight in zip(names, weights, strict=True)}
    scores = np.array([tasks.score(data.texts[at], scaled) for at in np.flatnonzero(rows)])
    both = ranks(scores, scores) + ranks(data.log_chars[rows], data.log_chars[rows])
    of_length = quantiles(data.log_chars[rows])
    return tasks.Weights(scaled, quantiles(scores), of_length, quantiles(both))


def fit(data: Data, known: Terms, path: Path) -> dict[str, Any]:
    """Fit the weights to all domains, and write them to PATH; return what is said of them."""
    found = weights_of(data, known, np.unique(data.domains), np.ones(len(data.texts), dtype=bool))
    scale = max(abs(weight) for weight in found.terms.values()) / 999
    record = {
        "source": SOURCE,
        "fitted_by": "bench/routing.py --fit",
        "ridge": RIDGE,
        "scale": scale,
        "of_terms": [round(value, 7) for value in found.of_terms],
        "of_length": [round(value, 7) for value in found.of_length],
        "of_sum": [round(value, 7) for value in found.of_sum],
        "terms": {name: round(weight / scale) for name, weight in sorted(found.terms.items())},
    }
    path.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return {"terms": len(found.terms), "bytes": path.stat().st_size}


# ---- measuring


def curve(score: F64, gain: F64) -> F64:
    """Return PGR at 0, 1, 2 … strong calls, the questions of the highest SCORE first; ties are broken by a fixed draw."""
    draw = np.random.default_rng(SEED).random(len(score))
    best_first = np.lexsort((draw, -score))
    total = np.concatenate([[0.0], np.cumsum(gain[best_first])])
    return total / total[-1]


def figures(score: F64, gain: F64) -> dict[str, float]:
    """Return APGR, CPT50 and CPT80 of sending the questions of the highest SCORE first."""
    pgr = curve(score, gain)
    shares = np.linspace(0, 1, len(pgr))
    found = {"apgr": float(np.trapezoid(pgr, shares))}
    return found | {f"cpt{at}": float(shares[np.argmax(pgr >= at / 100)]) for at in (50, 80)}


def with_intervals(score: F64, gain: F64) -> dict[str, Any]:
    """Return the figures, and their 95 % intervals from resampled questions."""
    draw = np.random.default_rng(SEED)
    resampled = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(len(gain), size=len(gain))
        resampled.append(figures(score[chosen], gain[chosen]))
    found: dict[str, Any] = {}
    for name, value in figures(score, gain).items():
        low, high = np.percentile([each[name] for each in resampled], (2.5, 97.5))
        found[name] = {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    return found


def difference(ours: F64, theirs: F64, data: Data) -> dict[str, float]:
    """Return by how much APGR of OURS is above that of THEIRS, with the interval of resampled whole domains."""
    draw, members = (
        np.random.default_rng(SEED),
        [np.flatnonzero(data.domains == one) for one in np.unique(data.domains)],
    )
    found = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[one] for one in draw.integers(len(members), size=len(members))])
        gain = data.gain[chosen]
        found.append(figures(ours[chosen], gain)["apgr"] - figures(theirs[chosen], gain)["apgr"])
    value = figures(ours, data.gain)["apgr"] - figures(theirs, data.gain)["apgr"]
    low, high = np.percentile(found, (2.5, 97.5))
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def slope(right: F64, difficulty: F64) -> float:
    """Return by how much the log-odds of a right answer fall from difficulty 0 to 1: a logistic regression by Newton's method."""
    x = np.stack([np.ones(len(right)), difficulty - 0.5], axis=1)
    weights = np.zeros(2)
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (right - p))
    return -float(weights[1])


def microseconds(function: Callable[[str], Any], texts: Sequence[str]) -> float:
    """Return how long FUNCTION takes for one of TEXTS, in microseconds."""
    began = time.perf_counter()
    for text in texts:
        function(text)
    return round((time.perf_counter() - began) / len(texts) * 1e6, 1)


def main() -> None:
    """Measure, and with --fit write the weights first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path, help="CSV: domain, prompt, weak_correct, strong_correct; gzipped")
    parser.add_argument("--fit", action="store_true", help="write edgeai/routing/difficulty.json from all domains")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write the figures here; results/ is then left alone"
    )
    arguments = parser.parse_args()
    data = Data(arguments.path)
    known = Terms(data)
    found: dict[str, Any] = {"data": SOURCE, "questions": len(data.texts), "domains": int(data.domains.max()) + 1}
    found |= {"weak": round(float(data.weak.mean()), 4), "strong": round(float(data.strong.mean()), 4)}
    if arguments.fit:
        found["fitted"] = fit(data, known, tasks.FILE)
    words, hard = out_of_fold(data, known, SEED)
    raw = out_of_fold_raw(data, known, SEED)
    length = np.array([float(len(prompt)) for prompt in data.raw])
    shipped = np.array([tasks.difficulty(text) for text in data.texts])
    found["leave domains out"] = {
        "random": with_intervals(np.random.default_rng(SEED + 1).random(len(length)), data.gain),
        "prompt length": with_intervals(length, data.gain),
        "words": with_intervals(words, data.gain),
        "difficulty (words and length)": with_intervals(hard, data.gain),
        "difficulty of the prompt as it stands": with_intervals(raw, data.gain),
        "oracle": with_intervals(data.gain, data.gain),
    }
    found["APGR, difficulty less length, resampled domains"] = difference(hard, length, data)
    found["APGR, as it stands less length, resampled domains"] = difference(raw, length, data)
    found["APGR, difficulty less random, resampled domains"] = difference(hard, np.zeros(len(hard)), data)
    found["APGR of other folds"] = [
        round(figures(out_of_fold(data, known, SEED + other)[1], data.gain)["apgr"], 4) for other in (1, 2, 3, 4)
    ]
    found["in sample, the weights as shipped"] = figures(shipped, data.gain)
    found["slope of log-odds"] = {
        "weak": round(slope(data.weak, hard), 3),
        "strong": round(slope(data.strong, hard), 3),
    }
    found["us per text"] = {
        "difficulty": microseconds(tasks.difficulty, data.texts[:2000]),
        "task": microseconds(tasks.task_of, data.texts[:2000]),
        "characters": round(float(np.mean([len(text) for text in data.texts[:2000]])), 1),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    save("routing", found, keep=arguments.json is None)


if __name__ == "__main__":
    main()
