"""Quantize a GGUF file: keys and vocabulary stay as they are, tensors get other types, and the source in the runtime is the reference.

file → [is it quantized already?] → types → write under a temporary name → compare with the source → rename → passport
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from converters import manifest
from converters.checkpoint import Checkpoint
from converters.dequantize import decodable
from converters.families import ModelPlan, TensorPlan, Value
from converters.families.pooling import POOLING_KEYS
from converters.gguf_copy import copy_gguf
from converters.header import GGUFHeader, read_header
from converters.importance import is_importance_file, read_importance
from converters.imports.settings import Settings
from converters.imports.source import check_whole, stored_tensors
from converters.imports.tokenizer import vocabulary_of
from converters.output import OutputFile, check_output
from converters.quantmap import Choice, QuantMap, plan_types
from edgeai import __version__
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes
from edgeai.device import cpu_facts
from edgeai.disk import SPARE_BYTES
from edgeai.errors import DoesNotFit, InvalidModel, UsageError
from edgeai.evaluation.embedding import proof_class
from edgeai.evaluation.limits import check_max_kl
from edgeai.evaluation.passport import check_scratch, scratch_bytes
from edgeai.evaluation.summary import placeholders, stamp
from edgeai.pipeline import Job, Notify, check_companions, conversion, failure, keep, publish, share
from edgeai.quantization import Quantization, Say, Wish
from edgeai.types import Progress, Report, no_progress

__all__ = ["quantized_types", "requantize"]

PLAIN = {"F32", "F16", "BF16", "F64"}


def requantize(
    source: Path,
    output: Path | None = None,
    wish: Wish | None = None,
    *,
    allow: bool = False,
    force: bool = False,
    keep_failed: bool = False,
    max_kl: float | None = None,
    text: str | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
) -> Conversion:
    """Write the GGUF file SOURCE with the types of WISH to OUTPUT (default: SOURCE with -QUANT), and compare the two.

    A file that is quantized already needs ALLOW. Raises UsageError without it, InvalidModel, UnsupportedModel, OutputError, DoesNotFit
    and ProofFailed; then, and after Ctrl-C, nothing is left behind. The other arguments are those of `pipeline.convert`.
    """
    began = time.perf_counter()
    check_max_kl(max_kl)
    wish = wish or Wish()
    wish.check()
    quant = wish.name
    header = read_header(source)
    check_whole(header)
    quantized = quantized_types(header)
    if quantized and not allow:
        raise UsageError(
            f"{str(source)!r} is quantized already ({', '.join(quantized)})",
            hint="convert the original model; or, with errors on top of errors, this one: --requantize",
        )
    job = plan_job(header, source, output, wish, progress, notify)
    job.text, job.max_kl, job.torch = text, max_kl, False
    check_output(job.output, source, [source], force=force)
    check_companions(job.output, force=force, keep_failed=keep_failed)
    check_disk(job)
    job.say("runtime-reference", "the reference of the proof is the source file in the runtime, not torch")
    if quantized:
        message = (
            f"the source is quantized already ({', '.join(quantized)}): its errors stay, and the proof cannot see them"
        )
        job.say("requantized", message)
    if warning := job.quantmap.warning():
        job.say(*warning)
    job.timings["preflight_s"] = time.perf_counter() - began
    try:
        with OutputFile(job.output) as out:
            path = out.temporary()
            with job.step("hash"):
                hashes = {source.name: manifest.file_sha256(source)}
            extra: dict[str, Value] = {
                "edgeai.version": __version__,
                "edgeai.quant": quant,
                "edgeai.source.sha256": manifest.chain(hashes),
                **({"edgeai.requantized_from": ",".join(quantized)} if quantized else {}),
                **job.quantization.keys,
                **placeholders(job.plan, torch=False),
            }
            with job.step("write"):
                write(job, header, path, extra)
            job.peak_rss_bytes = peak_rss_bytes()
            with job.step("proof"):
                report = prove(job, source, path)
            stamp(path, job.measured, ok=report.ok)
            if not report.ok:
                raise failure(job, report, keep(job, out, path, report, hashes) if keep_failed else None)
            size, digest = publish(job, out, path, report, hashes)
    except OSError as error:
        raise cannot_write(job.output, error) from error
    job.timings["total_s"] = time.perf_counter() - began
    return conversion(job, size, digest, report)


def quantized_types(header: GGUFHeader) -> list[str]:
    """Return the types of HEADER's tensors that are not plain numbers."""
    return [kind for kind in sorted({tensor.type for tensor in header.tensors} - PLAIN) if decodable(kind)]


def plan_job(
    header: GGUFHeader, source: Path, output: Path | None, wish: Wish, progress: Progress, notify: Notify
) -> Job:
    """Return what is to be done, with the output's default name."""
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    plan = plan_of(header)
    notices: list[tuple[str, str]] = []
    quantization = decide(header, plan, wish, lambda code, message: notices.append((code, message)))
    job = Job(
        checkpoint=Checkpoint(path=source, config={}, tensors={}),
        plan=plan,
        vocabulary=vocabulary_of(header),
        quantization=quantization,
        output=output or place.with_name(f"{place.name.removesuffix('.gguf')}-{wish.name.lower()}.gguf"),
        progress=progress,
        notify=notify,
    )
    for code, message in notices:
        job.say(code, message)
    return job


def decide(header: GGUFHeader, plan: ModelPlan, wish: Wish, say: Say) -> Quantization:
    """Return the type of every tensor and what an importance matrix says of it. A text would need the model in torch."""
    weights = replace(plan, tensors=tuple(item for item in plan.tensors if decodable(kind_of(header, item.name))))
    if wish.imatrix is None:
        return Quantization(quantmap=keep_some(header, plan_types(weights, wish.name, overrides=wish.overrides())))
    if not is_importance_file(wish.imatrix):
        raise UsageError(
            f"{str(wish.imatrix)!r} is no importance matrix, and a text is read with the model in torch",
            hint="give the GGUF file of an importance matrix, or convert the model's folder with --imatrix TEXT",
        )
    found = Quantization(quantmap=QuantMap(quant=wish.name, choices={}, overrides=wish.overrides()))
    found.use(read_importance(wish.imatrix), weights, say, f"the importance matrix {str(wish.imatrix)!r}")
    found.quantmap = keep_some(header, found.quantmap)
    return found


def plan_of(header: GGUFHeader) -> ModelPlan:
    """Return the plan of a copy: every tensor as it is, and the few facts that types and prompts depend on."""
    settings = Settings(header)
    stored = stored_tensors(header)
    heads = settings.value("attention.head_count")
    heads = heads if type(heads) is int and heads > 0 else 1
    kv_heads = settings.value("attention.head_count_kv")
    if not stored:
        raise InvalidModel(f"{str(header.path)!r} has no tensors", hint="name a whole model")
    return ModelPlan(
        architecture=header.arch,
        layers=settings.integer("block_count"),
        heads=heads,
        kv_heads=kv_heads if type(kv_heads) is int and kv_heads > 0 else heads,
        context=settings.integer("context_length", 2048),
        vocab_size=len(header.array("tokenizer.ggml.tokens")),
        tied="output.weight" not in stored,
        keys={},
        pooling=next((name for name, number in POOLING_KEYS.items() if number == settings.value("pooling_type")), None),
        tensors=tuple(TensorPlan(name=name, shape=tensor.shape, sources=(tensor,)) for name, tensor in stored.items()),
        gaps=False,  # what they are for, the rope, is copied
    )


def keep_some(header: GGUFHeader, chosen: QuantMap) -> QuantMap:
    """Return CHOSEN with what stays as it is: numbers that are no weights, and matrices that the source kept in F32 among others."""
    matrices = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1 and decodable(tensor.type)}
    quant, choices = chosen.quant, {}
    for tensor in header.tensors:
        stays = not decodable(tensor.type) or (
            tensor.type == "F32" and len(tensor.shape) > 1 and matrices != {"F32"} and quant != "F32"
        )
        if stays:
            why = "stays as it is in the source"
            choices[tensor.name] = Choice(type=tensor.type, wanted=tensor.type, nbytes=tensor.nbytes, why=why)
        else:
            choices[tensor.name] = chosen.choices[tensor.name]
    return replace(chosen, choices=choices)


def kind_of(header: GGUFHeader, name: str) -> str:
    """Return the type of the tensor NAME in the source."""
    return next(tensor.type for tensor in header.tensors if tensor.name == name)


def check_disk(job: Job) -> None:
    """Raise DoesNotFit when the file, or the logits of the proof, do not fit."""
    check_scratch(job.plan)
    need = job.quantmap.nbytes + SPARE_BYTES
    if Path(tempfile.gettempdir()).stat().st_dev == job.output.parent.stat().st_dev:
        need += scratch_bytes(job.plan)
    free = shutil.disk_usage(job.output.parent).free
    if need > free:
        raise DoesNotFit(
            f"the file needs {need / 1e9:.2f} GB in {str(job.output.parent)!r}, and {free / 1e9:.2f} GB are free",
            hint="free some space, or name a place on another disk with -o",
        )


def write(job: Job, header: GGUFHeader, path: Path, extra: dict[str, Value]) -> None:
    """Write the file."""
    label = f"writing {job.quantmap.quant}"
    copy_gguf(
        header,
        path,
        {name: choice.type for name, choice in job.quantmap.choices.items()},
        job.quantmap.quant,
        extra,
        lambda done, total: job.progress(label, done, total, "B"),
        threads=cpu_facts().threads,
        importance=job.quantization.rows,
    )


def prove(job: Job, source: Path, path: Path) -> Report:
    """Compare PATH with SOURCE, both in the runtime."""
    base = job.quantmap.weakest
    with proof_class(job.plan.pooling)(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        base="F16" if base == "F32" else base,
        exports=False,
        stores=False,
        torch=False,
        text=job.text,
        max_kl=job.max_kl,
        progress=job.progress,
        of="the source in the runtime",
    ) as proof:
        proof.use_export(source)
        report = Report(rows=(*proof.quantized(path), share(job.quantmap)))
        job.measured = proof.summary
        for notice in proof.notices:
            job.say(notice.code, notice.message)
    return report
