"""A PEFT LoRA folder → an adapter file that runs beside its base, proved: base and adapter in the runtime against PEFT in torch."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

from converters import manifest
from converters.checkpoint import Checkpoint, open_checkpoint, read_json
from converters.families import ModelPlan, plan_model
from converters.gguf import write_model
from converters.lora import ADAPTER_CONFIG, Adapter, open_adapter
from converters.lora_gguf import check_adapter, write_adapter
from converters.output import OutputFile, check_output
from converters.quantmap import Choice, QuantMap, plan_types
from converters.tokenizer import read_vocabulary
from edgeai import __version__
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes
from edgeai.device import cpu_facts
from edgeai.errors import UsageError
from edgeai.evaluation.passport import Proof, check_scratch, no_torch_notice
from edgeai.pipeline import Job, Notify, check_companions, conversion, failure, publish
from edgeai.quantization import Quantization
from edgeai.types import Progress, Report, no_progress

__all__ = ["base_of", "convert_adapter"]


def base_of(adapter: Path) -> Path:
    """Return the base model that ADAPTER names, where that is a folder on this machine; raises UsageError otherwise.

    A name on a hub is not followed: nothing is downloaded that was not asked for.
    """
    name = (read_json(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    if isinstance(name, str) and name and os.path.isdir(name):  # noqa: PTH112 - Path.is_dir() fails for what can be no path
        return Path(name)
    shown = shlex.quote(name) if isinstance(name, str) and name.isprintable() and 0 < len(name) < 200 else "FOLDER"
    online = isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    raise UsageError(
        f"the adapter {str(adapter)!r} was trained on {str(name)[:200]!r}, which is no folder here",
        hint=f"--base hf:{name} downloads it, --base FOLDER names it here" if online else f"--base {shown}",
    )


def convert_adapter(
    source: Path,
    base: Path,
    output: Path | None = None,
    *,
    force: bool = False,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
) -> Conversion:
    """Write the LoRA folder SOURCE, trained on the folder BASE, to the adapter file OUTPUT (default: SOURCE with -lora.gguf).

    Raises what `pipeline.convert` raises; then, and after Ctrl-C, nothing is left behind.
    """
    began = time.perf_counter()
    checkpoint = open_checkpoint(base)
    plan = plan_model(checkpoint)
    adapter = open_adapter(source, checkpoint)
    checkpoint = replace(checkpoint, adapter=source)
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    job = Job(
        checkpoint=checkpoint,
        plan=plan,
        vocabulary=read_vocabulary(checkpoint, plan.vocab_size),
        quantization=Quantization(quantmap=types_of(plan, adapter)),
        output=output or place.with_name(f"{place.name}-lora.gguf"),
        progress=progress,
        notify=notify,
    )
    files = adapter_files(adapter)
    for folder in (source, base):
        check_output(job.output, folder, [*files, *checkpoint.files], force=force)
    check_companions(job.output, force=force, keep_failed=False)
    check_scratch(plan, sum(tensor.elements * 4 for tensor in plan.tensors))
    for code, message in plan.warnings:
        job.say(code, message)
    if (notice := no_torch_notice(plan, checkpoint)) is not None:
        job.torch = False
        job.say(notice.code, notice.message)
    job.timings["preflight_s"] = time.perf_counter() - began
    try:
        with OutputFile(job.output) as out:
            path = out.temporary()
            hashes = {file.name: manifest.file_sha256(file) for file in files}
            with job.step("write"):
                write_adapter(path, plan, adapter, keys(checkpoint, plan, manifest.chain(hashes)))
            job.peak_rss_bytes = peak_rss_bytes()
            with job.step("proof"):
                report = prove(job, path)
            if not report.ok:
                raise failure(job, report, None)
            size, digest = publish(job, out, path, report, hashes)
    except OSError as error:
        raise cannot_write(job.output, error) from error
    job.timings["total_s"] = time.perf_counter() - began
    done = conversion(job, size, digest, report)
    return replace(done, format="gguf-adapter", bpw=32.0, quant="F32")  # of the adapter, whatever the base is


def adapter_files(adapter: Adapter) -> list[Path]:
    """Return the files of the adapter that the result depends on."""
    weights = {file for pair in adapter.pairs.values() for file in pair.a.files}
    return sorted({adapter.path / ADAPTER_CONFIG, *weights})


def types_of(plan: ModelPlan, adapter: Adapter) -> QuantMap:
    """Return the types of the adapter's tensors, all of them F32."""
    choices = {}
    for name, (_, pair) in check_adapter(plan, adapter).items():
        for part, source in (("lora_a", pair.a), ("lora_b", pair.b)):
            nbytes = source.shape[0] * source.shape[1] * 4
            choices[f"{name}.{part}"] = Choice(type="F32", wanted="F32", nbytes=nbytes, why="adapters stay F32")
    return QuantMap(quant="F32", choices=choices)


def keys(checkpoint: Checkpoint, plan: ModelPlan, chain: str) -> dict[str, str]:
    """Return the keys that say what the file is for and what it was made from."""
    return {
        "general.name": f"{manifest.model_name(checkpoint, plan)} LoRA",
        "edgeai.version": __version__,
        "edgeai.source.sha256": chain,
    }


def prove(job: Job, path: Path) -> Report:
    """Run the base in F32 with the adapter PATH, and compare it with PEFT's model in torch."""
    with Proof(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        torch=job.torch,
        progress=job.progress,
        adapter_file=path,
    ) as proof:
        base = proof.place("base.gguf")
        job.progress("writing the base", 0, 1)
        write_model(base, job.plan, job.vocabulary, plan_types(job.plan, "F32"), {}, threads=cpu_facts().threads)
        report = Report(rows=tuple(proof.export(base)))
        for notice in proof.notices:
            job.say(notice.code, notice.message)
    return report
