"""Prompt and decode speed against llama-bench of the same llama.cpp, in turns, each round a fresh process on both sides.

    python bench/speed.py [--models smollm2-q4_0 gemma3-270m FILE …] [--rounds 9] [--quick]

`pp512` and `tg128` are of `edgeai bench`, which measures what llama-bench does: the native context, without
tokenizing and sampling. `engine_tg128` is what a caller of the engine gets of a single stream, sampling, text and the
way to the caller's thread included, against the same tg128 of llama-bench. Both sides get as many threads as the plan
has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
from measure import save

import models

Figures = dict[str, float]


def ours(model: Path, prompt: int, answer: int) -> Figures:
    """Return edgeai's tok/s in processes of their own."""
    program = [
        sys.executable,
        "-m",
        "edgeai",
        "bench",
        str(model),
        "--device",
        "cpu",
        "--json",
        "--quiet",
        "--repeat",
        "3",
    ]
    rows = _json([*program, "--pp", str(prompt), "--tg", str(answer)])
    figures = {row["test"]: row["tok_s_mean"] for row in rows}
    done = _json([sys.executable, __file__, "--child", str(model), "--answer", str(answer)])
    return {**figures, f"engine_tg{answer}": done["tok_s"]}


def child(model: str, answer: int) -> None:
    """Print the decode speed that one caller of the engine sees, the median of three answers."""
    import edgeai
    from edgeai.evaluation.streams import end_tokens

    with edgeai.load(model, ctx=1024, device="cpu") as loaded:
        banned = dict.fromkeys(end_tokens(Path(model)), -100.0)
        rates = []
        for _ in range(4):
            done = loaded.complete("Once upon a time", max_tokens=answer, temperature=0, logit_bias=banned)
            assert done.usage.completion_tokens == answer, done.usage
            rates.append(done.timings.gen_tok_s)
    print(json.dumps({"tok_s": statistics.median(rates[1:])}))


def theirs(model: Path, threads: tuple[int, int], prompt: int, answer: int) -> Figures:
    """Return llama-bench's tok/s."""
    program = [str(peers.llama_tool("llama-bench")), "-m", str(model), "-r", "3", "-o", "json", "-ngl", "0"]
    decode, batch = map(str, threads)
    pp = _json([*program, "-p", str(prompt), "-n", "0", "-t", batch])[0]["avg_ts"]
    tg = _json([*program, "-p", "0", "-n", str(answer), "-t", decode])[0]["avg_ts"]
    return {f"pp{prompt}": pp, f"tg{answer}": tg, f"engine_tg{answer}": tg}


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def threads_of(model: Path) -> tuple[int, int]:
    """Return the plan's threads (decode, prompt)."""
    from edgeai.engines.opening import planned
    from edgeai.plan import LoadOptions

    plan = planned(model, LoadOptions(device="cpu", ctx=1024))[1]
    return plan.threads, plan.threads_batch


def compare(model: Path, rounds: int, prompt: int, answer: int) -> dict[str, Any]:
    """Return the medians of both sides and their ratio for each figure, measured in turns."""
    threads = threads_of(model)
    series: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        sides = [
            ("ours", lambda: ours(model, prompt, answer)),
            ("theirs", lambda: theirs(model, threads, prompt, answer)),
        ]
        for side, measure in sides if number % 2 else reversed(sides):
            for name, value in measure().items():
                series.setdefault(name, {"ours": [], "theirs": []})[side].append(value)
    return {name: ratio(values) for name, values in series.items()}


def ratio(values: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, their ratio (ours / theirs), and the median of the ratios of each round."""
    medians = {side: statistics.median(numbers) for side, numbers in values.items()}
    rounds = [mine / other for mine, other in zip(values["ours"], values["theirs"], strict=True)]
    return {
        **medians,
        "ratio": medians["ours"] / medians["theirs"],
        "ratio_of_rounds": statistics.median(rounds),
        "values": values,
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=int, default=128, help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=models.NAMES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one round of short tests, to see that it works")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.answer)
        return
    rounds, prompt, answer = (1, 64, 16) if arguments.quick else (arguments.rounds, 512, 128)
    for name in arguments.models:
        model = models.model(name)
        save(f"speed_{model.stem}", compare(model, rounds, prompt, answer), keep=not arguments.quick)


if __name__ == "__main__":
    main()
