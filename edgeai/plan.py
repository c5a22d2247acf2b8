"""What will run how on this machine: device, layers, context, threads and memory, decided before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeai import native
from edgeai.artifact import Artifact
from edgeai.device import Device
from edgeai.errors import DeviceUnavailable, DoesNotFit, UsageError
from edgeai.types import Notice

__all__ = ["DEFAULT_CONTEXT", "DeviceChoice", "Plan", "make_plan"]

DeviceChoice = Literal["auto", "cpu", "cuda"]

DEFAULT_CONTEXT = 8192
"""Context when none is asked for, or the trained one if that is smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model will run. Memory in bytes; `gpu_layers` counts the output layer, as llama.cpp does."""

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
    why: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values; the notices are reported as warnings instead."""
        return {key: value for key, value in asdict(self).items() if key != "notices"}


def make_plan(
    artifact: Artifact,
    device: Device,
    *,
    ctx: int | None = None,
    needed: int | None = None,
    threads: int | None = None,
    choice: DeviceChoice = "auto",
) -> Plan:
    """Decide how ARTIFACT runs on DEVICE.

    `needed` is an upper bound of the tokens that will ever be in the context, for callers that know it: without `ctx` the context is
    then no larger than that, which saves the time and memory of a cache that stays empty.

    Raises DeviceUnavailable when CUDA is asked for and cannot run, DoesNotFit when memory is short, UsageError for impossible values.
    """
    if ctx is not None and ctx < 8:
        raise UsageError(f"a context of {ctx} tokens is not possible", hint="--ctx must be at least 8")
    if threads is not None and not 1 <= threads <= 512:
        raise UsageError(f"{threads} threads are not possible", hint="--threads must be between 1 and 512")
    where, why, notices = _choose_device(device, choice)
    context = ctx or default_context(artifact, needed)
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
    plan = Plan(
        engine="llama.cpp",
        device=where,
        gpu_layers=_layers(artifact) + 1 if where == "cuda" else 0,
        context=context,
        batch=min(512, context),
        threads=threads or device.cpu.threads,
        kv_type="f16",
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
    problem = cuda_problem(device)
    if problem is None:
        name = device.cuda_devices[0].description
        return "cuda", [f"CUDA runs on {name}"], []
    if choice == "cuda":
        raise DeviceUnavailable(f"device 'cuda' cannot run here: {problem[0]}", hint=problem[1])
    # A machine without an NVIDIA GPU loses nothing on the CPU; one with a GPU does, and must be told.
    notices = (
        [Notice(code="cpu-fallback", message=f"running on the CPU: {problem[0]} ({problem[1]})")] if device.gpus else []
    )
    return "cpu", [problem[0]], notices


def cuda_problem(device: Device) -> tuple[str, str] | None:
    """Return why CUDA cannot run and what to do about it, or None when it can."""
    if not device.gpus:
        reason = f": {device.gpu_problem}" if device.gpu_problem else ""
        return f"no usable NVIDIA GPU{reason}", "use --device cpu; edgeai doctor shows what is here"
    if not device.library.gpu_offload:
        return (
            f"llama-cpp-python is built without CUDA, and {device.gpus[0].name} stays unused",
            f"install a CUDA build: {native.cuda_install_command()}",
        )
    if not device.cuda_devices:
        return (
            f"the native library finds no CUDA device (driver {device.gpus[0].driver})",
            "the driver may be older than the CUDA version the library was built with; see edgeai doctor",
        )
    return None


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
