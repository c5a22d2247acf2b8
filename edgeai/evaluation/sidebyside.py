"""How fast several files of one model are on this machine, as a caller sees it: in turn, so that all get the same weather."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeai.engines.opening import open_engine
from edgeai.evaluation.onnx_speed import ends_of
from edgeai.evaluation.streams import distinct_texts, end_tokens
from edgeai.model import Model
from edgeai.types import Progress, no_progress

__all__ = ["Speed", "measure"]

PROMPT, ANSWER, ROUNDS = 256, 64, 3
"""Tokens of the prompt and of the answer, and how often each file is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of a prompt and of an answer, the median of some rounds; `load_s` is of the first loading."""

    path: Path
    prompt_tok_s: float
    gen_tok_s: float
    load_s: float


def measure(paths: Sequence[Path], *, rounds: int = ROUNDS, progress: Progress = no_progress) -> list[Speed]:
    """Ask the models at PATHS in turn, each alone, ROUNDS times each. They are language models; all are in memory one after the other."""
    prompt: dict[Path, list[float]] = {path: [] for path in paths}
    gen: dict[Path, list[float]] = {path: [] for path in paths}
    load: dict[Path, float] = {}
    for index in range(rounds):
        for place, path in enumerate(paths):
            progress("measuring", index * len(paths) + place, rounds * len(paths))
            began = time.perf_counter()
            with Model(open_engine(path, streams=1, prefix_bytes=0)) as model:
                load.setdefault(path, time.perf_counter() - began)
                room = (model.artifact.context or PROMPT * 2) - ANSWER
                size = max(8, min(PROMPT, room // 2))
                text = distinct_texts(_counter(model), 1, size, seed=index)[0]
                banned = dict.fromkeys(_ends(model), -1000.0)
                done = model.complete(text, max_tokens=ANSWER, temperature=0, logit_bias=banned)
                prompt[path].append(done.timings.prompt_tok_s or 0.0)
                gen[path].append(done.timings.gen_tok_s or 0.0)
    progress("measuring", rounds * len(paths), rounds * len(paths))
    middle = statistics.median
    return [
        Speed(path=path, prompt_tok_s=middle(prompt[path]), gen_tok_s=middle(gen[path]), load_s=load[path])
        for path in paths
    ]


def _counter(model: Model) -> Callable[[str], int]:
    return lambda text: len(model.tokenize(text))


def _ends(model: Model) -> list[int]:
    """Return the tokens that would end an answer early."""
    if model.artifact.format == "gguf":
        return end_tokens(model.artifact.path)
    return ends_of(model.artifact)
