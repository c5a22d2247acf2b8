"""Measure how far the runtime's tokenizer is from the source's, and find the pre-tokenizer that comes nearest.

What is asked are the questions of `converters.tokenproof`; here a wrong answer is counted, not refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.errors import TokenizerMismatch
from converters.scratch import Scratch
from converters.tokenizer import Inexact, Vocabulary
from converters.tokenproof import Question, cut_questions, example, put, whole_questions

__all__ = ["measure", "nearest"]

FINALISTS = 2


def measure(vocabulary: Vocabulary, architecture: str = "llama") -> Inexact | None:
    """Return how far the runtime is from the source with VOCABULARY, or None when it is not.

    Raises TokenizerMismatch when libllama does not load it.
    """
    with Scratch() as folder:
        questions = whole_questions(Path(folder), vocabulary, architecture)
        return inexactness(questions, put(questions))


def nearest(
    vocabulary: Vocabulary, names: Sequence[str], architecture: str = "llama"
) -> tuple[Vocabulary, Inexact | None]:
    """Return VOCABULARY with that of the pre-tokenizers NAMES that cuts most nearly as the source's, and how far it is from it.

    The small probes of the cuts choose, and the whole vocabulary decides between the best. Raises TokenizerMismatch when libllama
    takes none of them.
    """
    with Scratch() as folder:
        order = names if len(names) <= FINALISTS else by_cuts(Path(folder), vocabulary, names, architecture)
        measured = {}
        for name in order[:FINALISTS]:
            candidate = replace(vocabulary, pre=name)
            questions = whole_questions(Path(folder), candidate, architecture)
            taken, found = attempt(questions)
            if taken:
                measured[name] = found
    if not measured:
        raise TokenizerMismatch(
            f"libllama does not take the vocabulary with any of the pre-tokenizers {', '.join(order[:FINALISTS])}",
            hint="the tokenizer files may be damaged",
        )
    chosen = min(measured, key=lambda name: rank(measured[name]))
    return replace(vocabulary, pre=chosen), measured[chosen]


def by_cuts(folder: Path, vocabulary: Vocabulary, names: Sequence[str], architecture: str) -> list[str]:
    """Return those of NAMES that libllama takes, the one that cuts most nearly as the source's first."""
    questions = cut_questions(folder, vocabulary, architecture, names)
    pairs = {name: questions[2 * place : 2 * place + 2] for place, name in enumerate(names)}
    try:
        answers = put(questions)
        measured = {name: inexactness(pairs[name], answers[2 * at : 2 * at + 2]) for at, name in enumerate(names)}
    except TokenizerMismatch:  # one of them is not for such a vocabulary: ask about each in a child of its own
        tried = {name: attempt(pair) for name, pair in pairs.items()}
        measured = {name: found for name, (taken, found) in tried.items() if taken}
    return sorted(measured, key=lambda name: rank(measured[name]))


def rank(found: Inexact | None) -> tuple[int, float, int]:
    """Return the order of two measurements: fewer texts first, then fewer tokens, then fewer cuts."""
    return (found.wrong, found.tokens, found.cuts) if found else (0, 0.0, 0)


def attempt(questions: Sequence[Question]) -> tuple[bool, Inexact | None]:
    """Return whether libllama lives through QUESTIONS, and what was measured."""
    try:
        return True, inexactness(questions, put(questions))
    except TokenizerMismatch:
        return False, None


def inexactness(questions: Sequence[Question], answers: Sequence[Mapping[str, Any]]) -> Inexact | None:
    """Return what ANSWERS differ in, or None when they are those that are expected."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    shares, examples = [0.0], []
    for question, answer in zip(questions, answers, strict=True):
        for reading, different in zip(question.readings, question.differences(answer).values(), strict=True):
            found[reading.name] = different
            want = dict(zip(question.texts, reading.expected, strict=True))
            if not reading.probe:
                total = sum(map(len, reading.expected))
                shares.append(sum(changed(want[text], ids) for text, ids in different.items()) / max(total, 1))
            examples += [(reading.probe, len(text), example(text, want[text], ids)) for text, ids in different.items()]
    if not examples:
        return None
    return Inexact(texts=len(questions[0].texts), found=found, tokens=max(shares), example=min(examples)[2], reason="")


def changed(expected: Sequence[int], found: Sequence[int]) -> int:
    """Return how many ids of EXPECTED are not in what FOUND begins and ends with."""
    same = 0
    for left, right in zip(expected, found, strict=False):
        if left != right:
            break
        same += 1
    rest = min(len(expected), len(found)) - same
    for left, right in zip(expected[::-1][:rest], found[::-1][:rest], strict=True):
        if left != right:
            break
        same += 1
    return max(len(expected), len(found)) - same
