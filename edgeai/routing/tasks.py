"""What kind of task a text is, and how likely it gains from a larger model: two guesses from the text alone, each well below 1 ms.

The kind of task comes from rules: marks that the text has, each with a weight, the heaviest kind wins. They know the usual words of
English and some of German, French, Spanish, Portuguese, Italian, Russian, Chinese and Japanese; everything else is a chat.

The difficulty comes from the length and from 1,500 common words and pairs of words with weights, which were fitted to 14,042 questions
that a weaker and a stronger model had answered (bench/routing.py --fit; RouteLLM's responses to MMLU, Apache-2.0). It is a weak signal:
of questions of subjects that it was not fitted to, it sorts those that gain from the stronger model a little better than their length.
Its scale is that of exam questions with their options: what people ask a chat is shorter, and mostly comes out near 0, hard or not.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgeai.routing.marks import LEAST, MARKS
from edgeai.routing.request import Task

__all__ = ["Weights", "difficulty", "fitted", "score", "task_of", "terms"]

HEAD_CHARS = 1500
TAIL_CHARS = 500
"""What is looked at of a longer text: what is wanted stands at its beginning or its end."""

# ---- the kind of task


@functools.cache
def _compiled() -> dict[Task, tuple[tuple[float, re.Pattern[str]], ...]]:
    return {
        kind: tuple((weight, re.compile(mark, re.MULTILINE)) for weight, mark in marks) for kind, marks in MARKS.items()
    }


def task_of(text: str) -> Task:
    """Return the kind of task that TEXT, what the user wrote last, asks for; only its beginning and its end are looked at."""
    seen = _ends(text)
    weights = {kind: sum(w for w, mark in marks if mark.search(seen)) for kind, marks in _compiled().items()}
    best = max((kind for kind in get_args(Task) if kind in weights), key=lambda kind: weights[kind])
    return best if weights[best] >= LEAST else "chat"


def _ends(text: str) -> str:
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


# ---- the difficulty

WORD = re.compile(r"[a-z]+|\d|[^\w\s]")
FILE = Path(__file__).with_name("difficulty.json")


@dataclass(frozen=True, slots=True)
class Weights:
    """What a difficulty is computed with: a weight for each term, and the quantiles of both signals and of their sum.

    The quantiles are those of the questions that it was fitted to, evenly spaced from 0 to 1.
    """

    terms: Mapping[str, float]
    of_terms: Sequence[float]
    of_length: Sequence[float]
    of_sum: Sequence[float]


def terms(text: str) -> set[str]:
    """Return the words, digits and marks of TEXT, and the pairs of them that follow each other; of a long text, of both its ends."""
    words = WORD.findall(_ends(text).lower())
    return {*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))}


def score(text: str, weights: Mapping[str, float]) -> float:
    """Return the sum of WEIGHTS of the terms of TEXT that have one, over the root of how many those are: a unit vector times weights."""
    found = [weights[term] for term in terms(text) if term in weights]
    return math.fsum(found) / math.sqrt(max(1, len(found)))


def difficulty(text: str, weights: Weights | None = None) -> float:
    """Return how hard TEXT is, 0 to 1: the share of questions of MMLU that gain less from a stronger model, as far as words tell."""
    known = fitted() if weights is None else weights
    both = rank(score(text, known.terms), known.of_terms) + rank(math.log(1 + len(text)), known.of_length)
    return rank(both, known.of_sum)


def rank(value: float, quantiles: Sequence[float]) -> float:
    """Return where VALUE lies among QUANTILES, evenly spaced from 0 to 1, linear between them."""
    at = bisect_right(quantiles, value)
    if at == 0:
        return 0.0
    if at == len(quantiles):
        return 1.0
    low, high = quantiles[at - 1], quantiles[at]
    return (at - 1 + (value - low) / (high - low)) / (len(quantiles) - 1)


@functools.cache
def fitted() -> Weights:
    """Return the weights that come with edgeai."""
    read = json.loads(FILE.read_bytes())
    scale = read["scale"]
    return Weights(
        terms={term: weight * scale for term, weight in read["terms"].items()},
        of_terms=read["of_terms"],
        of_length=read["of_length"],
        of_sum=read["of_sum"],
    )
