"""What a process of its own costs: the same prompts in this process and in a worker process, in turns.

    python bench/worker.py [--model PATH] [--rounds 5] [--tokens 128] [--streams 1 8] [--quick]

For each number of streams the gaps between the chunks of a stream (as their reader sees them), the time to the first chunk and tok/s of
all streams together. What isolation adds to a token is the difference of the mean gaps: chunks that arrive together have gaps near zero,
so the median would flatter it. `call` is the round trip of a call that computes next to nothing (tokenize of one word).
Everything is greedy and no prompt is kept, so both sides compute the same.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from measure import save

PROMPT = "Write a long story about the sea, chapter {}."
WARM_CALLS = 200


def one_stream(model: Any, number: int, tokens: int, found: list[dict[str, Any]], start: threading.Barrier) -> None:
    """Read one stream and note when its chunks came."""
    from edgeai.types import GenerationConfig

    config = GenerationConfig(max_tokens=tokens, temperature=0, prefix_cache=False, logit_bias=model.no_end)
    start.wait()
    began, times = time.perf_counter(), []
    for chunk in model.engine.generate(PROMPT.format(number), config):
        if chunk.text:
            times.append(time.perf_counter())
    gaps = [after - before for before, after in itertools.pairwise(times)]
    found.append({"ttft_s": times[0] - began, "gaps_s": gaps, "began": began, "ended": times[-1], "usage": chunk.usage})


def measure(model: Any, streams: int, tokens: int) -> dict[str, Any]:
    """Run STREAMS streams side by side and return what their readers saw."""
    found: list[dict[str, Any]] = []
    start = threading.Barrier(streams)
    threads = [
        threading.Thread(target=one_stream, args=(model, number, tokens, found, start)) for number in range(streams)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gaps = sorted(gap for one in found for gap in one["gaps_s"])
    total = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return {
        "ttft_s": statistics.median(one["ttft_s"] for one in found),
        "gap_mean_s": statistics.fmean(gaps),
        "gap_p50_s": gaps[len(gaps) // 2],
        "gap_p99_s": gaps[int(len(gaps) * 0.99)],
        "tok_s": sum(one["usage"].completion_tokens for one in found) / total,
    }


def call_s(model: Any) -> float:
    """Return the median time of a small call."""
    times = []
    for _ in range(WARM_CALLS):
        began = time.perf_counter()
        model.engine.tokenize("word")
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def load(path: Path, *, isolated: bool) -> Any:
    """Load the model, with what keeps it from ending an answer early."""
    from edgeai.model import Model, open_engine

    model: Any = Model(open_engine(path, ctx=8192, streams=8, isolated=isolated))
    eos = model.artifact.eos
    model.no_end = {} if eos is None else {eos: -1000.0}
    model.complete("Warm up", max_tokens=8, temperature=0)
    return model


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the pulled smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--quick", action="store_true", help="one short round, nothing saved: only whether it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.tokens = 1, 16
    from edgeai.store import Store

    path = arguments.model or Store.open().find("smollm2")
    sides = {"here": load(path, isolated=False), "isolated": load(path, isolated=True)}
    rows: list[dict[str, Any]] = []
    for streams in arguments.streams:
        series: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for turn in range(arguments.rounds):
            order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
            for name in order:
                series[name].append(measure(sides[name], streams, arguments.tokens))
        medians = {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in series.items()
        }
        here, there = medians["here"], medians["isolated"]
        rows.append(
            {
                "streams": streams,
                **medians,
                "added_per_token_us": 1e6 * (there["gap_mean_s"] - here["gap_mean_s"]),
                "added_ttft_us": 1e6 * (there["ttft_s"] - here["ttft_s"]),
                "tok_s_ratio": there["tok_s"] / here["tok_s"],
                "rounds": series,
            }
        )
    calls = {name: 1e6 * call_s(model) for name, model in sides.items()}
    for model in sides.values():
        model.close()
    save(
        "worker",
        {"model": Path(path).name, "tokens": arguments.tokens, "call_us": calls, "streams": rows},
        keep=not arguments.quick,
    )
    for row in rows:
        print(
            f"{row['streams']} streams: {row['added_per_token_us']:+.0f} µs per token, "
            f"{row['added_ttft_us']:+.0f} µs to the first, tok/s ratio {row['tok_s_ratio']:.3f}"
        )
    print(f"a small call: {calls['here']:.0f} µs here, {calls['isolated']:.0f} µs isolated")


if __name__ == "__main__":
    main()
