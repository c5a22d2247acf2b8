"""Prompt and decode speed against llama-bench of the same llama.cpp, in turns, each round a fresh process.

    python bench/speed.py --llama-bench PATH [--model PATH] [--rounds 5]

The prompt is 256 tokens, the answer 128, one stream, as many threads as physical cores. edgeai's decode includes what llama-bench
leaves out: sampling (greedy), turning tokens into text, and handing chunks from the decode thread to the caller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measure import save

PROMPT, ANSWER = 256, 128


def child(model: str) -> None:
    """Measure edgeai in this process and print one JSON object."""
    from edgeai.model import Model, open_engine

    with Model(open_engine(Path(model), ctx=1024)) as loaded:
        text = "The quick brown fox jumps over the lazy dog. " * 60
        ids = loaded.tokenize(text)[: PROMPT - 1]
        loaded.complete("Warm up", max_tokens=4, temperature=0)
        prompts, decodes = [], []
        for _ in range(3):
            first = loaded.complete(loaded.detokenize(ids), max_tokens=1, temperature=0)
            assert abs(first.usage.prompt_tokens - PROMPT) <= 2, first.usage
            assert first.timings.prompt_tok_s is not None
            prompts.append(first.timings.prompt_tok_s)
            done = loaded.complete("Once upon a time", max_tokens=ANSWER, temperature=0)
            assert done.usage.completion_tokens == ANSWER, done.usage
            assert done.timings.gen_tok_s is not None
            decodes.append(done.timings.gen_tok_s)
    print(json.dumps({"pp": sorted(prompts)[1], "tg": sorted(decodes)[1]}))


def ours(model: str) -> dict[str, float]:
    """Return edgeai's tok/s in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", model], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def theirs(program: str, model: str, threads: int) -> dict[str, float]:
    """Return llama-bench's tok/s."""
    command = [program, "-m", model, "-p", str(PROMPT), "-n", str(ANSWER), "-t", str(threads), "-r", "3", "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "pp": next(row["avg_ts"] for row in rows if row["n_prompt"]),
        "tg": next(row["avg_ts"] for row in rows if row["n_gen"]),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--llama-bench")
    parser.add_argument("--model", help="a GGUF file; default: the pulled smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    from edgeai.device import cpu_facts
    from edgeai.store import Store

    model = str(arguments.model or Store.open().find("smollm2"))
    series: dict[str, dict[str, list[float]]] = {name: {"ours": [], "theirs": []} for name in ("pp", "tg")}
    for _ in range(arguments.rounds):
        for side, figures in (
            ("ours", ours(model)),
            ("theirs", theirs(arguments.llama_bench, model, cpu_facts().threads)),
        ):
            for name in series:
                series[name][side].append(figures[name])
    results = {f"{name}{size}_tok_s": _ratio(series[name]) for name, size in (("pp", PROMPT), ("tg", ANSWER))}
    save(f"speed_{Path(model).stem}", results)


def _ratio(values: dict[str, list[float]]) -> dict[str, object]:
    medians = {side: sorted(numbers)[len(numbers) // 2] for side, numbers in values.items()}
    return {**medians, "ratio": medians["ours"] / medians["theirs"], "values": values}


if __name__ == "__main__":
    main()
