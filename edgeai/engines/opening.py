"""From a path to an engine that runs: check the file, plan it for this machine, try it, load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact, open_artifact
from edgeai.correction import ratios, read_correction, remember_correction
from edgeai.engines.base import Engine
from edgeai.errors import DeviceUnavailable, DoesNotFit, InvalidModel
from edgeai.memory import Settings, estimate
from edgeai.paths import home
from edgeai.placement import CPU
from edgeai.plan import LoadOptions, Plan, make_plan
from edgeai.room import BATCH, default_context
from edgeai.shape import shape_of
from edgeai.types import Notice

if TYPE_CHECKING:
    from edgeai.device import Device
    from edgeai.engines.llamacpp import EmbeddingEngine, LlamaCppEngine

__all__ = ["load_engine", "open_engine", "open_model", "planned", "step_down"]

ATTEMPTS = 6
CLASSIFIER = "edgeai-classifier"
"""The model type of a folder that `edgeai train` makes of a task: it becomes ONNX alone."""
TOLERATED = 0.05
"""Buffers that differ by more from the plan's arithmetic are remembered; what `edgeai fit --measure` found is not given up for less."""
LESS = (0.6, 0.8, 0.95)
"""A plan that did not fit is followed by one for at most this part of its memory; the next part where there is no such plan."""


def open_engine(path: Path, **options: Any) -> Engine:
    """Check the file at PATH, plan it for this machine and load it; OPTIONS are those of plan.LoadOptions."""
    wanted = LoadOptions(**options)
    if not wanted.isolated:
        return load_engine(path, wanted)
    from edgeai.engines.worker.engine import WorkerEngine

    return WorkerEngine(open_model(path), wanted)


def load_onnx(artifact: Artifact, wanted: LoadOptions) -> Engine:
    """Plan the ONNX model ARTIFACT for this machine and load it into this process with the runtime that is made for it."""
    if artifact.task != "generation":
        from edgeai.engines.onnx import load_model

        return load_model(artifact, wanted)
    from edgeai.engines.genai import GenaiEngine
    from edgeai.engines.genai.runtime import has_provider
    from edgeai.onnxplan import language_plan

    plan = language_plan(artifact, wanted, has_provider)
    try:
        return GenaiEngine(artifact, plan)
    except DeviceUnavailable as error:
        if wanted.device != "auto" or plan.device == "cpu":
            raise
        plan = language_plan(artifact, replace(wanted, device="cpu"), has_provider)  # another memory, so other streams
        notice = Notice(code="cpu-fallback", message=f"running on the CPU: {error.message}")
        return GenaiEngine(artifact, replace(plan, notices=(*plan.notices, notice), why=(*plan.why, error.message)))


def load_engine(path: Path, wanted: LoadOptions, *, vetted: bool = False) -> Engine:
    """Plan the file at PATH for this machine and load it into this process; one that is VETTED is not tried in a child before.

    Where the memory turns out to be short, what the plan chose by itself is made smaller and loading tried again, with a notice; what
    WANTED fixes is not. How much was really taken is remembered for the next plan of this model.
    """
    artifact = open_model(path)
    if artifact.format == "onnx":
        return load_onnx(artifact, wanted)
    device, plan = _prepare(artifact, wanted, vetted=vetted)
    for _ in range(ATTEMPTS):
        try:
            engine = _load(artifact, plan, wanted, vetted=vetted)
        except DoesNotFit as error:
            smaller = step_down(artifact, device, wanted, plan, error)
            if smaller is None:
                raise
            plan = smaller
        else:
            wrong = {
                name: ratio for name, ratio in ratios(plan, engine.placement).items() if abs(ratio - 1) > TOLERATED
            }
            remember_correction(home() / "cache", artifact, device, wrong)
            return engine
    return _load(artifact, plan, wanted, vetted=vetted)


def _load(artifact: Artifact, plan: Plan, wanted: LoadOptions, *, vetted: bool) -> EmbeddingEngine | LlamaCppEngine:
    from edgeai.engines.llamacpp import EmbeddingEngine, LlamaCppEngine

    if artifact.embedding:
        return EmbeddingEngine(artifact, plan)
    if wanted.draft is None:
        return LlamaCppEngine(artifact, plan)
    # One context for all streams: where it is full, requests go on without guesses.
    context = _draft_context(open_model(wanted.draft, gguf=True), plan.context)
    beside = LoadOptions(
        ctx=context, needed=context, streams=plan.streams, prefix_bytes=0, threads=plan.threads, device=wanted.device
    )
    return LlamaCppEngine(artifact, plan, draft=planned(wanted.draft, beside, vetted=vetted))


def _draft_context(draft: Artifact, context: int) -> int:
    """Return the context of DRAFT beside a model with CONTEXT: it guesses nothing beyond what it was trained on."""
    return min(context, draft.context or context, draft.positions or context)


def step_down(artifact: Artifact, device: Device, wanted: LoadOptions, plan: Plan, error: DoesNotFit) -> Plan | None:
    """Return a plan for less memory than PLAN, which did not fit as ERROR says; None where WANTED leaves nothing to make smaller."""
    beside = beside_bytes(wanted)
    for part in LESS:
        # The GPUs are what is short where there are layers on them: main memory is lent by the system as it is touched.
        most = {share.device: round(share.total_bytes * part) for share in plan.placement.gpus}
        if not most:
            cpu = plan.placement.cpu
            less = (cpu.kv_bytes + cpu.compute_bytes) * (1 - part) * plan.correction.get(CPU, 1.0)
            most[CPU] = plan.memory_bytes - plan.twice_bytes - beside - round(less)
        try:
            smaller = make_plan(artifact, device, wanted, correction=plan.correction, most=most, beside_bytes=beside)
        except DoesNotFit:
            continue
        if _size(smaller) != _size(plan):
            message = f"loading as planned did not fit in memory ({error.message}); instead: {_in_words(smaller)}"
            return replace(smaller, notices=(*smaller.notices, Notice(code="smaller-plan", message=message)))
    return None


def _size(plan: Plan) -> tuple[object, ...]:
    return (plan.context, plan.kv_cells, plan.sequences, plan.gpu_layers, plan.tensor_split)


def _in_words(plan: Plan) -> str:
    layers = f", {plan.gpu_layers} layers on the GPU" if plan.gpu_layers else ""
    kept = "" if plan.prefix_bytes else ", no prompts kept for later requests"
    return f"a context of {plan.context}, {plan.streams} stream{'s' * (plan.streams > 1)}{layers}{kept}"


def beside_bytes(wanted: LoadOptions) -> int:
    """Return what the adapters and the draft model of WANTED take in main memory."""
    adapters = sum(path.stat().st_size for path in wanted.adapters.values() if path.is_file())
    if wanted.draft is None:
        return adapters
    draft = open_model(wanted.draft, gguf=True)
    cells = _draft_context(draft, wanted.ctx or default_context(draft, wanted.needed))
    settings = Settings(cells=cells, batch=min(BATCH, cells))
    return adapters + estimate(shape_of(draft), settings).needed_ram_bytes


def open_model(path: Path, *, gguf: bool = False) -> Artifact:
    """Return the facts of the model file at PATH. Raises InvalidModel for one that the runtime does not run, or that must be GGUF."""
    artifact = open_artifact(path)
    if gguf and artifact.format == "onnx":
        raise InvalidModel(
            f"{str(path)!r} is an ONNX model, and this is done with GGUF files", hint="name a .gguf file"
        )
    if artifact.format == "hf":
        hint = f"edgeai convert {str(path)!r} makes a GGUF file, and with --to onnx an ONNX model"
        if artifact.arch == CLASSIFIER:
            hint = f"edgeai convert {str(path)!r} --to onnx"
        raise InvalidModel(
            f"{str(path)!r} is a {artifact.format} folder of full-precision weights, which the runtime does not run",
            hint=f"convert it first: {hint}",
        )
    return artifact


def planned(path: Path, wanted: LoadOptions, *, vetted: bool = False) -> tuple[Artifact, Plan]:
    """Check the file at PATH, plan it for this machine and try it in a child unless it is VETTED; it can then be loaded."""
    artifact = open_model(path, gguf=True)
    return artifact, _prepare(artifact, wanted, vetted=vetted)[1]


def _prepare(artifact: Artifact, wanted: LoadOptions, *, vetted: bool) -> tuple[Device, Plan]:
    from edgeai.device import probe
    from edgeai.vetting import vet

    device = probe(gpus=wanted.device == "cuda")
    correction = read_correction(home() / "cache", artifact, device)
    plan = make_plan(artifact, device, wanted, correction=correction, beside_bytes=beside_bytes(wanted))
    if not vetted:
        vet(artifact.path, home() / "cache", extra_bufts=plan.extra_bufts)
    return device, plan
