"""How long a running stream stands still while another caller's long prompt is read: edgeai against llama-server, in
turns.

    python bench/stall.py [--model smollm2-q4_0] [--prompt 4096] [--rounds 5] [--quick]

One caller decodes; when it has 16 tokens, another one comes with a prompt of 4096 tokens. The figure is the longest
gap between two pieces of the first caller's answer from then until the second one has its first token; and that
token's wait. llama-server runs with its own batch of 2048 tokens and with one of 512.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from llama_server import llama_server
from measure import save

import edgeai
import models
from edgeai.evaluation.streams import Answer, ask, distinct_texts, end_tokens

HEAD_START, LONGEST = 16, 2000  # tokens of the running answer before the prompt comes; and at most
Ask = Callable[[str, int], Callable[[Answer, float], None]]


class Watched(list[float]):
    """The times of pieces, telling when there are HEAD_START of them, and ending the answer when it has been seen enough of."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way, self.enough = threading.Event(), threading.Event()

    def append(self, value: float) -> None:
        """Note a piece."""
        super().append(value)
        if len(self) == HEAD_START:
            self.under_way.set()
        if self.enough.is_set():
            raise Enough


class Enough(Exception):
    """The stream has been watched for long enough."""


def watch(side: Ask, running: str, long_prompt: str) -> dict[str, float]:
    """Return the gaps of RUNNING's answer while LONG_PROMPT is read."""
    pieces = Watched()
    first, second = Answer(pieces=pieces), Answer()
    began = time.perf_counter()

    def run() -> None:
        with contextlib.suppress(Enough):
            side(running, LONGEST)(first, began)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not pieces.under_way.wait(60):
        raise RuntimeError("the first stream does not run")
    asked = time.perf_counter() - began
    side(long_prompt, 1)(second, began)
    ended = second.ended or time.perf_counter() - began
    pieces.enough.set()
    thread.join()
    before = [after - at for at, after in itertools.pairwise(pieces) if after <= asked]
    inside = [min(after, ended) - at for at, after in itertools.pairwise(pieces) if after > asked and at < ended]
    tokens = sum(asked <= at <= ended for at in pieces)
    return {
        "longest_gap_s": max(inside, default=ended - asked),
        "usual_gap_s": statistics.median(before),
        "prompt_s": second.pieces[0] - asked if second.pieces else ended - asked,
        "running_tok_s": tokens / (ended - asked),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-q4_0")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="one round with a prompt of 512 tokens, to see that it works"
    )
    arguments = parser.parse_args()
    rounds, prompt = (1, 512) if arguments.quick else (arguments.rounds, arguments.prompt)
    path = models.model(arguments.model)
    context = prompt + LONGEST + 64
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(edgeai.load(str(path), ctx=context, streams=2, device="cpu"))
        options: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(end_tokens(path), -100.0)}
        sides: dict[str, Ask] = {"edgeai": lambda text, tokens: ask(model, text, max_tokens=tokens, **options)}
        for side, batch in (("llama-server", 2048), ("llama-server -b 512", 512)):
            flags = ("-np", "2", "-c", str(2 * context), "-b", str(batch), "-t", str(model.plan.threads), "-ngl", "0")
            sides[side] = stack.enter_context(llama_server(path, *flags)).ask
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for number in range(rounds):
            texts = distinct_texts(lambda text: len(model.tokenize(text)), 2, prompt, seed=number)
            for side in sides:
                found[side].append(watch(sides[side], texts[0][:200], texts[1]))
    results = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {"values": runs}
        for side, runs in found.items()
    }
    save(f"stall_{path.stem}", {"model": path.name, "prompt_tokens": prompt, **results}, keep=not arguments.quick)


if __name__ == "__main__":
    main()
