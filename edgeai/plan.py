"""What will run how on this machine: device, layers, context, threads and memory, decided before anything is loaded.

How much a choice takes is `memory.py`, where its layers go `offload.py`; here the choices are made. What the caller fixed is kept or
refused. What is left open steps down until it fits: first room that is only comfortable (contexts of several streams side by side,
windows kept whole), then streams, then the context, each with a notice. What fits nowhere is refused with `alternatives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from edgeai.alternatives import Alternative, alternatives
from edgeai.artifact import Artifact
from edgeai.cuda import trouble
from edgeai.device import Device
from edgeai.errors import DeviceUnavailable, DoesNotFit, EdgeAIError, UsageError
from edgeai.fitting import Placed, Shortage, budget_of, place
from edgeai.memory import kv_type_possible
from edgeai.offload import Budget
from edgeai.options import (
    DEFAULT_CONTEXT,
    DEFAULT_QUEUE,
    DEFAULT_STREAMS,
    DeviceChoice,
    KVType,
    LoadOptions,
    Numerics,
)
from edgeai.placement import CPU, Placement
from edgeai.room import rooms
from edgeai.shape import ModelShape, shape_of
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
    "other_plans",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model will run. Memory in bytes; `gpu_layers` counts the output layer, as llama.cpp does.

    `memory_bytes` is `placement`, predicted device by device, and `overhead_bytes` in main memory (vocabulary, runtime, what is loaded
    beside it), times the `correction` that was measured; see memory.py for what is counted. `twice_bytes` of it need not
    be free: pages of the file whose weights were copied into another order.

    `context` bounds one request; `kv_cells` tokens fit into the KV cache. All requests share it where it is `unified`; otherwise each
    sequence has `context` cells of its own, and `kv_cells` are all of them together. `prefix_bytes` of main memory may keep
    prompts of requests that have ended; they are not in `memory_bytes`, since there are none at first, but in `needed_bytes`.
    `sequences` is how many requests there can be in the cache at once, and one for work between them (scores, states). `outputs` are the
    positions of one batch that can have logits.

    `devices` are the GPUs that get layers, by libggml's names, all CUDA devices when there are none;
    `tensor_split` says in which proportion, by free memory when it is empty. `adapters` are (name, path).
    """

    engine: str
    device: Literal["cpu", "cuda", "dml"]
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
    unified: bool = True
    prefix_bytes: int = 0
    numerics: Numerics = "exact"
    queue: int = DEFAULT_QUEUE
    deterministic: bool = False
    swa_full: bool = False
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    outputs: int = 0
    placement: Placement = field(default_factory=Placement)
    overhead_bytes: int = 0
    twice_bytes: int = 0
    correction: Mapping[str, float] = field(default_factory=dict)
    adapters: tuple[tuple[str, str], ...] = ()
    why: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """What must be free for it."""
        return self.memory_bytes - self.twice_bytes + self.prefix_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values; the notices are reported as warnings instead."""
        values = {key: value for key, value in asdict(self).items() if key != "notices"}
        return values | {"placement": self.placement.to_dict()["shares"]}


def make_plan(
    artifact: Artifact,
    device: Device,
    options: LoadOptions,
    *,
    correction: Mapping[str, float] | None = None,
    beside_bytes: int = 0,
    most: Mapping[str, int] | None = None,
) -> Plan:
    """Decide how ARTIFACT runs on DEVICE under OPTIONS.

    CORRECTION is what was measured of this model here (see correction.py), BESIDE_BYTES what is loaded with it (adapters, a draft model),
    MOST lowers what may be taken of a device ("CPU", "CUDA0", …) below what is free there: a plan that proved too large.

    Raises DeviceUnavailable when CUDA is asked for and cannot run, DoesNotFit when memory is short, UsageError for impossible values.
    """
    machine = Machine(device=device, correction=correction or {}, beside=beside_bytes, most=most or {})
    found = _solve(artifact, machine, options)
    if isinstance(found, Plan):
        return found
    others = _alternatives(artifact, machine, options, found.room.context)
    raise _refusal(artifact, machine, found, others, least=options.ctx is None)


def other_plans(
    artifact: Artifact, device: Device, options: LoadOptions, context: int, *, below: int | None = None,
    correction: Mapping[str, float] | None = None,
) -> tuple[Alternative, ...]:  # fmt: skip
    """Return up to three changes of a plan with CONTEXT that fit, each checked; those that need less than BELOW bytes.

    CORRECTION is that of the plan.
    """
    machine = Machine(device=device, correction=correction or {}, beside=0, most={})
    return _alternatives(artifact, machine, options, context, below=below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device and what is known of this model on it: see make_plan."""

    device: Device
    correction: Mapping[str, float]
    beside: int
    most: Mapping[str, int]

    def budget(self, *, gpu: bool) -> Budget:
        """Return what may be taken."""
        return budget_of(self.device, self.correction, self.beside, self.most, gpu=gpu)


def _solve(artifact: Artifact, machine: Machine, options: LoadOptions) -> Plan | Shortage:
    shape, device = shape_of(artifact), machine.device
    _check_embedding(artifact, options)
    _check_kv_type(artifact, shape, options)
    _check_positions(artifact, options)
    where, why, notices = _choose_device(device, options)
    wanted = list(rooms(artifact, shape, options))
    budget = machine.budget(gpu=where == "cuda")
    found = place(shape, wanted, device, budget, gpu_layers=options.gpu_layers)
    if isinstance(found, Shortage) and found.place != CPU and options.device == "auto" and options.gpu_layers is None:
        usable = f"{_gpus_in_words(device)}, of which {found.free / 1e9:.2f} GB may be used"
        reason = f"{usable}, and {found.needs / 1e9:.2f} GB are needed for a single layer"
        why = [reason]
        notices.append(Notice(code="cpu-fallback", message=f"running on the CPU: {reason}"))
        budget = machine.budget(gpu=False)
        found = place(shape, wanted, device, budget)
    if isinstance(found, Shortage):
        return found
    return _plan(artifact, shape, device, options, found, budget, why, notices)


def _check_embedding(artifact: Artifact, options: LoadOptions) -> None:
    for name, value in (("draft", options.draft), ("kv_type", options.kv_type)):
        if artifact.embedding and value is not None:
            raise UsageError(
                f"{name} {str(value)!r} is not possible: {artifact.name} is an embedding model, which reads texts and answers nothing",
                hint=f"leave `{name}` out",
            )


def _check_kv_type(artifact: Artifact, shape: ModelShape, options: LoadOptions) -> None:
    if options.kv_type is not None and not kv_type_possible(shape, options.kv_type):
        sizes = " and ".join(str(key) for key, _ in sorted(shape.head_sizes))
        raise UsageError(
            f"kv_type {options.kv_type!r} is not possible for {artifact.name!r}: its heads have {sizes} numbers, which are no whole blocks",
            hint="use f16, f32 or bf16",
        )


def _check_positions(artifact: Artifact, options: LoadOptions) -> None:
    """Refuse a context that is longer than the table of positions, which libllama would read beyond its end."""
    rows = artifact.positions
    if rows is not None and options.ctx is not None and options.ctx > rows:
        raise UsageError(
            f"{artifact.name} has positions for {rows} tokens, and the context is {options.ctx}",
            hint=f"use `ctx={rows}` or less",
        )


def _choose_device(device: Device, options: LoadOptions) -> tuple[Literal["cpu", "cuda"], list[str], list[Notice]]:
    if options.device == "dml":
        raise DeviceUnavailable("device 'dml' runs ONNX models, and this is a GGUF file", hint="use `device=auto`")
    if options.device == "cpu" or options.gpu_layers == 0:
        return "cpu", ["the CPU was asked for"], []
    problem = trouble(device)
    if problem is None:
        names = ", ".join(dict.fromkeys(found.description for found in device.cuda_devices))
        return "cuda", [f"CUDA runs on {names}"], []
    if options.device == "cuda":
        raise DeviceUnavailable(f"device 'cuda' cannot run here: {problem.reason}", hint=problem.mend)
    if options.gpu_layers:
        raise DeviceUnavailable(f"gpu_layers {options.gpu_layers!r} cannot be: {problem.reason}", hint=problem.mend)
    # A machine without an NVIDIA GPU loses nothing on the CPU; one with a GPU does, and must be told.
    message = f"running on the CPU: {problem.reason} ({problem.mend})"
    notices = [Notice(code="cpu-fallback", message=message)] if problem.lost else []
    return "cpu", [problem.reason], notices


def _plan(
    artifact: Artifact, shape: ModelShape, device: Device, options: LoadOptions, placed: Placed, budget: Budget, why: list[str],
    notices: list[Notice],
) -> Plan:  # fmt: skip
    room, found = placed.room, placed.estimate
    where: Literal["cpu", "cuda"] = "cuda" if placed.split else "cpu"
    kind = kind_of(artifact)
    # With layers on a GPU the CPU does other work than what was tuned.
    tuned = device.tuned.get(kind) if where == "cpu" else None
    threads = choose_threads(device.cpu, decode=options.threads, batch=options.threads_batch, tuned=tuned, kind=kind)
    predicted = budget.on(CPU, found.ram_bytes)
    predicted += sum(budget.on(share.device, share.total_bytes) for share in found.placement.gpus)
    return Plan(
        engine="llama.cpp",
        device=where,
        gpu_layers=sum(count for _, count in placed.split),
        devices=tuple(name for name, _ in placed.split),
        tensor_split=tuple(float(count) for _, count in placed.split) if len(placed.split) > 1 else (),
        context=room.context,
        batch=room.batch,
        threads=threads.decode,
        threads_batch=threads.batch,
        streams=room.streams,
        sequences=room.sequences + 1,
        kv_cells=room.cells,
        unified=room.unified,
        prefix_bytes=room.prefix_bytes,
        numerics=options.numerics,
        swa_full=room.swa_full,
        outputs=room.outputs,
        kv_type=room.kv_type,
        queue=options.queue,
        deterministic=options.deterministic,
        adapters=tuple((name, str(path)) for name, path in options.adapters.items()),
        extra_bufts=device.library.verdict.extra_bufts,
        memory_bytes=predicted + budget.beside,
        placement=found.placement,
        overhead_bytes=found.overhead_bytes + budget.beside,
        twice_bytes=found.twice_bytes,
        correction=dict(budget.correction),
        fits=True,
        why=(*why, *_reasons(placed, budget), *threads.why),
        notices=(*notices, *_notices(artifact, shape, device, placed)),
    )


def _reasons(placed: Placed, budget: Budget) -> list[str]:
    room = placed.room
    shared = f"{room.streams} stream{'s' * (room.streams > 1)}"
    for_each = "" if room.unified else f", {room.context} for each of them and for other work"
    found = [f"the KV cache holds {room.cells} tokens in {room.kv_type} for {shared}{for_each}"]
    if room.prefix_bytes:
        found.append(f"prompts are kept for later requests in up to {room.prefix_bytes / 1e6:.0f} MB of main memory")
    if placed.split:
        found.append("layers: " + ", ".join(f"{count} on {name}" for name, count in placed.split))
    for name, ratio in budget.correction.items():
        found.append(f"predicted {name} memory × {ratio:.2f}, as measured here before")
    return found


def _notices(artifact: Artifact, shape: ModelShape, device: Device, placed: Placed) -> list[Notice]:
    room, best, found = placed.room, placed.best, []
    layers, whole = sum(count for _, count in placed.split), len(shape.layers) + 1
    if 0 < layers < whole:
        found.append(("partial-offload", f"{layers} of {whole} layers are on the GPU: {_gpus_in_words(device)}"))
    if room.context < best.context:
        found.append(
            (
                "smaller-context",
                f"the context is {room.context} instead of {best.context} tokens: more does not fit in memory",
            )
        )
    elif room.streams < best.streams:
        found.append(("fewer-streams", f"{room.streams} instead of {best.streams} streams: more do not fit in memory"))
    if artifact.context and room.context > artifact.context:
        text = f"the context of {room.context} is longer than the {artifact.context} tokens the model was trained on"
        found.append(("context-beyond-training", text))
    verdict = device.library.verdict
    if not verdict.extra_bufts:
        found.append(("no-extra-buffer-types", f"running without repacked weights, slower: {verdict.reason}"))
    return [Notice(code=code, message=message) for code, message in found]


def _gpus_in_words(device: Device) -> str:
    return ", ".join(f"{gpu.description} has {gpu.memory_free / 1e9:.1f} GB free" for gpu in device.cuda_devices)


# ---- what does not fit


def _alternatives(
    artifact: Artifact, machine: Machine, options: LoadOptions, context: int, *, below: int | None = None
) -> tuple[Alternative, ...]:
    def fits(file: Artifact, changes: dict[str, Any]) -> int | None:
        try:
            found = _solve(file, machine, replace(options, **changes))
        except (DeviceUnavailable, UsageError):  # nothing to propose
            return None
        if not isinstance(found, Plan) or found.context < changes.get("ctx", context):
            return None
        return found.needed_bytes if below is None or found.needed_bytes < below else None

    given = {item.name: getattr(options, item.name) for item in fields(options)}
    return alternatives(artifact, given, context, fits)


def _refusal(
    artifact: Artifact, machine: Machine, short: Shortage, others: tuple[Alternative, ...], *, least: bool
) -> EdgeAIError:
    where = "" if short.place == CPU else f" on {_gpus_in_words(machine.device)}, less a reserve,"
    context = f"{'even ' if least else ''}at context {short.room.context}"
    what = f"{artifact.name!r} {context} needs {short.needs / 1e9:.2f} GB"
    proposals = "; ".join(f"{other.text} ({other.needs_bytes / 1e9:.2f} GB)" for other in others)
    return DoesNotFit(
        f"{what} and{where} {short.free / 1e9:.2f} GB are free",
        hint=f"these fit: {proposals}" if others else "use a smaller model, or free memory: nothing of this one fits",
    )
