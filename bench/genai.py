"""ONNX language models: against a bare loop of onnxruntime-genai on the same folder, and against GGUF files of the same model.

    python bench/genai.py [FOLDER] [--rounds 5] [--quick] [--formats]

FOLDER is a Hugging Face folder (default: smollm2, read back from its GGUF file). The peer is the loop of onnxruntime-genai's own
examples: append_tokens with the whole prompt, then generate_next_token, greedy, with as many threads. Ours is what a caller of the
engine gets: tokenizing, text and stream included; its decode rate is that of its own clock, from the first token to the last.
--formats makes files of both formats instead, with their proofs, and measures them as `edgeai convert --to gguf,onnx` does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import pairs, save

import edgeai
from edgeai.conversion import Conversion
from edgeai.evaluation.sidebyside import measure
from edgeai.evaluation.streams import distinct_texts
from edgeai.exporting import convert_onnx
from edgeai.importing import import_model
from edgeai.model import Model
from edgeai.pipeline import convert
from edgeai.store import Store

PROMPTS, ANSWER = (64, 512), 128
FORMATS = (("gguf", "q8_0"), ("gguf", "q4_k_m"), ("gguf", "q4_0"), ("onnx", "int8"), ("onnx", "int4"))


def bare(folder: Path, threads: int) -> Callable[[list[int]], tuple[float, float]]:
    """Return the peer: ids → seconds to the first token, and tokens per second after it."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def run(ids: list[int]) -> tuple[float, float]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + ANSWER, do_sample=False)
        began = time.perf_counter()
        generator = og.Generator(model, params)
        generator.append_tokens(np.asarray(ids, np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        count = 1
        while count < ANSWER and not generator.is_done():
            generator.generate_next_token()
            count += 1
        return first - began, (count - 1) / (time.perf_counter() - first)

    return run


def ours(model: Model) -> Callable[[str], tuple[float, float]]:
    """Return what a caller gets: text → seconds to the first text, and tokens per second after the first."""

    def run(text: str) -> tuple[float, float]:
        timings = model.complete(text, max_tokens=ANSWER, temperature=0).timings
        return timings.ttft_s or 0.0, timings.gen_tok_s or 0.0

    return run


def loops(folder: Path, rounds: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return TTFT and decode against the bare loop, for each length of prompt."""
    found: dict[str, Any] = {}
    with edgeai.load(folder, streams=1) as model:
        mine, peer = ours(model), bare(folder, model.plan.threads)
        for size in sizes:
            (text,) = distinct_texts(lambda words: len(model.tokenize(words)), 1, size)
            ids = model.tokenize(text, add_special=True)
            mine(text), peer(ids)
            both: dict[str, list[tuple[float, float]]] = {"mine": [], "peer": []}
            for _ in range(rounds):
                both["mine"].append(mine(text))
                both["peer"].append(peer(ids))
            for at, name in enumerate(("seconds to the first token", "tokens/s decoded")):
                left, right = iter(both["mine"]), iter(both["peer"])
                found[f"prompt of {size}: {name}"] = pairs(
                    lambda left=left, at=at: next(left)[at], lambda right=right, at=at: next(right)[at], rounds
                )
    return found


def formats(source: Path, place: Path, rounds: int) -> dict[str, Any]:
    """Return for each format and type: size, distance from the source, and speed here, measured in turns."""
    done: list[Conversion] = []
    for kind, quant in FORMATS:
        where = place / (f"{quant}.gguf" if kind == "gguf" else f"{quant}-onnx")
        done.append((convert if kind == "gguf" else convert_onnx)(source, where, quant))
    rows = {}
    for item, speed in zip(done, measure([item.path for item in done], rounds=rounds), strict=True):
        values = {row.name: row.value for row in item.report.rows}
        rows[f"{item.format} {item.quant}"] = {
            "MB": round(item.bytes / 1e6, 1),
            "bits_per_weight": round(item.bpw, 2),
            "mean_kl": values.get("mean KL on text, nats"),
            "top1": values.get("first choice as torch"),
            "prompt_tok_s": round(speed.prompt_tok_s, 1),
            "gen_tok_s": round(speed.gen_tok_s, 1),
        }
    return rows


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, a short prompt; nothing is saved")
    parser.add_argument("--formats", action="store_true", help="GGUF against ONNX")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = arguments.folder or import_model(Store.open().find("smollm2"), place / "smollm2").path
        if arguments.formats:
            save("formats", {"model": source.name, "files": formats(source, place, rounds)}, keep=not arguments.quick)
            return
        folder = convert_onnx(source, place / "int4", "int4").path
        sizes = PROMPTS[:1] if arguments.quick else PROMPTS
        save("onnx", {"model": source.name, **loops(folder, rounds, sizes)}, keep=not arguments.quick)


if __name__ == "__main__":
    main()
