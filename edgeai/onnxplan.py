"""How an ONNX language model will run here: device, context, threads and memory, decided before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from edgeai.artifact import Artifact
from edgeai.device import cpu_facts, memory_facts
from edgeai.errors import DeviceUnavailable, DoesNotFit, UsageError
from edgeai.options import DEFAULT_STREAMS, LoadOptions
from edgeai.placement import CPU, Placement, Share
from edgeai.plan import Plan
from edgeai.room import default_context
from edgeai.threads import choose_threads
from edgeai.types import Notice

__all__ = ["check_options", "choose_device", "language_plan"]

BATCH = 64
"""Tokens of a prompt that are read at once (engines.genai.runtime.PART)."""
LIBRARY_BYTES = 60 << 20
"""What onnxruntime and onnxruntime-genai take without a model."""
PACKED = 1.2
"""onnxruntime keeps weights in another order, in an arena that grows in steps, beside the tables that stay as they are."""
SHARED = 2
"""Copies of a matrix that is both ends: onnxruntime keeps its rows for the embedding, and its blocks in another order for the products."""
LOGITS = 4
"""Arrays of the logits of one part of a prompt. With these, predictions are within 8 % for SmolLM2 and Gemma-3-270M (bench/LOG.md)."""

WITHOUT: Mapping[str, Callable[[LoadOptions], bool]] = {
    "gpu_layers": lambda options: bool(options.gpu_layers),
    "kv_type": lambda options: options.kv_type is not None,
    "kv_unified": lambda options: options.kv_unified,
    "prefix_bytes": lambda options: bool(options.prefix_bytes),
    "threads_batch": lambda options: options.threads_batch not in (None, options.threads),
    "adapters": lambda options: bool(options.adapters),
    "draft": lambda options: options.draft is not None,
}
"""Options that only GGUF models have → whether one is given."""
MEND = {
    "cuda": "pip install onnxruntime-genai-cuda in place of onnxruntime-genai",
    "dml": "pip install onnxruntime-genai-directml in place of onnxruntime-genai, under Windows",
}

Where = Literal["cpu", "cuda", "dml"]


def check_options(artifact: Artifact, options: LoadOptions, names: Mapping[str, Any] = WITHOUT) -> None:
    """Raise UsageError for an option that would do nothing."""
    for name, given in names.items():
        if given(options):
            raise UsageError(
                f"`{name}` is not possible: {artifact.name} is an ONNX model",
                hint=f"leave `{name}` out, or use the GGUF file of the model",
            )


def choose_device(
    options: LoadOptions, has: Callable[[str], bool], mend: Mapping[str, str] = MEND
) -> tuple[Where, str]:
    """Return the device and why. HAS says whether the installed library was built for one, MEND how to get one that is.

    Raises DeviceUnavailable for a device that is asked for and that the library does not have.
    """
    if options.device in ("cuda", "dml"):
        if not has(options.device):
            raise DeviceUnavailable(
                f"device {options.device!r} cannot run here: the installed onnxruntime was not built for it",
                hint=mend[options.device],
            )
        return options.device, f"{options.device} was asked for"
    if options.device == "cpu" or options.gpu_layers == 0:
        return "cpu", "the CPU was asked for"
    found: tuple[Where, ...] = ("cuda", "dml")
    for name in found:
        if has(name):
            return name, f"the installed onnxruntime has {name}"
    return "cpu", "the installed onnxruntime has the CPU only"


def language_plan(
    artifact: Artifact, options: LoadOptions, has: Callable[[str], bool], *, free: int | None = None
) -> Plan:
    """Decide how the language model ARTIFACT runs under OPTIONS, with FREE bytes of memory instead of what is free.

    Raises UsageError for options that do nothing here and for a context beyond the model's, DeviceUnavailable, DoesNotFit.
    """
    check_options(artifact, options)
    where, why = choose_device(options, has)
    trained = artifact.context
    if options.ctx is not None and trained is not None and options.ctx > trained:
        raise UsageError(
            f"{artifact.name} was built for {trained} tokens, and the context is {options.ctx}",
            hint=f"use `ctx={trained}` or less",
        )
    context = options.ctx or default_context(artifact, options.needed)
    streams = options.streams or DEFAULT_STREAMS
    threads = choose_threads(cpu_facts(), decode=options.threads, batch=None, tuned=None)
    half = artifact.quant in ("F16", "BF16")
    token_bytes = kv_token_bytes(artifact, 2 if half else 4)
    weights = weight_bytes(artifact)
    working = LIBRARY_BYTES + LOGITS * min(BATCH, context) * artifact.vocab * 4
    kv = token_bytes * context
    free = memory_facts().available if free is None else free
    best = streams
    if where == "cpu" and options.streams is None and kv:  # each request that runs has a cache of its own
        streams = max(1, min(streams, (free - working - weights) // kv))
    if where == "cpu" and working + weights + kv * streams > free:
        raise DoesNotFit(
            f"{artifact.name!r} at context {context} with {streams} stream{'s' * (streams > 1)} needs "
            f"{(working + weights + kv * streams) / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            hint="use a smaller `ctx`, fewer `streams`, or a smaller file: edgeai convert … --to onnx --quant int4",
        )
    notices: tuple[Notice, ...] = ()
    if half and where == "cpu":
        message = f"{artifact.name} has float16 weights, which this CPU computes in float32 at a part of the speed"
        notices = (Notice(code="half-on-cpu", message=message),)
    if streams < best:
        message = f"{streams} instead of {best} streams: more do not fit in memory"
        notices = (*notices, Notice(code="fewer-streams", message=message))
    place = CPU if where == "cpu" else where.upper()
    return Plan(
        engine="onnxruntime-genai",
        device=where,
        gpu_layers=0,
        context=context,
        batch=BATCH,
        threads=threads.decode,
        threads_batch=threads.decode,
        kv_type="f16" if half else "f32",
        extra_bufts=False,
        memory_bytes=working + weights + kv,
        fits=True,
        streams=streams,
        sequences=streams,
        kv_cells=context,
        numerics=options.numerics,
        deterministic=options.deterministic,
        queue=options.queue,
        placement=Placement(shares=(Share(device=place, layers=1, weights_bytes=weights, kv_bytes=kv),)),
        overhead_bytes=working,
        why=(why, f"each request has a KV cache of its own, {token_bytes / 1e3:.1f} kB a token", *threads.why),
        notices=notices,
    )


def weight_bytes(artifact: Artifact) -> int:
    """Return what the weights take once onnxruntime has put them in the order that it computes in."""
    data = int(artifact.metadata.get("onnx.data_bytes", artifact.size_bytes))
    return int(PACKED * (data + SHARED * int(artifact.metadata.get("onnx.shared_bytes", 0))))


def kv_token_bytes(artifact: Artifact, item: int) -> int:
    """Return what one token takes in a KV cache of numbers of ITEM bytes; of layers with windows too, at most."""
    facts = artifact.metadata
    sizes = [int(facts.get(f"genai.{key}", 0)) for key in ("num_hidden_layers", "num_key_value_heads", "head_size")]
    return 2 * sizes[0] * sizes[1] * sizes[2] * item
