"""Texts per second of an embedding model, one by one and 32 at once, against sentence-transformers on torch's CPU, in turns.

    python bench/embed.py [--rounds 5] [--quick]

Both have all threads of the machine and the same texts: paragraphs of Python's own help texts, of mixed length, cut at 256 tokens (what
sentence-transformers cuts at for this model). Ours runs GGUF files in F32, F16 and Q8_0, and ONNX folders in F32 and INT8, of the same
weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from measure import pairs, save

import edgeai
from edgeai.exporting import convert_onnx
from edgeai.pipeline import convert
from edgeai.store import Store

MODEL = "minilm"
BATCH = 32
QUICK = ("Q8_0", "ONNX INT8")
ALL = ("F32", "F16", "Q8_0", "ONNX F32", "ONNX INT8")


def texts(count: int) -> list[str]:
    """Return COUNT texts of 20 to 800 letters."""
    parts = [part.strip() for topic in topics.topics.values() for part in topic.split("\n\n")]
    return [part[:800] for part in parts if len(part) >= 20][:count]


def rate(embed: Callable[[list[str]], Any], some: list[str], batch: int) -> float:
    """Return texts per second of EMBED in calls of BATCH texts."""
    began = time.perf_counter()
    for at in range(0, len(some), batch):
        embed(some[at : at + batch])
    return len(some) / (time.perf_counter() - began)


def main() -> None:
    """Measure and save."""
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few texts, one round; nothing is saved")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    few, many = (texts(16), texts(64)) if arguments.quick else (texts(64), texts(512))
    source = Store.open().find(MODEL)
    peer = SentenceTransformer(str(source), device="cpu")

    def theirs(some: list[str]) -> Any:
        return peer.encode(some, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    found: dict[str, Any] = {"model": MODEL, "texts": len(many), "texts_alone": len(few)}
    with tempfile.TemporaryDirectory() as folder:
        for quant in QUICK if arguments.quick else ALL:
            kind, _, name = quant.rpartition(" ")
            path = Path(folder) / (f"{name}.gguf" if not kind else f"{name}-onnx")
            (convert_onnx if kind else convert)(source, path, name.lower())
            with edgeai.load(path) as model:
                cosines = (model.embed(few) * theirs(few)).sum(axis=1)
                found[f"{quant} least cosine"] = float(np.min(cosines))
                found[f"{quant} texts/s alone"] = pairs(
                    lambda model=model: rate(model.embed, few, 1), lambda: rate(theirs, few, 1), rounds
                )
                found[f"{quant} texts/s in {BATCH}"] = pairs(
                    lambda model=model: rate(model.embed, many, BATCH), lambda: rate(theirs, many, BATCH), rounds
                )
    save("embed", found, keep=not arguments.quick)


if __name__ == "__main__":
    main()
