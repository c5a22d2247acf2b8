"""`edgeai fit` of an ONNX model: what it takes, in the layout of GGUF files where that has a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from edgeai.cli.output import Output, as_options, human_bytes
from edgeai.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from edgeai.alternatives import Alternative
    from edgeai.artifact import Artifact
    from edgeai.evaluation.footprint import Footprint
    from edgeai.options import LoadOptions
    from edgeai.plan import Plan

__all__ = ["fit_onnx"]

TITLES = (
    ("layers", "layers, output included"),
    ("weights_bytes", "weights"),
    ("kv_bytes", "KV cache"),
    ("other_bytes", "runtime"),
    ("total_bytes", "total, predicted"),
    ("free_bytes", "free"),
)
LEAST_CONTEXT = 512
"""Shorter ones are not proposed."""


def fit_onnx(
    artifact: Artifact, options: LoadOptions, given: Mapping[str, Any], *, gpu_memory: bool, ram: int | None, measure: bool, out: Output
) -> None:  # fmt: skip
    """Show what ARTIFACT takes under OPTIONS, of which GIVEN are those on the command line.

    Raises UsageError for what means nothing here, DoesNotFit, DeviceUnavailable.
    """
    if gpu_memory:
        raise UsageError(
            f"--gpu-memory plans layers on GPUs, and {artifact.name} is an ONNX model", hint="leave --gpu-memory out"
        )
    if artifact.task == "generation":
        language(artifact, options, given, ram, out, measure=measure)
    else:
        other(artifact, options, ram, out, measure=measure)


def language(
    artifact: Artifact, options: LoadOptions, given: Mapping[str, Any], ram: int | None, out: Output, *, measure: bool
) -> None:
    """Show what a language model takes: each request has a KV cache of its own."""
    from edgeai.device import memory_facts
    from edgeai.engines.genai.runtime import has_provider
    from edgeai.onnxplan import language_plan

    free = memory_facts().available if ram is None else ram
    plan = language_plan(artifact, options, has_provider, free=free)
    parts = parts_of(artifact, plan, free)
    need = parts["total_bytes"]
    if plan.device == "cpu" and need > free:
        raise DoesNotFit(
            f"{artifact.name!r} with {plan.streams} streams at context {plan.context} needs {human_bytes(need)}, and "
            f"{human_bytes(free)} are free",
            hint="use a smaller `ctx`, or fewer `streams`",
        )
    footprint = None
    if measure:
        from edgeai.evaluation.footprint import measure_onnx

        out.progress(f"loading {artifact.name} in a child process", 0, None)
        footprint = measure_onnx(artifact, plan, need, given)
    out.warn(plan.notices)
    less = smaller(parts, plan)
    if out.as_json:
        said = [{"code": notice.code, "message": notice.message} for notice in out.warned]
        out.json(
            facts(artifact)
            | {"fits": True, "parts": [parts], "plan": plan.to_dict() | {"memory_bytes": need}}
            | {"alternatives": [item.to_dict() | {"text": shown(item.text)} for item in less]}
            | {"measured": footprint.to_dict() if footprint else None, "warnings": said}
        )
    else:
        out.answer("\n".join([*table(artifact, parts), *words(plan, parts, less), *measured(footprint)]))


def parts_of(artifact: Artifact, plan: Plan, free: int) -> dict[str, Any]:
    """Return what each part takes on the device of PLAN."""
    (share,) = plan.placement.shares
    kv = share.kv_bytes * plan.streams
    return {
        "device": share.device,
        "layers": int(artifact.metadata.get("genai.num_hidden_layers", 0)) + 1,
        "weights_bytes": share.weights_bytes,
        "kv_bytes": kv,
        "compute_bytes": 0,
        "other_bytes": plan.overhead_bytes,
        "total_bytes": share.weights_bytes + kv + plan.overhead_bytes,
        "free_bytes": free if share.device == "CPU" else 0,
    }


def smaller(parts: Mapping[str, Any], plan: Plan) -> list[Alternative]:
    """Return what would take less."""
    from edgeai.alternatives import Alternative

    found: list[Alternative] = []
    rest = int(parts["total_bytes"] - parts["kv_bytes"])
    context, kv = plan.context // 2, int(parts["kv_bytes"]) // 2
    while context >= LEAST_CONTEXT and len(found) < 3:
        found.append(Alternative(text=f"`ctx={context}`", needs_bytes=rest + kv, change={"ctx": context}))
        context, kv = context // 2, kv // 2
    if plan.streams > 1:
        one = rest + int(parts["kv_bytes"]) // plan.streams
        found.append(Alternative(text="`streams=1`", needs_bytes=one, change={"streams": 1}))
    return found


def shown(text: str) -> str:
    """Return TEXT with the options of this command."""
    return as_options(text, click.get_current_context().command)


def facts(artifact: Artifact) -> dict[str, Any]:
    """Return what the JSON says of the model."""
    return {
        "model": artifact.name,
        "quant": artifact.quant,
        "size_bytes": artifact.size_bytes,
        "params": artifact.params,
    }


def head(artifact: Artifact) -> str:
    """Return the first line."""
    count = f"{artifact.params / 1e6:,.0f} M" if artifact.params >= 1e7 else f"{artifact.params:,}"
    return f"  {artifact.name} {artifact.quant} · {human_bytes(artifact.size_bytes)} · {count} weights"


def table(artifact: Artifact, parts: Mapping[str, Any]) -> list[str]:
    """Return the parts, one a line."""
    lines = [head(artifact), "", f"    {'':26}{parts['device']:>12}"]
    for key, title in TITLES:
        if key == "free_bytes" and not parts[key]:
            continue  # of a GPU onnxruntime does not say
        cell = str(parts[key]) if key == "layers" else human_bytes(parts[key])
        lines.append(f"    {title:26}{cell:>12}")
    return lines


def words(plan: Plan, parts: Mapping[str, Any], less: list[Alternative]) -> list[str]:
    """Return what the plan is, and what would take less."""
    where = "the CPU" if plan.device == "cpu" else plan.device
    lines = [
        "",
        f"  fits on {where}: context {plan.context}, {plan.streams} stream{'s' * (plan.streams > 1)}, KV cache in {plan.kv_type}",
        f"    KV cache: {human_bytes(parts['kv_bytes'] / plan.context / plan.streams)} a token × {plan.context} × {plan.streams}",
        *(f"    {reason}" for reason in plan.why),
    ]
    if less:
        lines += ["", "  with less", f"    {'':44}{'must be free':>12}"]
        lines += [f"    {shown(item.text):44}{human_bytes(item.needs_bytes):>12}" for item in less]
    return lines


def measured(footprint: Footprint | None) -> list[str]:
    """Return prediction and measurement side by side."""
    if footprint is None:
        return []
    lines = ["", f"  {'measured':28}{'predicted':>12}{'measured':>12}{'error':>9}"]
    for row in footprint.rows:
        lines.append(
            f"    {row.device + ', all of it':26}{human_bytes(row.predicted):>12}{human_bytes(row.measured):>12}{row.error:>+9.1%}"
        )
    return lines


FOR_LANGUAGE = ("streams",)
"""Options that say nothing about a model without a context, besides those that its engine refuses."""


def other(artifact: Artifact, options: LoadOptions, ram: int | None, out: Output, *, measure: bool) -> None:
    """Show what a model takes that has no context: one figure."""
    from edgeai.device import cpu_facts, memory_facts
    from edgeai.engines.onnx.opening import plan_of, refuse_language_only

    context = click.get_current_context()
    for name in FOR_LANGUAGE:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--{name} does nothing: {artifact.name} is a model for {artifact.task}", hint=f"leave --{name} out"
            )
    if measure:
        raise UsageError(
            f"--measure is for language models, and {artifact.name} is a model for {artifact.task}", hint="leave it out"
        )
    refuse_language_only(artifact, options)
    free = memory_facts().available if ram is None else ram
    plan = plan_of(artifact, options, cpu_facts(), free=free)
    if out.as_json:
        part = {"device": plan.device.upper(), "total_bytes": plan.memory_bytes, "free_bytes": free}
        rest = {
            "fits": True,
            "parts": [part],
            "plan": plan.to_dict(),
            "alternatives": [],
            "measured": None,
            "warnings": [],
        }
        out.json(facts(artifact) | rest)
        return
    out.answer(
        "\n".join(
            [
                head(artifact),
                "",
                f"    {'total, predicted':26}{human_bytes(plan.memory_bytes):>12}",
                f"    {'free':26}{human_bytes(free):>12}",
                "",
                f"  fits: a model for {artifact.task}, without a context",
                *(f"    {reason}" for reason in plan.why),
            ]
        )
    )
