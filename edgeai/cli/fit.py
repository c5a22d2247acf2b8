"""`edgeai fit`: what a model takes on this machine, before it is loaded, or downloaded."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import click

from edgeai.cli.output import Output, as_options, human_bytes, output_options
from edgeai.errors import InvalidModel, UsageError
from edgeai.options import DeviceChoice, KVType

if TYPE_CHECKING:
    from edgeai.alternatives import Alternative
    from edgeai.artifact import Artifact
    from edgeai.device import Device
    from edgeai.evaluation.footprint import Footprint
    from edgeai.plan import Plan

__all__ = ["fit_command"]

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


class Bytes(click.ParamType[int]):
    """A size: 8GB, 512MiB, 1000000."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return VALUE in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip().lower())
        if match is None or match[2] not in UNITS or len(match[1]) > 15:
            self.fail(f"{value!r} is not a size: 8GB, 512MiB or a number of bytes", param, ctx)
        return round(float(match[1]) * UNITS[match[2]])


@click.command("fit", short_help="Show what a model takes here, and what would fit.")
@click.argument("model")
@click.option("--ctx", type=int, help="Context in tokens.  [default: 8192, or the trained one]")
@click.option("--kv-type", type=click.Choice(get_args(KVType)), help="Type of the KV cache.  [default: f16]")
@click.option("--streams", type=int, help="Requests computed side by side.  [default: 1, as in edgeai run]")
@click.option("--prefix-bytes", type=Bytes(), help="Room for prompts that are kept for later requests.")
@click.option("--device", type=click.Choice(get_args(DeviceChoice)), default="auto", show_default=True)
@click.option("--gpu-layers", type=int, help="Layers on the GPU.  [default: as many as fit]")
@click.option(
    "--gpu-memory", type=Bytes(), multiple=True, help="Plan for a GPU with so much free memory; once for each GPU."
)
@click.option("--ram", type=Bytes(), help="Plan for so much free main memory.")
@click.option("--measure", is_flag=True, help="Load it in a child process and measure; the next plan will know.")
@output_options
def fit_command(
    model: str, gpu_memory: tuple[int, ...], ram: int | None, measure: bool, out: Output, **given: Any
) -> None:
    """Show what MODEL takes on this machine, device by device, and what else would fit; it is not loaded.

    MODEL is a pulled name, a .gguf file, an ONNX file or folder, hf:owner/repo[:quant] or a URL of a .gguf file: of the last two only
    the header is read.
    """
    from edgeai.correction import read_correction
    from edgeai.device import probe
    from edgeai.paths import home
    from edgeai.plan import LoadOptions, make_plan, other_plans

    fake = bool(gpu_memory) or ram is not None
    if measure and fake:
        raise UsageError(
            "--measure and a machine that is not this one exclude each other", hint="leave out one of them"
        )
    wanted = {name: value for name, value in given.items() if value is not None}
    wanted.setdefault("streams", 1)
    options = LoadOptions(**wanted)
    artifact = _find(model, out)
    if artifact.format == "onnx":
        from edgeai.cli.fit_onnx import fit_onnx

        fit_onnx(artifact, options, wanted, gpu_memory=bool(gpu_memory), ram=ram, measure=measure, out=out)
        return
    if measure and not artifact.path.is_file():
        raise UsageError(f"--measure loads the model, and {model!r} is not on this machine", hint="download it first")
    device = _machine(probe(gpus=options.device == "cuda"), gpu_memory, ram)
    correction = {} if fake else read_correction(home() / "cache", artifact, device)
    plan = make_plan(artifact, device, options, correction=correction)
    others = other_plans(
        artifact, device, replace(options, ctx=plan.context), plan.context, below=plan.needed_bytes * 95 // 100,
        correction=correction,
    )  # fmt: skip
    footprint = None
    if measure:
        from edgeai.evaluation.footprint import measure as measured

        out.progress(f"loading {artifact.name} in a child process", 0, None)
        footprint = measured(artifact, device, options, wanted)
    out.warn(plan.notices)
    if out.as_json:
        out.json(_to_json(artifact, device, plan, others, footprint) | {"warnings": [vars_of(n) for n in out.warned]})
    else:
        out.answer("\n".join([*_table(artifact, device, plan), *_words(plan, others), *_measured(footprint)]))


def _find(model: str, out: Output) -> Artifact:
    """Return the facts of MODEL. Raises InvalidModel for a folder of full-precision weights: what it takes depends on its conversion."""
    from edgeai.artifact import open_artifact
    from edgeai.engines.opening import CLASSIFIER
    from edgeai.fetch.remote import is_remote, remote_artifact
    from edgeai.store import Store

    if is_remote(model):
        return remote_artifact(model, out.progress)
    artifact = open_artifact(Store.open().find(model))
    if artifact.arch == CLASSIFIER:
        raise InvalidModel(
            f"{model!r} is the folder of a trained classifier",
            hint=f"convert it first: edgeai convert {model} --to onnx",
        )
    if artifact.format == "hf":
        size = human_bytes(artifact.params * 4.85 / 8)
        raise InvalidModel(
            f"{model!r} is a {artifact.format} folder of {artifact.params / 1e6:.0f} M weights, which the runtime does not run",
            hint=f"convert it first: edgeai convert {model} --quant q4_k_m makes a file of about {size}; --dry-run says it exactly",
        )
    return artifact


def _machine(device: Device, gpu_memory: tuple[int, ...], ram: int | None) -> Device:
    """Return DEVICE with the GPUs and the main memory that were named instead of its own."""
    from edgeai.device import GPU
    from edgeai.native import BackendDevice

    if ram is not None:
        device = replace(device, memory=replace(device.memory, total=max(ram, device.memory.total), available=ram))
    if not gpu_memory:
        return device
    name = "a GPU that was named"
    found = tuple(
        BackendDevice(name=f"CUDA{at}", description=name, kind="gpu", memory_free=size, memory_total=size)
        for at, size in enumerate(gpu_memory)
    )
    gpu = GPU(
        name=name, memory_total=max(gpu_memory), memory_free=max(gpu_memory), driver="-", compute_capability="9.0"
    )
    cpus = tuple(item for item in device.library.devices if item.kind == "cpu")
    library = replace(
        device.library, gpu_offload=True, devices=(*found, *cpus), cuda_error=None, cuda_failure=None, features=device.library.features
    )  # fmt: skip
    return replace(device, gpus=(gpu,) * len(gpu_memory), gpu_problem=None, library=library)


# ---- what is printed


def _parts(plan: Plan, device: Device) -> list[dict[str, Any]]:
    """Return one row for each device: what each part takes there, and what is free."""
    free = {gpu.name: gpu.memory_free for gpu in device.cuda_devices} | {"CPU": device.memory.available}
    rows = []
    for share in plan.placement.shares:
        on_cpu = share.device == "CPU"
        other = plan.overhead_bytes if on_cpu else 0
        weights = share.weights_bytes + share.mapped_bytes
        gpus = sum(plan.correction.get(gpu.device, 1.0) * gpu.total_bytes for gpu in plan.placement.gpus)
        total = (
            plan.memory_bytes - round(gpus)
            if on_cpu
            else round(share.total_bytes * plan.correction.get(share.device, 1.0))
        )
        rows.append(
            {
                "device": share.device,
                "layers": share.layers,
                "weights_bytes": weights,
                "kv_bytes": share.kv_bytes,
                "compute_bytes": share.compute_bytes,
                "other_bytes": other,
                "total_bytes": total,
                "free_bytes": free.get(share.device, 0),
            }
        )
    return rows


TITLES = (
    ("layers", "layers, output included"),
    ("weights_bytes", "weights"),
    ("kv_bytes", "KV cache"),
    ("compute_bytes", "buffers"),
    ("other_bytes", "vocabulary and runtime"),
    ("total_bytes", "total, predicted"),
    ("free_bytes", "free"),
)


def _table(artifact: Artifact, device: Device, plan: Plan) -> list[str]:
    rows = _parts(plan, device)
    lines = [
        f"  {artifact.name} {artifact.quant} · {human_bytes(artifact.size_bytes)} · {artifact.params / 1e6:,.0f} M weights",
        "",
    ]
    lines.append(f"    {'':26}" + "".join(f"{row['device']:>12}" for row in rows))
    for key, title in TITLES:
        cells = [str(row[key]) if key == "layers" else human_bytes(row[key]) for row in rows]
        lines.append(f"    {title:26}" + "".join(f"{cell:>12}" for cell in cells))
    if plan.twice_bytes:
        note = f"{human_bytes(plan.twice_bytes)} of it are pages of the file that nothing reads again: they need not be free"
        lines.append(f"    {note}")
    if plan.prefix_bytes:
        lines.append(f"    and up to {human_bytes(plan.prefix_bytes)} for prompts that are kept for later requests")
    if plan.needed_bytes != plan.memory_bytes:
        lines.append(f"    so {human_bytes(plan.needed_bytes)} must be free")
    return lines


def _words(plan: Plan, others: tuple[Alternative, ...]) -> list[str]:
    where = (
        "the CPU"
        if not plan.gpu_layers
        else " and ".join((*plan.devices, *(["the CPU"] if plan.placement.cpu.layers else [])))
    )
    lines = [
        "",
        f"  fits on {where}: context {plan.context}, {plan.streams} stream{'s' * (plan.streams > 1)}, KV cache in {plan.kv_type}",
    ]
    lines += [f"    {reason}" for reason in plan.why]
    if others:
        lines += ["", "  with less", f"    {'':44}{'must be free':>12}"]
        lines += [f"    {shown(other):44}{human_bytes(other.needs_bytes):>12}" for other in others]
    return lines


def shown(other: Alternative) -> str:
    """Return the text of an alternative with the options of this command."""
    return as_options(other.text, click.get_current_context().command)


def _measured(footprint: Footprint | None) -> list[str]:
    if footprint is None:
        return []
    lines = ["", f"  {'measured':28}{'predicted':>12}{'measured':>12}{'error':>9}"]
    for row in footprint.rows:
        what = {"all": f"{row.device}, all of it", "buffers": f"{row.device}, buffers of libllama"}[row.what]
        lines.append(f"    {what:26}{human_bytes(row.predicted):>12}{human_bytes(row.measured):>12}{row.error:>+9.1%}")
    return lines


def vars_of(notice: Any) -> dict[str, str]:
    """Return a notice as JSON values."""
    return {"code": notice.code, "message": notice.message}


def _to_json(
    artifact: Artifact, device: Device, plan: Plan, others: tuple[Alternative, ...], footprint: Footprint | None
) -> dict[str, Any]:
    return {
        "model": artifact.name,
        "quant": artifact.quant,
        "size_bytes": artifact.size_bytes,
        "params": artifact.params,
        "fits": plan.fits,
        "parts": _parts(plan, device),
        "plan": plan.to_dict(),
        "alternatives": [other.to_dict() | {"text": shown(other)} for other in others],
        "measured": footprint.to_dict() if footprint else None,
    }
