"""How many tokens a loaded model gives to several callers at once, and how long each of them waits for its first one.

Everything that a caller pays for is in the figures: tokenizing, queueing, prompt, sampling, text, and the way through its stream.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeai import native
from edgeai.errors import EdgeAIError
from edgeai.model import Model
from edgeai.types import Prompt

__all__ = ["Answer", "Together", "distinct_texts", "end_tokens", "quantile", "together"]

WORDS = (
    "river", "stone", "window", "garden", "paper", "silver", "morning", "letter", "harbour", "engine", "winter", "yellow", "market",
    "forest", "copper", "island", "mirror", "bridge", "candle", "thunder", "pocket", "ladder", "meadow", "violin", "compass",
)  # fmt: skip


@dataclass(slots=True)
class Answer:
    """What one caller saw: when its pieces came, in seconds after it asked, and how many tokens they were."""

    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ended: float = 0.0

    @property
    def ttft_s(self) -> float:
        """The wait for the first piece of text."""
        return self.pieces[0] if self.pieces else self.ended

    @property
    def longest_gap_s(self) -> float:
        """The longest wait between two pieces."""
        return max((after - before for before, after in itertools.pairwise(self.pieces)), default=0.0)


@dataclass(frozen=True, slots=True)
class Together:
    """Answers to requests that were made at once; `wall_s` from the first question to the last token."""

    answers: tuple[Answer, ...]
    wall_s: float

    @property
    def tok_s(self) -> float:
        """Tokens of all answers per second."""
        return sum(answer.tokens for answer in self.answers) / self.wall_s

    def ttft_s(self, share: float) -> float:
        """Return the quantile SHARE of the waits for the first text."""
        return quantile([answer.ttft_s for answer in self.answers], share)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile SHARE of VALUES, linear between neighbours."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def together(asks: Sequence[Callable[[Answer, float], None]]) -> Together:
    """Have every one of ASKS, each in a thread of its own, fill its answer; times count from the moment given to it.

    What the first of them raises is raised here, when all have ended.
    """
    answers = [Answer() for _ in asks]
    errors: list[BaseException] = []
    ready = threading.Barrier(len(asks) + 1)

    def run(ask: Callable[[Answer, float], None], answer: Answer) -> None:
        try:
            ready.wait()
            began = time.perf_counter()
            ask(answer, began)
            answer.ended = time.perf_counter() - began
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in zip(asks, answers, strict=True)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # Windows delivers a Ctrl-C only between waits
    if errors:
        raise errors[0]
    return Together(tuple(answers), time.perf_counter() - began)


def ask(model: Model, prompt: Prompt, **options: Any) -> Callable[[Answer, float], None]:
    """Return what reads MODEL's answer to PROMPT into an Answer, as fast as it comes."""

    def read(answer: Answer, began: float) -> None:
        with model.stream(prompt, **options) as stream:
            for chunk in stream:
                if chunk.text:
                    answer.pieces.append(time.perf_counter() - began)
                if chunk.usage is not None:
                    answer.tokens = chunk.usage.completion_tokens
                    answer.prompt_tokens, answer.cached_tokens = chunk.usage.prompt_tokens, chunk.usage.cached_tokens

    return read


def distinct_texts(count: Callable[[str], int], many: int, tokens: int, seed: int = 0) -> list[str]:
    """Return MANY texts of words in random order, none the beginning of another, each of about TOKENS tokens by COUNT (never more)."""
    texts = []
    for index in range(many):
        order = random.Random(f"{seed}.{index}")  # noqa: S311 - texts to measure with, no secrets
        words = [f"{index}{order.choice(WORDS)}", *(order.choice(WORDS) for _ in range(tokens))]
        low, high = 1, len(words)
        while low < high:  # the longest beginning that is not too long
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(" ".join(words[:middle])) <= tokens else (low, middle - 1)
        texts.append(" ".join(words[:low]))
    return texts


def end_tokens(path: Path) -> list[int]:
    """Return the tokens that end an answer of the model file PATH; without them, answers have the length that was asked for."""
    lib = native.library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise EdgeAIError(f"the vocabulary of {str(path)!r} does not load", hint="edgeai verify PATH")
    try:
        vocab = ctypes.c_void_p(lib.llama_model_get_vocab(model))
        return [token for token in range(lib.llama_vocab_n_tokens(vocab)) if lib.llama_vocab_is_eog(vocab, token)]
    finally:
        lib.llama_model_free(model)
