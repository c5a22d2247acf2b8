"""From the facts of an ONNX file to an engine that runs: what is wanted, how many threads, how many items at once, is there room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeai.artifact import Artifact
from edgeai.engines.onnx.cache import OptimizedModels
from edgeai.engines.onnx.classifier import TASKS
from edgeai.engines.onnx.embedder import EmbedderEngine
from edgeai.engines.onnx.engine import ClassifierEngine
from edgeai.engines.onnx.schema import Image, Series, Table, Tensor, Text, schema_of
from edgeai.errors import DoesNotFit, InvalidModel, UsageError
from edgeai.options import LoadOptions
from edgeai.paths import home
from edgeai.plan import Plan

if TYPE_CHECKING:
    from edgeai.device import CPU

__all__ = ["load_model", "plan_of", "refuse_language_only"]

SMALL_BYTES = 4_000_000
"""A smaller model runs with one thread: a network of 2.8 MB takes 199 µs with one and 334 µs with two, a picture of 8 × 8 less than 10."""
BATCH_BYTES, MOST_ITEMS, MOST_TEXTS = 4 << 20, 256, 32
"""Inputs of one batch, in bytes, items and texts: what the layers make of them takes several times as much."""
RUNTIME_BYTES = 50_000_000
"""What onnxruntime takes before any weights."""
LANGUAGE_ONLY = ("ctx", "threads_batch", "gpu_layers", "kv_type", "prefix_bytes", "kv_unified", "adapters", "draft")
"""Options that mean nothing to a model without a context."""


def load_model(artifact: Artifact, wanted: LoadOptions) -> ClassifierEngine | EmbedderEngine:
    """Plan the model ARTIFACT for this machine and load it into this process.

    Raises UsageError for options that mean nothing to it, DeviceUnavailable, InvalidModel, DoesNotFit.
    """
    if artifact.task not in (*TASKS, "embedding"):
        raise InvalidModel(
            f"{artifact.name} is an ONNX model for {artifact.task}, which is not run here", hint="use its GGUF file"
        )
    refuse_language_only(artifact, wanted)
    from edgeai.device import cpu_facts

    cpu = cpu_facts()
    device = "cpu" if wanted.gpu_layers == 0 else wanted.device
    if artifact.task == "embedding":
        return EmbedderEngine(
            artifact,
            plan_of(artifact, wanted, cpu),
            device=device,
            cache=_cache(cpu),
        )
    return ClassifierEngine(
        artifact,
        plan_of(artifact, wanted, cpu),
        device=device,
        cache=_cache(cpu),
    )


def refuse_language_only(artifact: Artifact, wanted: LoadOptions) -> None:
    """Raise UsageError for an option of WANTED that means nothing to ARTIFACT, which has no context."""
    for name in LANGUAGE_ONLY:
        if value := getattr(wanted, name):
            raise UsageError(
                f"{name} {value!r:.60} is not possible: {artifact.name} is a model for {artifact.task}",
                hint=f"leave `{name}` out",
            )


def plan_of(artifact: Artifact, wanted: LoadOptions, cpu: CPU, *, free: int | None = None) -> Plan:
    """Return how ARTIFACT will run on CPU, with FREE bytes instead of what is free; the device is known when it is loaded.

    Raises DoesNotFit.
    """
    from edgeai.device import memory_facts

    small = artifact.size_bytes < SMALL_BYTES
    threads = wanted.threads or (1 if small else cpu.threads)
    if wanted.threads:
        why = f"{threads} thread{'s' * (threads > 1)}: asked for"
    else:
        why = "1 thread: the model is small" if small else f"{threads} threads: one for each fast core"
    # onnxruntime reads the file, and keeps weights beside it in another order.
    needed = 2 * artifact.size_bytes + RUNTIME_BYTES
    free = memory_facts().available if free is None else free
    if needed > free:
        raise DoesNotFit(
            f"{artifact.name!r} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", hint="free memory"
        )
    return Plan(
        engine="onnxruntime",
        device="cpu" if wanted.device == "auto" else wanted.device,
        gpu_layers=0,
        context=0,
        batch=1 if wanted.deterministic else _batch(artifact),
        threads=threads,
        threads_batch=threads,
        kv_type="none",
        extra_bufts=False,
        memory_bytes=needed,
        fits=True,
        streams=wanted.streams or 1,
        queue=wanted.queue,
        numerics=wanted.numerics,
        deterministic=wanted.deterministic,
        why=(why,),
    )


def _batch(artifact: Artifact) -> int:
    """Return how many items are computed together."""
    schema = schema_of(artifact)
    if schema is None:
        return 1  # whether its first axis is one of items is not known
    (wanted,) = schema.inputs
    if isinstance(wanted, Text):
        return max(1, min(MOST_TEXTS, BATCH_BYTES // (16 * wanted.max_tokens)))
    return max(1, min(MOST_ITEMS, BATCH_BYTES // (4 * _numbers(wanted))))


def _numbers(wanted: Image | Table | Series | Tensor) -> int:
    if isinstance(wanted, Image):
        return wanted.channels * wanted.height * wanted.width
    if isinstance(wanted, Series):
        return wanted.channels * wanted.length
    if isinstance(wanted, Table):
        return sum(column.width for column in wanted.columns)
    found = 1
    for side in wanted.shape or ():
        found *= side or 1024
    return found


def _cache(cpu: CPU) -> OptimizedModels:
    import onnxruntime

    runtime = f"{onnxruntime.__version__} {onnxruntime.get_build_info()}"
    return OptimizedModels(home() / "cache" / "onnx", version=runtime, features=(cpu.name, *cpu.isa))
