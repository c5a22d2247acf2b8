"""Microseconds from an item to its prediction, against a bare InferenceSession.run of the same array, in turns.

    python bench/classify.py FILE.onnx [FILE.onnx …] [--rounds 5] [--calls 5000] [--keep]

Ours has all the rest in it: the item is scaled as the file says, checked, and its logits become probabilities. The peer is a session
as onnxruntime makes it without options; it gets the finished array. Items are drawn at random as the file's schema says. Of texts there
is a second peer, which makes the ids with the tokenizers library before each run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from measure import pairs, save

import edgeai
from edgeai.evaluation.onnx_speed import items_of
from edgeai.model import Model


def finished(model: Model, item: Any) -> Mapping[str, Any]:
    """Return what the engine gives the graph for ITEM."""
    reader = model.engine._classifier.reader  # type: ignore[attr-defined]
    return dict(next(iter(reader.batches([item], 1))).feed)


def by_hand(model: Model, bare: Any, text: str) -> Any:
    """Return the output for TEXT of the session BARE, with the ids as the tokenizers library gives them."""
    reader = model.engine._classifier.reader  # type: ignore[attr-defined]
    ids = np.array([reader._tokenizer.encode(text).ids], dtype=np.int64)
    return bare.run(None, dict(zip(reader.names, (ids, np.ones_like(ids)), strict=False)))


def spread(call: Callable[[], Any], calls: int, percentile: int) -> float:
    """Return the PERCENTILE of how long CALLS calls took, in microseconds, after a tenth as many that do not count."""
    for _ in range(calls // 10):
        call()
    found = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - began) / 1000)
    return statistics.quantiles(found, n=100, method="inclusive")[percentile - 1]


def main() -> None:
    """Measure and print; --keep writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--keep", action="store_true", help="write bench/results/classify.json")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for path in arguments.files:
        with edgeai.load(path) as model:
            (item,) = items_of(model.artifact, 1)
            feed = finished(model, item)
            bare = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers()[-1:])
            found[f"{path.stem} bytes"] = path.stat().st_size
            for quantile in (50, 99):
                ours = partial(spread, partial(model.classify, [item]), arguments.calls, quantile)
                theirs = partial(spread, partial(bare.run, None, feed), arguments.calls, quantile)
                found[f"{path.stem} p{quantile} µs"] = pairs(ours, theirs, arguments.rounds)
                if isinstance(item, str):
                    theirs = partial(spread, partial(by_hand, model, bare, item), arguments.calls, quantile)
                    found[f"{path.stem} p{quantile} µs, text to ids by both"] = pairs(ours, theirs, arguments.rounds)
    save("classify", found, keep=arguments.keep)


if __name__ == "__main__":
    main()
