"""What will run how on this machine: device, layers, context, threads and memory, decided before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgeai.artifact import Artifact
from edgeai.cuda import trouble
from edgeai.device import Device
from edgeai.errors import DeviceUnavailable, DoesNotFit, UsageError
from edgeai.threads import choose_threads
from edgeai.tuning import kind_of
from edgeai.types import Notice

__all__ = [
    "DEFAULT_CONTEXT",
    "DEFAULT_QUEUE",
    "DEFAULT_STREAMS",
    "DeviceChoice",
    "KVType",
    "LoadOptions",
    "Plan",
    "make_plan",
]

DeviceChoice = Literal["auto", "cpu", "cuda"]

KVType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""The types that libllama keeps a KV cache in (common/arg.cpp, kv_cache_types)."""

DEFAULT_CONTEXT = 8192
"""Context when none is asked for, or the trained one if that is smaller."""


DEFAULT_STREAMS = 8
"""Requests computed side by side when nothing is asked for; those that come on top wait."""

DEFAULT_QUEUE = 1024
"""Requests that may wait for their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a caller wants of a loaded model. None leaves the choice to the plan; what is given is kept or refused, never changed.

    `ctx`: the longest prompt and answer together, in tokens. `needed`: an upper bound of the tokens that will ever be in the context, for
    callers that know it: without `ctx` the context is then no larger than that. `threads` decode, `threads_batch` read prompts.
    `streams`: requests computed side by side. `queue`: how many may wait before Busy. `prefix_bytes`: how much of the KV cache may keep
    prompts for later requests, 0 for none. `deterministic`: an answer does not depend on what else runs, at the price of speed.
    `adapters`: name → LoRA adapter file. `draft`: a small model of the same vocabulary for speculation.
    """

    ctx: int | None = None
    needed: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    device: DeviceChoice = "auto"
    gpu_layers: int | None = None
    kv_type: KVType | None = None
    streams: int | None = None
    queue: int = DEFAULT_QUEUE
    prefix_bytes: int | None = None
    deterministic: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)
    draft: Path | None = None

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, bool, str], ...] = (
            ("ctx", self.ctx is None or self.ctx >= 8, "at least 8"),
            ("threads", self.threads is None or 1 <= self.threads <= 512, "between 1 and 512"),
            ("threads_batch", self.threads_batch is None or 1 <= self.threads_batch <= 512, "between 1 and 512"),
            ("device", self.device in get_args(DeviceChoice), "one of " + ", ".join(get_args(DeviceChoice))),
            ("gpu_layers", self.gpu_layers is None or 0 <= self.gpu_layers <= 10_000, "between 0 and 10000"),
            ("kv_type", self.kv_type in (None, *get_args(KVType)), "one of " + ", ".join(get_args(KVType))),
            ("streams", self.streams is None or 1 <= self.streams <= 128, "between 1 and 128"),
            ("queue", 0 <= self.queue <= 10**6, "between 0 and 1000000"),
            ("prefix_bytes", self.prefix_bytes is None or self.prefix_bytes >= 0, "0 or more"),
        )
        for name, ok, rule in limits:
            if not ok:
                raise UsageError(f"{name} {getattr(self, name)!r} is not possible", hint=f"{name} must be {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model will run. Memory in bytes; `gpu_layers` counts the output layer, as llama.cpp does.

    `context` bounds one request; `kv_cells` tokens fit into the KV cache, which all requests and kept prefixes share. `sequences` is how
    many of both there can be at once. `devices` are the GPUs that get layers, by libggml's names, all CUDA devices when there are none;
    `tensor_split` says in which proportion, by free memory when it is empty.
    """

    engine: str
    device: Literal["cpu", "cuda"]
    gpu_layers: int
    context: int
    batch: int
    threads: int
    kv_type: str
    extra_bufts: bool
    memory_bytes: int
    fits: bool
    threads_batch: int = 0
    streams: int = 1
    sequences: int = 1
    kv_cells: int = 0
    prefix_bytes: int = 0
    queue: int = DEFAULT_QUEUE
    deterministic: bool = False
    swa_full: bool = False
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    why: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values; the notices are reported as warnings instead."""
        return {key: value for key, value in asdict(self).items() if key != "notices"}


def make_plan(
    artifact: Artifact,
    device: Device,
    options: LoadOptions,
) -> Plan:
    """Decide how ARTIFACT runs on DEVICE under OPTIONS.

    Raises DeviceUnavailable when CUDA is asked for and cannot run, DoesNotFit when memory is short, UsageError for impossible values.
    """
    choice = options.device
    where, why, notices = _choose_device(device, choice)
    context = options.ctx or default_context(artifact, options.needed)
    if where == "cuda" and choice == "auto":
        need, free = estimate_memory(artifact, context), device.cuda_devices[0].memory_free
        if need > free:
            reason = (
                f"{device.cuda_devices[0].description} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} GB are needed"
            )
            where, why = "cpu", [reason]
            notices.append(Notice(code="cpu-fallback", message=f"running on the CPU: {reason}"))
    if artifact.context and context > artifact.context:
        notices.append(
            Notice(
                code="context-beyond-training",
                message=f"the context of {context} is longer than the {artifact.context} tokens the model was trained on",
            )
        )
    verdict = device.library.verdict
    if not verdict.extra_bufts:
        notices.append(
            Notice(code="no-extra-buffer-types", message=f"running without repacked weights, slower: {verdict.reason}")
        )
    kind = kind_of(artifact)
    # With layers on a GPU the CPU does other work than what was tuned.
    tuned = device.tuned.get(kind) if where == "cpu" else None
    threads = choose_threads(device.cpu, decode=options.threads, batch=options.threads_batch, tuned=tuned, kind=kind)
    why += threads.why
    plan = Plan(
        engine="llama.cpp",
        device=where,
        gpu_layers=_layers(artifact) + 1 if where == "cuda" else 0,
        context=context,
        batch=min(512, context),
        threads=threads.decode,
        threads_batch=threads.batch,
        streams=options.streams or DEFAULT_STREAMS,
        kv_cells=context,
        kv_type=options.kv_type or "f16",
        queue=options.queue,
        deterministic=options.deterministic,
        extra_bufts=verdict.extra_bufts,
        memory_bytes=estimate_memory(artifact, context),
        fits=True,
        why=tuple(why),
        notices=tuple(notices),
    )
    _check_memory(artifact, device, plan)
    return plan


def default_context(artifact: Artifact, needed: int | None) -> int:
    """Return the context when none is asked for: the trained one up to DEFAULT_CONTEXT, less when less can be needed."""
    context = min(artifact.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if needed is None:
        return context
    bound = needed + len(artifact.template or "")  # a template adds at most its own text to a message or two
    return min(context, max(512, -(-bound // 256) * 256))


def _choose_device(device: Device, choice: DeviceChoice) -> tuple[Literal["cpu", "cuda"], list[str], list[Notice]]:
    if choice == "cpu":
        return "cpu", ["the CPU was asked for"], []
    problem = trouble(device)
    if problem is None:
        name = device.cuda_devices[0].description
        return "cuda", [f"CUDA runs on {name}"], []
    if choice == "cuda":
        raise DeviceUnavailable(f"device 'cuda' cannot run here: {problem.reason}", hint=problem.mend)
    # A machine without an NVIDIA GPU loses nothing on the CPU; one with a GPU does, and must be told.
    message = f"running on the CPU: {problem.reason} ({problem.mend})"
    notices = [Notice(code="cpu-fallback", message=message)] if problem.lost else []
    return "cpu", [problem.reason], notices


def estimate_memory(artifact: Artifact, context: int) -> int:
    """Return the bytes that weights, KV cache in f16 and buffers will take; 0 layers known means weights and buffers only."""
    meta, arch = artifact.metadata, artifact.arch
    heads = _number(meta, f"{arch}.attention.head_count") or 1
    kv_heads = _number(meta, f"{arch}.attention.head_count_kv") or heads
    width = _number(meta, f"{arch}.embedding_length")
    key = _number(meta, f"{arch}.attention.key_length") or width // heads
    value = _number(meta, f"{arch}.attention.value_length") or width // heads
    kv = _layers(artifact) * context * kv_heads * (key + value) * 2
    # Buffers: logits of one position, activations of one micro-batch of 512; measured as 20–60 MB on models of 0.1–0.5 B.
    buffers = artifact.vocab * 4 + 512 * 4 * max(width * 8, 1) + 16_000_000
    return artifact.size_bytes + kv + buffers


def _check_memory(artifact: Artifact, device: Device, plan: Plan) -> None:
    free = device.cuda_devices[0].memory_free if plan.device == "cuda" else device.memory.available
    if plan.memory_bytes <= free:
        return
    sizes = (ctx for ctx in (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512) if ctx < plan.context)
    smaller = next((ctx for ctx in sizes if estimate_memory(artifact, ctx) <= free), None)
    hint = f"use --ctx {smaller}" if smaller else "use a smaller file of this model, or free memory"
    raise DoesNotFit(
        f"{artifact.name!r} at context {plan.context} needs {plan.memory_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
        hint=hint,
    )


def _layers(artifact: Artifact) -> int:
    return _number(artifact.metadata, f"{artifact.arch}.block_count")


def _number(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    if isinstance(value, (list, tuple)):  # one value per layer: the largest is the safe one
        value = max((item for item in value if isinstance(item, int)), default=0)
    return int(value) if isinstance(value, (int, float)) else 0
