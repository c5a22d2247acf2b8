"""Several requests at once: edgeai's engine against llama-server, same prompts, same lengths, greedy, in turns.

    python bench/streams.py [--models smollm2-q4_0 …] [--streams 8] [--rounds 5] [--kv-unified] [--quick]

`distinct`: prompts of 64 tokens that share nothing, 64 tokens of answer. `shared`: one system prompt of 600 tokens,
new in each round, before questions of 24 tokens, 32 tokens of answer; `shared_primed`: another new one, after a single
request with it; `shared_warm`: the same again with other questions. Figures: all tokens per second from the first
question to the last token, and the median wait of a caller for its first text.

edgeai is asked through `Model.stream` from one thread per caller, llama-server over HTTP from one thread per caller.
`long`: as `distinct`, with prompts of LONG tokens. edgeai runs as it does by default, or with one KV cache for all callers
(`--kv-unified`); llama-server with a KV cache for each slot and with one for all (`-kvu`), and the better of the two
counts.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_server import LlamaServer, llama_server
from measure import save

import edgeai
import models
from edgeai.evaluation.streams import Together, ask, distinct_texts, end_tokens, together

CONTEXT = 1024  # tokens of one request
LONG = 400  # tokens of a long prompt
KEPT_BYTES = (
    64 << 20
)  # of prompts that edgeai may keep: 2900 tokens of SmolLM2; llama-server may keep 8 GiB (--cache-ram)
SHARED, QUESTION, SHARED_ANSWER = 600, 24, 32
PROMPT, ANSWER = 64, 64

Round = Callable[[list[str], int], Together]


def our_side(model: edgeai.Model, path: Path) -> Round:
    """Return what asks edgeai."""
    banned = dict.fromkeys(end_tokens(path), -100.0)
    options: dict[str, Any] = {"temperature": 0, "logit_bias": banned}

    def run(prompts: list[str], tokens: int) -> Together:
        return together([ask(model, prompt, max_tokens=tokens, **options) for prompt in prompts])

    return run


def their_side(server: LlamaServer) -> Round:
    """Return what asks llama-server."""
    return lambda prompts, tokens: together([server.ask(prompt, tokens) for prompt in prompts])


class Prompts:
    """The prompts of each round; no round repeats the texts of another."""

    def __init__(self, model: edgeai.Model, streams: int) -> None:
        self._count = lambda text: len(model.tokenize(text, add_special=True))
        self._streams = streams

    def distinct(self, round_: int) -> list[str]:
        """Return prompts that share nothing."""
        return distinct_texts(self._count, self._streams, PROMPT, seed=1000 + round_)

    def long(self, round_: int) -> list[str]:
        """Return long prompts that share nothing."""
        return distinct_texts(self._count, self._streams, LONG, seed=6000 + round_)

    def shared(self, round_: int, again: int = 0) -> list[str]:
        """Return questions behind one system prompt; AGAIN asks others behind the same."""
        [system] = distinct_texts(self._count, 1, SHARED, seed=2000 + round_)
        questions = distinct_texts(self._count, self._streams, QUESTION, seed=3000 + 100 * round_ + again)
        return [f"{system}\n\n{question}" for question in questions]


def figures(runs: Sequence[Together]) -> dict[str, Any]:
    """Return medians over the rounds."""
    return {
        "tok_s": statistics.median(run.tok_s for run in runs),
        "ttft_p50_s": statistics.median(run.ttft_s(0.5) for run in runs),
        "ttft_p95_s": statistics.median(run.ttft_s(0.95) for run in runs),
        "tokens": [sum(answer.tokens for answer in run.answers) for run in runs],
        "values": {
            "tok_s": [round(run.tok_s, 2) for run in runs],
            "ttft_p50_s": [round(run.ttft_s(0.5), 4) for run in runs],
        },
    }


def compare(sides: dict[str, Round], prompts: Prompts, rounds: int) -> dict[str, Any]:
    """Measure every side in every round, one after another, and return the figures of each case."""
    runs: dict[str, dict[str, list[Together]]] = {
        case: {side: [] for side in sides} for case in ("distinct", "long", "shared", "shared_primed", "shared_warm")
    }
    for run in sides.values():
        run(prompts.distinct(-1), 8)
    for number in range(rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        cases = {
            "distinct": (prompts.distinct(number), ANSWER),
            "long": (prompts.long(number), ANSWER),
            "shared": (prompts.shared(number), SHARED_ANSWER),
            "shared_primed": (prompts.shared(500 + number), SHARED_ANSWER),
            "shared_warm": (prompts.shared(500 + number, again=1), SHARED_ANSWER),
        }
        for case, (texts, tokens) in cases.items():
            for side in order:
                if case == "shared_primed":
                    sides[side](prompts.shared(500 + number, again=2)[:1], 1)
                runs[case][side].append(sides[side](texts, tokens))
    return {case: against({side: figures(found) for side, found in by_side.items()}) for case, by_side in runs.items()}


def against(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the sides with ours against the best of the others in each figure."""
    others = [found for side, found in sides.items() if side != "edgeai"]
    best = {"tok_s": max(one["tok_s"] for one in others), "ttft_p50_s": min(one["ttft_p50_s"] for one in others)}
    mine = sides["edgeai"]
    return {**sides, **{f"{name}_ratio": mine[name] / value for name, value in best.items()}}


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=models.NAMES)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kv-unified", action="store_true", help="one KV cache for all callers of edgeai")
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    arguments = parser.parse_args()
    for name in arguments.models:
        path, count = models.model(name), arguments.streams
        results = measure(path, count, 1 if arguments.quick else arguments.rounds, kv_unified=arguments.kv_unified)
        save(f"streams_{path.stem}_{count}{'_unified' * arguments.kv_unified}", results, keep=not arguments.quick)


def measure(path: Path, count: int, rounds: int, *, kv_unified: bool) -> dict[str, Any]:
    """Return the figures of all sides with the model file PATH and COUNT callers."""
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(
            edgeai.load(
                str(path), ctx=CONTEXT, streams=count, prefix_bytes=KEPT_BYTES, kv_unified=kv_unified, device="cpu"
            )
        )
        flags = ("-np", str(count), "-c", str(CONTEXT * count), "-t", str(model.plan.threads), "-ngl", "0")
        batch = ("-tb", str(model.plan.threads_batch))
        sides = {"edgeai": our_side(model, path)}
        for side, more in (("llama-server", ()), ("llama-server -kvu", ("-kvu",))):
            server = stack.enter_context(llama_server(path, *flags, *batch, *more))
            sides[side] = their_side(server)
        found = compare(sides, Prompts(model, count), rounds)
    return {
        "model": path.name,
        "streams": count,
        "prefix_bytes": KEPT_BYTES,
        "kv_unified": kv_unified,
        "peer_flags": " ".join([*flags, *batch]),
        **found,
    }


if __name__ == "__main__":
    main()
