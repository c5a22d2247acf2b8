"""How fast an ONNX model is here: a language model in llama-bench's terms, read as its engine reads; other models in items a second."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgeai.artifact import Artifact
from edgeai.engines.genai.runtime import Generator, Runtime
from edgeai.engines.onnx.schema import Image, Series, Table, Tensor, Text, schema_of
from edgeai.errors import ClosedError, UsageError
from edgeai.evaluation.bench import Case, Measured
from edgeai.evaluation.energy import Meter
from edgeai.plan import Plan
from edgeai.types import Progress, no_progress

__all__ = ["BATCHES", "GenaiNative", "ends_of", "items_of", "rates"]

BATCHES = (1, 32)
"""Items that are given at once."""
LEAST_S = 0.1
"""How long a run takes at least: a network for small pictures takes microseconds."""
WORDS = ("river", "stone", "window", "garden", "paper", "silver", "morning", "letter")
_SEED = 0x5EED  # the same tokens and items in every run


class GenaiNative:
    """A model in onnxruntime-genai without the engine around it. Prompts are read in the engine's parts; use it from one thread."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self._runtime = Runtime(artifact, plan)
        self._artifact = artifact
        self._random = random.Random(_SEED)  # noqa: S311 - tokens to measure with, no secrets
        self._aborted = False
        self.plan = self._runtime.plan
        self.backend = self._runtime.device
        self.params = artifact.params
        self.size_bytes = int(artifact.metadata["onnx.data_bytes"])

    def measure(self, case: Case, repeat: int, meter: Meter, progress: Progress = no_progress) -> Measured:
        """Run CASE once to warm up and REPEAT times for the clock. Raises ClosedError after `abort`."""
        progress(case.name, 0, repeat)
        self._run(self._at(0, case.size), case.size if case.kind == "pp" else 1, 0 if case.kind == "pp" else 1)
        found, spent = [], 0.0
        for run in range(repeat):
            generator = self._at(case.depth, case.size)
            before, began = meter.joules(), time.perf_counter()
            self._run(generator, case.size, 0 if case.kind == "pp" else 1)
            found.append(case.size / (time.perf_counter() - began))
            spent += (meter.joules() or 0.0) - (before or 0.0)
            progress(case.name, run + 1, repeat)
        per_token = spent / (case.size * repeat) if meter.counters else None
        return Measured(case=case, tok_s=tuple(found), joules_per_token=per_token)

    def _at(self, depth: int, size: int) -> Generator:
        """Return a generator that has read DEPTH tokens and has room for SIZE more."""
        generator = self._runtime.generator(depth + size)
        self._run(generator, depth, 0)
        return generator

    def _run(self, generator: Generator, count: int, part: int) -> None:
        """Compute COUNT tokens, PART at once; 0 for as many as the engine reads."""
        step = part or self._runtime.part
        tokens = [self._random.randrange(self._artifact.vocab) for _ in range(count)]
        for at in range(0, count, step):
            if self._aborted:
                raise ClosedError("the measurement was ended")
            generator.read(tokens[at : at + step])

    def abort(self) -> None:
        """End what runs before its next step, from any thread."""
        self._aborted = True


def ends_of(artifact: Artifact) -> list[int]:
    """Return the tokens that end an answer of an ONNX language model."""
    ends = artifact.metadata.get("genai.eos_token_id", ())
    return [int(token) for token in (ends if isinstance(ends, tuple) else (ends,))]


# ---- classifiers and regressions


def rates(call: Callable[[Sequence[Any]], Any], items: Sequence[Any], repeat: int) -> Iterator[float]:
    """Yield REPEAT times how many ITEMS a second CALL does, given all at once; it is called once before."""
    call(items)
    for _ in range(repeat):
        done, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < LEAST_S or not done:
            call(items)
            done += 1
        yield done * len(items) / took


def items_of(artifact: Artifact, count: int) -> list[Any]:
    """Return COUNT items, such as ARTIFACT takes, that mean nothing. Raises UsageError where its file does not say what it takes."""
    import numpy as np

    schema = schema_of(artifact)
    if schema is None:
        raise UsageError(
            f"{artifact.name} does not say what it takes, so nothing can be given to it",
            hint="edgeai show lists its inputs",
        )
    (wanted,) = schema.inputs
    draw, words = np.random.default_rng(_SEED), random.Random(_SEED)  # noqa: S311 - as above

    def item() -> Any:
        if isinstance(wanted, Image):
            sides = (wanted.height, wanted.width, *((3,) if wanted.channels == 3 else ()))
            return draw.integers(0, 256, sides, dtype=np.uint8)
        if isinstance(wanted, Text):
            return " ".join(words.choice(WORDS) for _ in range(max(1, wanted.max_tokens // 4)))
        if isinstance(wanted, Table):
            return {
                column.name: words.choice(column.values)
                if column.values
                else column.mean + float(draw.normal()) * column.std
                for column in wanted.columns
            }
        if isinstance(wanted, Series):
            return draw.normal(size=(wanted.channels, wanted.length)).astype(np.float32)
        return array(wanted)

    def array(tensor: Tensor) -> Any:
        shape = tuple(side or 1 for side in tensor.shape or ())
        return draw.integers(0, 2, shape).astype(tensor.dtype)

    return [item() for _ in range(count)]
