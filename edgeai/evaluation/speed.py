"""`edgeai bench` from a file to figures: plan and load, measure case after case, say what each figure is of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeai.artifact import Artifact, open_artifact
from edgeai.device import cpu_facts
from edgeai.engines.genai.runtime import has_provider
from edgeai.engines.opening import open_engine, planned
from edgeai.errors import UsageError
from edgeai.evaluation.bench import Case, Measured, Native, all_of, interruptible, matrix
from edgeai.evaluation.energy import Meter, find_meter
from edgeai.evaluation.onnx_speed import BATCHES, GenaiNative, ends_of, items_of, rates
from edgeai.evaluation.streams import Together, ask, distinct_texts, end_tokens, together
from edgeai.evaluation.tune import ANSWER, PROMPT, Trial, tune
from edgeai.model import Model
from edgeai.onnxplan import language_plan
from edgeai.paths import home
from edgeai.plan import LoadOptions, Plan
from edgeai.tuning import Tuned, kind_of, remember
from edgeai.types import Notice, Progress

__all__ = ["Figure", "Tuning", "Wanted", "measure", "tune_here"]

Notify = Callable[[Iterable[Notice]], None]
DEFAULT_PROMPT, DEFAULT_ANSWER = 512, 128  # tokens, as in llama-bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured; None for the sizes of llama-bench. `load` are further options of plan.LoadOptions."""

    prompts: tuple[int, ...] | None = None
    answers: tuple[int, ...] | None = None
    depths: tuple[int, ...] = (0,)
    streams: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    threads_batch: tuple[int, ...] = ()
    repeat: int = 5
    load: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row: tok/s, or what `unit` says, of each run of `test` on a model that runs in this way."""

    model: str
    size_bytes: int
    params: int
    backend: str
    threads: int
    gpu_layers: int
    test: str
    tok_s: tuple[float, ...]
    streams: int = 1
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    joules_per_token: float | None = None
    energy_source: str | None = None
    energy_problem: str | None = None
    unit: str = "t/s"

    @property
    def mean(self) -> float:
        """The mean of the runs."""
        return statistics.fmean(self.tok_s)

    @property
    def std(self) -> float:
        """The standard deviation of the runs (n - 1); 0 of a single one."""
        return statistics.stdev(self.tok_s) if len(self.tok_s) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `edgeai bench --json` lists."""
        names = ("model", "size_bytes", "params", "backend", "threads", "gpu_layers", "test")
        said: dict[str, Any] = {"tok_s_mean": self.mean, "tok_s_std": self.std, "n": len(self.tok_s)}
        said |= {} if self.unit == "t/s" else {"unit": self.unit}
        more = ("streams", "ttft_p50_s", "ttft_p95_s", "joules_per_token", "energy_source")
        return {name: getattr(self, name) for name in names} | said | {name: getattr(self, name) for name in more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a tuning tried and what it keeps, for models of `kind`."""

    kind: str
    tuned: Tuned
    trials: tuple[Trial, ...]


def measure(path: Path, wanted: Wanted, *, notify: Notify, progress: Progress) -> Iterator[Figure]:
    """Yield the figures of the model file PATH as they are measured.

    Raises UsageError for what cannot be measured, and what loading raises.
    """
    artifact = open_artifact(path)
    if artifact.format == "onnx" and artifact.task not in ("generation", "embedding"):
        yield from _items(artifact, wanted, notify, progress)
    elif artifact.embedding:
        yield from _embedding(artifact, wanted, notify, progress)
    elif wanted.streams:
        for streams in wanted.streams:
            yield from _streams(artifact, wanted, streams, notify, progress)
    elif artifact.format == "onnx":
        yield from _genai(artifact, wanted, notify, progress)
    else:
        yield from _native(path, wanted, notify, progress)


def tune_here(path: Path, wanted: Wanted, *, notify: Notify, progress: Progress) -> Tuning:
    """Find and remember the fastest thread counts for models like PATH. Raises UsageError for other models and for a GPU."""
    cpu = cpu_facts()
    if open_artifact(path).format == "onnx":
        raise UsageError(f"{path.name} is an ONNX model, and --tune is for GGUF files", hint="try --threads 1-4")
    artifact, plan = planned(path, LoadOptions(ctx=max(ANSWER, PROMPT), streams=1, threads=cpu.usable, **wanted.load))
    if artifact.embedding:
        raise UsageError(f"{artifact.name} is an embedding model, and --tune is for language models")
    if plan.device != "cpu":
        raise UsageError("with layers on a GPU there are no threads to tune", hint="--tune --device cpu")
    with Native(artifact, plan) as native:
        notify(native.plan.notices)
        tuned, trials = interruptible(lambda: tune(native, cpu, progress=progress), native.abort)
    kind = kind_of(artifact)
    remember(home() / "cache", cpu.name, cpu.usable, kind, tuned)
    return Tuning(kind=kind, tuned=tuned, trials=tuple(trials))


# ---- a language model, as llama-bench measures it


def _native(path: Path, wanted: Wanted, notify: Notify, progress: Progress) -> Iterator[Figure]:
    prompts = wanted.prompts if wanted.prompts is not None else (DEFAULT_PROMPT,)
    answers = wanted.answers if wanted.answers is not None else (DEFAULT_ANSWER,)
    matrix(
        prompts=prompts, answers=answers, depths=wanted.depths, threads=((1, 1),)
    )  # nothing to do: said before loading
    options = LoadOptions(
        ctx=max(8, max(wanted.depths) + max(*prompts, *answers)),
        streams=1,
        prefix_bytes=0,
        threads=wanted.threads[0] if wanted.threads else None,
        threads_batch=wanted.threads_batch[0] if wanted.threads_batch else None,
        **wanted.load,
    )
    artifact, plan = planned(path, options)
    cases = matrix(prompts=prompts, answers=answers, depths=wanted.depths, threads=_threads(wanted, plan))
    with Native(artifact, plan) as native:
        notify(native.plan.notices)
        meter = find_meter(gpus=1 if native.backend == "cuda" else 0)
        for found in all_of(native, cases, wanted.repeat, meter, progress):
            yield _figure(artifact, native, found, meter)


def _threads(wanted: Wanted, plan: Plan) -> list[tuple[int, int]]:
    """Return the pairs (decode, prompt) to measure with: each number that was asked for, or the plan's."""
    decode = wanted.threads or (plan.threads,)
    if wanted.threads_batch:
        return [(one, other) for one in decode for other in wanted.threads_batch]
    return [(count, count) for count in wanted.threads] or [(plan.threads, plan.threads_batch)]


def _figure(artifact: Artifact, native: Native, found: Measured, meter: Meter) -> Figure:
    return Figure(
        model=label(artifact),
        size_bytes=native.size_bytes,
        params=native.params,
        backend=native.backend.upper(),
        threads=found.case.threads,
        gpu_layers=native.gpu_layers,
        test=found.case.name,
        tok_s=found.tok_s,
        joules_per_token=found.joules_per_token,
        energy_source=meter.source,
        energy_problem=meter.problem,
    )


def label(artifact: Artifact) -> str:
    """Return name and quant type in one."""
    return artifact.name if artifact.quant.lower() in artifact.name.lower() else f"{artifact.name} {artifact.quant}"


def _sizes(artifact: Artifact, wanted: Wanted, *, together: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of prompts and answers; those of llama-bench, cut to what an ONNX model was built for (TOGETHER: both in it)."""
    most = artifact.context if artifact.format == "onnx" else None
    answer = DEFAULT_ANSWER if most is None else min(DEFAULT_ANSWER, most // 2)
    prompt = DEFAULT_PROMPT if most is None else min(DEFAULT_PROMPT, most - (answer + 8 if together else 0))
    return (
        wanted.prompts if wanted.prompts is not None else (prompt,),
        wanted.answers if wanted.answers is not None else (answer,),
    )


def _check_sizes(artifact: Artifact, tokens: int) -> None:
    """Raise UsageError for more TOKENS than an ONNX model was built for."""
    if artifact.format == "onnx" and artifact.context is not None and tokens > artifact.context:
        raise UsageError(
            f"{artifact.name} was built for {artifact.context} tokens, and this needs {tokens}",
            hint="give --pp, --tg and --depth smaller numbers",
        )


def _backend(artifact: Artifact, plan: Plan, device: str) -> str:
    """Return what computes, and where."""
    if artifact.format != "onnx":
        return device.upper()
    return plan.engine if device == "cpu" else f"{plan.engine} {device}"


def _weight_bytes(artifact: Artifact) -> int:
    """Return the bytes of the weights."""
    stated = artifact.metadata.get("onnx.data_bytes")
    return stated if isinstance(stated, int) else sum(tensor.nbytes for tensor in artifact.tensors)


# ---- a language model in ONNX


def _genai(artifact: Artifact, wanted: Wanted, notify: Notify, progress: Progress) -> Iterator[Figure]:
    prompts, answers = _sizes(artifact, wanted)
    matrix(prompts=prompts, answers=answers, depths=wanted.depths, threads=((1, 1),))
    _check_sizes(artifact, max(wanted.depths) + max(*prompts, *answers))
    counts: list[int | None] = [*wanted.threads] or [None]
    for count in counts:  # onnxruntime makes its threads when it loads
        options = LoadOptions(
            ctx=max(8, max(wanted.depths) + max(*prompts, *answers)),
            streams=1,
            threads=count,
            threads_batch=wanted.threads_batch[0] if wanted.threads_batch else None,
            **wanted.load,
        )
        plan = language_plan(artifact, options, has_provider)
        native = GenaiNative(artifact, plan)
        notify(native.plan.notices)
        meter = find_meter(gpus=1 if native.backend == "cuda" else 0)
        pair = (plan.threads, plan.threads)
        cases = matrix(prompts=prompts, answers=answers, depths=wanted.depths, threads=[pair])
        for found in all_of(native, cases, wanted.repeat, meter, progress):
            yield Figure(
                model=label(artifact),
                size_bytes=native.size_bytes,
                params=native.params,
                backend=_backend(artifact, native.plan, native.backend),
                threads=found.case.threads,
                gpu_layers=0,
                test=found.case.name,
                tok_s=found.tok_s,
                joules_per_token=found.joules_per_token,
                energy_source=meter.source,
                energy_problem=meter.problem,
            )


# ---- a classifier or a regression: items that are given one at a time, and many at once


def _items(artifact: Artifact, wanted: Wanted, notify: Notify, progress: Progress) -> Iterator[Figure]:
    if wanted.prompts or wanted.answers or wanted.streams or wanted.depths != (0,):
        raise UsageError(
            f"{artifact.name} is a model for {artifact.task}: it has no tokens to read or to answer with",
            hint="leave out --pp, --tg, --depth and --streams",
        )
    options = dict(wanted.load) | ({"threads_batch": wanted.threads_batch[0]} if wanted.threads_batch else {})
    counts: list[int | None] = [*wanted.threads] or [None]
    for count in counts:
        with Model(open_engine(artifact.path, threads=count, **options)) as model:
            notify(model.plan.notices)
            for batch in BATCHES:
                items = items_of(artifact, batch)
                progress(f"{batch} at once", 0, wanted.repeat)
                found = tuple(rates(model.classify, items, wanted.repeat))
                progress(f"{batch} at once", wanted.repeat, wanted.repeat)
                yield Figure(
                    model=label(artifact),
                    size_bytes=_weight_bytes(artifact),
                    params=artifact.params,
                    backend=_backend(artifact, model.plan, model.engine.backend),
                    threads=model.plan.threads,
                    gpu_layers=0,
                    test=f"{batch} at once",
                    tok_s=found,
                    unit="items/s",
                )


# ---- several callers of the whole engine


def _streams(artifact: Artifact, wanted: Wanted, streams: int, notify: Notify, progress: Progress) -> Iterator[Figure]:
    prompts, answers = _sizes(artifact, wanted, together=True)
    sizes = [(prompt, answer) for prompt in prompts for answer in answers]
    if any(0 in pair for pair in sizes):
        raise UsageError("a request needs a prompt and an answer", hint="give --pp and --tg numbers above 0")
    banned = dict.fromkeys(ends_of(artifact) if artifact.format == "onnx" else end_tokens(artifact.path), -100.0)
    options: dict[str, Any] = dict(wanted.load)
    for name, values in (("threads", wanted.threads), ("threads_batch", wanted.threads_batch)):
        options |= {name: values[0]} if values else {}
    context = max(8, max(map(sum, sizes)) + 8)
    _check_sizes(artifact, context)
    with Model(open_engine(artifact.path, ctx=context, streams=streams, **options)) as model:
        notify(model.plan.notices)
        meter = find_meter(gpus=1 if model.engine.backend == "cuda" else 0)
        for prompt, answer in sizes:
            runs, joules = [], meter.joules()
            for run in range(wanted.repeat + 1):  # the first one warms up
                if run == 1:
                    joules = meter.joules()
                progress(f"{streams} stream{'s' * (streams > 1)} of {prompt} + {answer} tokens", run, wanted.repeat + 1)
                runs.append(_round(model, streams, prompt, answer, banned, run))
            yield _streams_figure(model, (streams, prompt, answer), runs[1:], meter, joules)


def _round(model: Model, streams: int, prompt: int, answer: int, banned: Mapping[int, float], run: int) -> Together:
    texts = distinct_texts(lambda text: len(model.tokenize(text, add_special=True)), streams, prompt, seed=run)
    options = {"max_tokens": answer, "temperature": 0, "logit_bias": banned, "prefix_cache": False}
    return together([ask(model, text, **options) for text in texts])


def _streams_figure(
    model: Model, size: tuple[int, int, int], runs: list[Together], meter: Meter, before: float | None
) -> Figure:
    streams, prompt, answer = size
    tokens = sum(one.tokens for run in runs for one in run.answers)
    after = meter.joules()
    return Figure(
        model=label(model.artifact),
        size_bytes=_weight_bytes(model.artifact),
        params=model.artifact.params,
        backend=_backend(model.artifact, model.plan, model.engine.backend),
        threads=model.plan.threads,
        gpu_layers=model.plan.gpu_layers,
        test=f"{streams}x pp{prompt}+tg{answer}",
        tok_s=tuple(run.tok_s for run in runs),
        streams=streams,
        ttft_p50_s=statistics.median(run.ttft_s(0.5) for run in runs),
        ttft_p95_s=statistics.median(run.ttft_s(0.95) for run in runs),
        joules_per_token=None if after is None or before is None or not tokens else (after - before) / tokens,
        energy_source=meter.source,
        energy_problem=meter.problem,
    )


# ---- an embedding model: texts of N tokens, one at a time


def _embedding(artifact: Artifact, wanted: Wanted, notify: Notify, progress: Progress) -> Iterator[Figure]:
    if wanted.answers not in (None, (0,)) or wanted.streams or wanted.depths != (0,):
        raise UsageError(
            f"{artifact.name} is an embedding model: it reads texts and answers nothing",
            hint="measure it with --pp alone",
        )
    limit = artifact.context or DEFAULT_PROMPT
    sizes = wanted.prompts or (min(DEFAULT_PROMPT, limit),)
    if too_long := [size for size in sizes if not 0 < size <= limit]:
        raise UsageError(f"{artifact.name} takes 1 to {limit} tokens, not {too_long[0]}", hint=f"--pp {limit}")
    counts: list[int | None] = [*wanted.threads] or [None]
    for count in counts:
        with Model(open_engine(artifact.path, threads=count, **wanted.load)) as model:
            notify(model.plan.notices)
            meter = find_meter(gpus=1 if model.engine.backend == "cuda" else 0)
            for size in sizes:
                yield _embedding_figure(model, size, wanted.repeat, meter, progress)


def _embedding_figure(model: Model, size: int, repeat: int, meter: Meter, progress: Progress) -> Figure:
    import time

    def count(text: str) -> int:
        return len(model.tokenize(text, add_special=True))

    [text] = distinct_texts(count, 1, size)
    tokens = count(text)
    model.embed([text])
    found, before = [], meter.joules()
    for run in range(repeat):
        progress(f"texts of {tokens} tokens", run, repeat)
        began = time.perf_counter()
        model.embed([text])
        found.append(tokens / (time.perf_counter() - began))
    after = meter.joules()
    return Figure(
        model=label(model.artifact),
        size_bytes=_weight_bytes(model.artifact),
        params=model.artifact.params,
        backend=_backend(model.artifact, model.plan, model.engine.backend),
        threads=model.plan.threads,
        gpu_layers=model.plan.gpu_layers,
        test=Case(kind="pp", size=tokens, threads=model.plan.threads).name,
        tok_s=tuple(found),
        joules_per_token=None if after is None or before is None else (after - before) / (tokens * repeat),
        energy_source=meter.source,
        energy_problem=meter.problem,
    )
