"""How fast a model is here, in llama-bench's terms: a prompt of N tokens (ppN), or N tokens decoded one by one (tgN), at a depth.

As in llama-bench (tools/llama-bench/llama-bench.cpp) the tokens are random, one warm-up run comes first, and neither tokenizing nor
sampling is in the figure: it is the speed of the native context as the engine sets it up. What a caller of the engine sees on top of it,
sampling, text and streams, is what `streams.py` measures.
"""

from __future__ import annotations

import ctypes
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.handle import Handle
from edgeai.errors import UsageError
from edgeai.evaluation.energy import Meter
from edgeai.plan import Plan
from edgeai.types import Progress, no_progress

__all__ = ["Case", "Measured", "Native", "all_of", "interruptible", "matrix"]

T = TypeVar("T")
_SEED = 0x5EED  # the same tokens in every run: experts are chosen by them


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test: SIZE tokens read at once (`pp`) or decoded one by one (`tg`) after DEPTH tokens, with so many threads."""

    kind: Literal["pp", "tg"]
    size: int
    depth: int = 0
    threads: int

    @property
    def name(self) -> str:
        """The name that llama-bench gives it: `pp512`, `tg128 @ d4096`."""
        return f"{self.kind}{self.size}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A case with the tok/s of each of its runs, and the joules a token took where they are known."""

    case: Case
    tok_s: tuple[float, ...]
    joules_per_token: float | None = None

    @property
    def mean(self) -> float:
        """The mean of the runs."""
        return statistics.fmean(self.tok_s)

    @property
    def std(self) -> float:
        """The standard deviation of the runs, with n - 1 as in llama-bench; 0 of a single one."""
        return statistics.stdev(self.tok_s) if len(self.tok_s) > 1 else 0.0


def matrix(
    *, prompts: Iterable[int], answers: Iterable[int], depths: Iterable[int], threads: Sequence[tuple[int, int]]
) -> list[Case]:
    """Return every combination in llama-bench's order; THREADS are pairs (decode, prompt). A size of 0 is no test.

    Raises UsageError when nothing is left to measure.
    """
    prompts, answers = list(prompts), list(answers)
    cases = []
    for depth in depths:
        for decode, batch in threads:
            cases += [Case(kind="pp", size=size, depth=depth, threads=batch) for size in prompts if size]
            cases += [Case(kind="tg", size=size, depth=depth, threads=decode) for size in answers if size]
    if not cases:
        raise UsageError("there is nothing to measure", hint="give --pp or --tg a number above 0")
    return list(dict.fromkeys(cases))


class Native:
    """A loaded model and its context, as the engine makes them, driven without the engine. Use it from one thread."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        # One sequence of the whole length is all that a test needs.
        self._handle = Handle(artifact, replace(plan, streams=1, sequences=1, kv_cells=plan.context, prefix_bytes=0))
        self._lib = self._handle.lib
        self._batch = self._handle.n_batch
        self._random = random.Random(_SEED)  # noqa: S311 - tokens to measure with, no secrets
        self._bos = int(self._lib.llama_vocab_bos(self._handle.vocab))
        self._starts_with_bos = bool(self._lib.llama_vocab_get_add_bos(self._handle.vocab))

    @property
    def backend(self) -> str:
        """What computes, as read back after loading: `cpu` or `cuda`."""
        return self._handle.placement.backend

    @property
    def gpu_layers(self) -> int:
        """How many layers really are on a GPU, the output counted as one."""
        return self._handle.placement.gpu_layers

    @property
    def plan(self) -> Plan:
        """The plan, with a notice for what is less than planned."""
        return self._handle.plan

    @property
    def context(self) -> int:
        """How many tokens fit."""
        return self._handle.n_ctx

    @property
    def params(self) -> int:
        """How many weights the model has."""
        return int(self._lib.llama_model_n_params(self._handle.model))

    @property
    def size_bytes(self) -> int:
        """The bytes of its weights, as llama-bench counts them."""
        return int(self._lib.llama_model_size(self._handle.model))

    def measure(self, case: Case, repeat: int, meter: Meter, progress: Progress = no_progress) -> Measured:
        """Run CASE once to warm up and REPEAT times for the clock. Raises Aborted after `abort`, EngineCrashed."""
        progress(case.name, 0, repeat)
        self._lib.llama_set_n_threads(self._handle.context, case.threads, case.threads)
        self._at_depth(0)
        self._run(case if case.kind == "pp" else replace(case, size=1))
        found, spent = [], 0.0
        for run in range(repeat):
            self._at_depth(case.depth)
            before, began = meter.joules(), time.perf_counter()
            self._run(case)
            found.append(case.size / (time.perf_counter() - began))
            after = meter.joules()
            spent += (after or 0.0) - (before or 0.0)
            progress(case.name, run + 1, repeat)
        per_token = spent / (case.size * repeat) if meter.counters else None
        return Measured(case=case, tok_s=tuple(found), joules_per_token=per_token)

    def _at_depth(self, depth: int) -> None:
        """Leave exactly DEPTH tokens in the context."""
        memory = self._lib.llama_get_memory(self._handle.context)
        used = int(self._lib.llama_memory_seq_pos_max(memory, 0)) + 1
        # Recurrent models and sliding windows cannot always forget a tail; they read the depth again.
        if 0 < depth < used and self._lib.llama_memory_seq_rm(memory, 0, depth, -1):
            return
        if depth and used == depth:
            return
        self._lib.llama_memory_clear(memory, False)
        self._read(depth, first=True)

    def _run(self, case: Case) -> None:
        if case.kind == "pp":
            self._read(case.size, first=not case.depth)
        else:
            self._decode(case.size)
        self._lib.llama_synchronize(self._handle.context)

    def _read(self, count: int, *, first: bool) -> None:
        tokens = self._tokens(count, first=first)
        for start in range(0, count, self._batch):
            part = min(self._batch, count - start)
            array = (ctypes.c_int32 * part)(*tokens[start : start + part])
            self._check(self._lib.llama_decode(self._handle.context, self._lib.llama_batch_get_one(array, part)))

    def _decode(self, count: int) -> None:
        one, lib, context = (ctypes.c_int32 * 1)(), self._lib, self._handle.context
        for token in self._tokens(count, first=True):
            one[0] = token
            self._check(lib.llama_decode(context, lib.llama_batch_get_one(one, 1)))
            lib.llama_synchronize(context)

    def _tokens(self, count: int, *, first: bool) -> list[int]:
        tokens = [self._random.randrange(self._handle.n_vocab) for _ in range(count)]
        if first and count and self._starts_with_bos:
            tokens[0] = self._bos
        return tokens

    def _check(self, code: int) -> None:
        if code:
            self._handle.check(code)

    def abort(self) -> None:
        """End what runs, from any thread; the model can then only be closed."""
        self._handle.abort()

    def close(self) -> None:
        """Free the model."""
        self._handle.free()

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interruptible(work: Callable[[], T], stop: Callable[[], Any]) -> T:
    """Return what WORK returns, run in a thread of its own so that a Ctrl-C can call STOP in the middle of a native call.

    The Ctrl-C is raised when the work has ended: what it uses can then be freed.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal arrives here
        return work()
    results: list[T] = []
    errors: list[BaseException] = []
    pressed = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            errors.append(error)

    def press(_number: int, _frame: object) -> None:
        pressed.set()
        stop()

    previous = signal.signal(signal.SIGINT, press)
    try:
        thread = threading.Thread(target=run, name="edgeai bench", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # Windows delivers a Ctrl-C only between waits
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed.is_set():
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


class Measurable(Protocol):
    """A loaded model that can be measured."""

    def measure(self, case: Case, repeat: int, meter: Meter, progress: Progress = ...) -> Measured:
        """Run CASE once to warm up and REPEAT times for the clock."""

    def abort(self) -> None:
        """End what runs, from any thread."""


def all_of(
    native: Measurable, cases: Iterable[Case], repeat: int, meter: Meter, progress: Progress = no_progress
) -> Iterator[Measured]:
    """Yield each case as it is measured. A Ctrl-C ends the native work at once and is raised."""
    for case in cases:
        yield interruptible(lambda case=case: native.measure(case, repeat, meter, progress), native.abort)  # type: ignore[misc]
