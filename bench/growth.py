"""How edgeai grows: with the context (512 to 8k) beside llama-bench, with the number of callers (1 to 32) and with the
length of what eight callers ask beside llama-server.

python bench/growth.py [--model smollm2-q4_0] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
from llama_server import llama_server
from measure import save
from streams import ANSWER, CONTEXT, KEPT_BYTES, PROMPT, our_side, their_side

import edgeai
import models
from edgeai.evaluation.streams import distinct_texts

DEPTHS = (0, 512, 1024, 2048, 4096, 8064)
STREAMS = (1, 2, 4, 8, 16, 32)
PROMPTS, CALLERS = (64, 256, 768), 8


def rss_bytes(pid: int) -> int:
    """Return the resident size of process PID."""
    import psutil

    return int(psutil.Process(pid).memory_info().rss)


def by_depth(path: Path, depths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Return decode and prompt speed at each depth on both sides."""
    rows = []
    listed = ",".join(map(str, depths))
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for _ in range(rounds):
        command = [sys.executable, "-m", "edgeai", "bench", str(path), "--pp", "128", "--tg", "32", "--depth", listed]
        for row in _json([*command, "--repeat", "2", "--json", "--quiet", "--device", "cpu"]):
            ours.setdefault(row["test"], []).append(row["tok_s_mean"])
        program = [str(peers.llama_tool("llama-bench")), "-m", str(path), "-p", "128", "-n", "32", "-d", listed]
        for row in _json([*program, "-r", "2", "-o", "json", "-ngl", "0", "-t", str(_threads(path))]):
            size = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
            test = size + (f" @ d{row['n_depth']}" if row["n_depth"] else "")
            theirs.setdefault(test, []).append(row["avg_ts"])
    for test, values in ours.items():
        mine, other = statistics.median(values), statistics.median(theirs[test])
        rows.append({"test": test, "ours": mine, "theirs": other, "ratio": mine / other})
    return rows


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _threads(path: Path) -> int:
    from speed import threads_of

    return threads_of(path)[0]


def by_streams(path: Path, sizes: Sequence[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """Return tok/s, waits and memory for each number of callers with prompts of so many tokens on both sides."""
    import os

    rows = []
    for count, length in sizes:
        with edgeai.load(str(path), ctx=CONTEXT, streams=count, prefix_bytes=KEPT_BYTES, device="cpu") as model:
            flags = ("-np", str(count), "-c", str(CONTEXT * count), "-t", str(model.plan.threads), "-ngl", "0")
            with llama_server(path, *flags) as server:
                count_of = functools.partial(_tokens, model)
                sides = {"ours": our_side(model, path), "theirs": their_side(server)}
                found: dict[str, list[Any]] = {side: [] for side in sides}
                for number in range(rounds):
                    for side, run in sides.items():
                        found[side].append(run(distinct_texts(count_of, count, length, seed=1000 + number), ANSWER))
                pids = {"ours": os.getpid(), "theirs": server.pid}
                row: dict[str, Any] = {"streams": count, "prompt_tokens": length}
                for side, runs in found.items():
                    row[f"{side}_tok_s"] = statistics.median(run.tok_s for run in runs)
                    row[f"{side}_ttft_p50_s"] = statistics.median(run.ttft_s(0.5) for run in runs)
                    row[f"{side}_rss_bytes"] = rss_bytes(pids[side])
                rows.append({**row, "tok_s_ratio": row["ours_tok_s"] / row["theirs_tok_s"]})
    return rows


def _tokens(model: edgeai.Model, text: str) -> int:
    return len(model.tokenize(text, add_special=True))


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of two sizes, to see that it works")
    arguments = parser.parse_args()
    path = models.model(arguments.model)
    depths, counts, lengths, rounds = DEPTHS, STREAMS, PROMPTS, arguments.rounds
    if arguments.quick:
        depths, counts, lengths, rounds = (0, 64), (1, 2), (64,), 1
    results = {
        "model": path.name,
        "answer_tokens": ANSWER,
        "by_depth": by_depth(path, depths, rounds),
        "by_streams": by_streams(path, [(count, PROMPT) for count in counts], rounds),
        "by_prompt": by_streams(path, [(CALLERS, length) for length in lengths], rounds),
    }
    save(f"growth_{path.stem}", results, keep=not arguments.quick)


if __name__ == "__main__":
    main()
