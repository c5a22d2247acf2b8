"""ONNX models on a GPU against the same files on the CPU: a table, a JSON file, exit code 1 when a check fails.

    python bench/gpu_onnx.py MODEL [MODEL …] [--device cuda|dml|cpu] [--output FILE.json]

MODEL is a folder with a language model or an embedder, or a classifier's file; best one of each, in F16 and INT4 or INT8. It takes
onnxruntime-genai-cuda and onnxruntime-gpu (or the DirectML builds) in place of the usual packages. --device cpu is a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import commit, machine

import edgeai
from edgeai.errors import EdgeAIError
from edgeai.evaluation.onnx_speed import items_of
from edgeai.model import Model
from edgeai.types import Report, Row

TEXTS = (
    "The for statement is used to iterate over the elements of a sequence.",
    "Water boils at 100 degrees Celsius at sea level, and at less where the air is thin.",
    "ünï\n\n```x = 1```",
)
PROBABILITIES = 0.05
"""Nats by which the log-probability of a token may differ on average: float16 against float32, and other sums."""
COSINE, OUTPUTS = 0.999, 0.02
"""Least cosine of vectors; difference of outputs, divided by the greatest."""


def language(model: Model, peer: Model) -> list[Row]:
    """Hold log-probabilities and greedy answers against those of the CPU, and say how fast both are."""
    apart = [np.abs(np.subtract(model.score(text), peer.score(text))).mean() for text in TEXTS]
    found, wanted = ([each.complete(text, max_tokens=64, temperature=0) for text in TEXTS] for each in (model, peer))
    alike = min(len(common(one.text, other.text)) for one, other in zip(found, wanted, strict=True))
    rows = [
        row("log-probabilities apart, mean nats", float(max(apart)), PROBABILITIES, least=False),
        row("greedy answers alike, characters", float(alike), min(20.0, *(float(len(one.text)) for one in wanted))),
    ]
    rates = [[answer.timings.gen_tok_s or 0.0 for answer in answers] for answers in (found, wanted)]
    return [
        *rows,
        *(
            Row(name=f"tokens/s {name}", value=max(rate))
            for name, rate in zip(("here", "on the CPU"), rates, strict=True)
        ),
    ]


def common(one: str, other: str) -> str:
    """Return the beginning that ONE and OTHER share."""
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


def embedder(model: Model, peer: Model) -> list[Row]:
    """Hold vectors against those of the CPU."""
    cosines = (model.embed(list(TEXTS)) * peer.embed(list(TEXTS))).sum(axis=1)
    return [row("least cosine of vectors", float(cosines.min()), COSINE)]


def classifier(model: Model, peer: Model) -> list[Row]:
    """Hold outputs and labels against those of the CPU."""
    items = items_of(model.artifact, 1)
    (one,), (other,) = model.classify(items), peer.classify(items)
    found, wanted = (np.array(each.logits or each.values) for each in (one, other))
    apart = np.abs(found - wanted).max() / np.abs(wanted).max()
    return [
        row("outputs apart, of the greatest", float(apart), OUTPUTS, least=False),
        Row(name="label", value=str(one.label), limit=f"= {other.label}", ok=one.label == other.label),
    ]


def row(name: str, value: float, limit: float, *, least: bool = True) -> Row:
    """Return the row for a VALUE that must be at LEAST, or at most, LIMIT."""
    ok = value >= limit if least else value <= limit
    return Row(name=name, value=value, limit=f"{'≥' if least else '≤'} {limit:g}", ok=ok)


def checked(path: Path, device: str) -> Report:
    """Return what holds for the model at PATH on DEVICE."""
    with edgeai.load(path, device=device) as model, edgeai.load(path, device="cpu") as peer:
        backend = model.engine.backend
        rows = [Row(name="backend", value=backend, limit=f"= {device}", ok=backend == device)]
        task = model.artifact.task
        check = {"generation": language, "embedding": embedder}.get(task, classifier)
        return Report(rows=(*rows, *check(model, peer)))


def main() -> int:
    """Check, print, save, and return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--device", choices=["cuda", "dml", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    for path in chosen.models:
        try:
            report = checked(path, chosen.device)
        except EdgeAIError as error:
            report = Report(rows=(Row(name="ran to its end", value=error.message, ok=False),))
        found[path.name] = report.to_dict()
        for item in report.rows:
            mark = "FAILED" if not item.ok else "ok" if item.limit else ""
            print(f"{path.name:<24} {item.name:<36} {item.value!s:>24.24} {item.limit or '':<10} {mark}", flush=True)
    if chosen.output:
        record = {"commit": commit(), "machine": machine(), "device": chosen.device, "checks": found}
        chosen.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(report["ok"] for report in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
