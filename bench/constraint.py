"""What a form costs for each token: mask, logits, next state; beside llguidance's own helpers on a copy of the logits.

    python bench/constraint.py [--model smollm2] [--rounds N] [--quick]

Only the vocabulary is loaded, and logits are random, so nothing but the form is measured. Each schema is answered again and again, first
with edgeai's mask (in place), then with `llguidance.numpy` (a copy); times are in milliseconds per token, over all tokens of all rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat object": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "ok": {"type": "boolean"}},
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "nested lists, patterns and formats": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "lines": {
                "type": "array",
                "maxItems": 5,
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                        "price": {"type": "number", "minimum": 0, "maximum": 1000},
                        "when": {"type": "string", "format": "date-time"},
                        "note": {"type": "string", "maxLength": 80},
                    },
                    "required": ["sku", "price", "when", "note"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["id", "lines"],
        "additionalProperties": False,
    },
    "any JSON object": {"type": "object"},
}  # fmt: skip
LIMIT_MS = 0.5


class Vocabulary:
    """The vocabulary of a file, without its weights."""

    def __init__(self, path: Path) -> None:
        from edgeai import native

        self.lib = native.library()
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))


def timed(work: Callable[[], Any], times: list[float]) -> Any:
    """Do WORK and note how many milliseconds it took."""
    began = time.perf_counter()
    found = work()
    times.append((time.perf_counter() - began) * 1e3)
    return found


def ours(mask: Any, rows: Sequence[np.ndarray], times: list[float]) -> int:
    """Answer once with edgeai's mask; return how many tokens that took."""
    for count, row in enumerate(rows, start=1):
        logits = row.copy()  # the native logits are masked where they are; this copy is not measured

        def step(logits: np.ndarray = logits) -> None:
            mask.apply(logits)
            mask.accept(int(logits.argmax()))

        draw: list[float] = []
        timed(step, times)
        timed(lambda logits=logits: int(logits.argmax()), draw)
        times[-1] -= draw[0]  # drawing is the sampler's work
        if mask.finished or mask._matcher.is_stopped():
            return count
    return len(rows)


def theirs(matcher: Any, rows: Sequence[np.ndarray], times: list[float]) -> int:
    """Answer once with llguidance's helpers, on a copy of the logits; return how many tokens that took."""
    from llguidance.numpy import allocate_token_bitmask, apply_token_bitmask_inplace, fill_next_token_bitmask

    bits = allocate_token_bitmask(1, rows[0].size)
    for count, row in enumerate(rows, start=1):
        native = row.copy()

        def step(native: np.ndarray = native) -> np.ndarray:
            fill_next_token_bitmask(matcher, bits)
            logits = native.copy()
            apply_token_bitmask_inplace(logits, bits)
            return logits

        logits = timed(step, times)
        token = int(logits.argmax())
        began = time.perf_counter()
        matcher.consume_token(token)
        times[-1] += (time.perf_counter() - began) * 1e3
        if matcher.is_stopped():
            return count
    return len(rows)


def summary(times: list[float]) -> dict[str, float]:
    """Return p50, p99 and the mean of TIMES."""
    ordered = sorted(times)
    return {
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[int(len(ordered) * 0.99)],
        "mean_ms": statistics.fmean(ordered),
        "n": len(ordered),
    }


def measure_schema(grammars: Any, schema: dict[str, Any], tokens: list[bytes], rounds: int) -> dict[str, Any]:
    """Return the times per token of both for SCHEMA, and that of the first compilation."""
    from edgeai.types import Constraint

    constraint = Constraint(kind="json_schema", source=json.dumps(schema))
    compiled: list[float] = []
    timed(lambda: grammars.compile(constraint), compiled)
    closing = [index for index, piece in enumerate(tokens) if piece in (b'"', b"]", b"}", b'",', b'"}')]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(rounds):
        noise = np.random.default_rng(seed)
        rows = [noise.standard_normal(len(tokens)).astype(np.float32) for _ in range(150)]
        for step, row in enumerate(rows):
            row[closing] += 3 + step / 30
        ours(grammars.compile(constraint), rows, times["ours"])
        theirs(grammars.compile(constraint)._matcher, rows, times["theirs"])
    found = {name: summary(series) for name, series in times.items()}
    return {
        "ours": found["ours"]["p50_ms"],
        "theirs": found["theirs"]["p50_ms"],
        "ratio": found["ours"]["p50_ms"] / found["theirs"]["p50_ms"],
        "compile_ms": compiled[0],
        "details": found,
        "limit_ms": LIMIT_MS,
        "ok": found["ours"]["p99_ms"] <= LIMIT_MS,
    }


def main() -> None:
    """Measure every schema and write results/constraint.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2", help="a pulled model, or the path of a GGUF file")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    arguments = parser.parse_args()

    from edgeai.engines.llamacpp.grammar import grammars_of
    from edgeai.store import Store

    grammars = grammars_of(Vocabulary(Store.open().find(arguments.model)))
    built: list[float] = []
    import llguidance  # noqa: F401 - imported before the clock starts

    tokenizer = timed(lambda: grammars.tokenizer, built)
    tokens = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    rounds = 2 if arguments.quick else arguments.rounds
    results = {name: measure_schema(grammars, schema, tokens, rounds) for name, schema in SCHEMAS.items()}
    name = "constraint" if arguments.model == "smollm2" else f"constraint_{Path(arguments.model).stem}"
    measure.save(
        name,
        {"model": Path(arguments.model).name, "vocabulary": tokenizer.vocab_size, "tokenizer_ms": built[0], **results},
    )


if __name__ == "__main__":
    main()
