"""Export: a Hugging Face folder → a folder with an ONNX language model, proved.

    source → checkpoint → family → tokenizer → choices → build F32 → build the file → run the source in torch → prove the F32 export
           → prove the file against the same logits → lineage and passport → rename

As for GGUF files, the exact proof is made on the export in float32; it is removed afterwards, or is the result.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from converters import manifest
from converters.checkpoint import Checkpoint, open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.onnx.choices import Choices, check_architecture, parse_choices
from converters.onnx.header import Header
from converters.onnx.language import build, built_bytes, needed_bytes, write_json
from converters.output_folder import OutputFolder, check_output_folder
from converters.scratch import Scratch
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai import __version__
from edgeai.device import cpu_facts, memory_facts
from edgeai.errors import DoesNotFit, ProofFailed, UsageError
from edgeai.evaluation.limits import check_max_kl
from edgeai.evaluation.onnx_language import OnnxProof
from edgeai.evaluation.passport import check_scratch
from edgeai.evaluation.summary import rounded
from edgeai.paper import paper_of, sha256_of
from edgeai.pipeline import SPARE_BYTES, Conversion, Notify, cannot_write, peak_rss_bytes, shown
from edgeai.types import Notice, Progress, Report, finite, no_progress

__all__ = ["DEFAULT_QUANT", "convert_language", "require"]

DEFAULT_QUANT = "int8"
"""The same choice as for GGUF: 8 bits are within measuring noise of the source."""
NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")
LINEAGE = "edgeai.json"


def require(names: tuple[str, ...] = NEEDED) -> None:
    """Raise UsageError where a library that the export needs is not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"converting to ONNX needs {' and '.join(missing)}, not installed here",
            hint="pip install 'edgeai[convert]'",
        )


@dataclass(slots=True, kw_only=True)
class Job:
    """What all steps share."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    choices: Choices
    output: Path
    progress: Progress
    notify: Notify
    notices: list[Notice] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def say(self, notice: Notice) -> None:
        """Record a notice and pass it on at once."""
        self.notices.append(notice)
        self.notify(notice)


def convert_language(
    source: Path,
    output: Path | None = None,
    quant: str = DEFAULT_QUANT,
    *,
    types: tuple[str, ...] = (),
    force: bool = False,
    max_kl: float | None = None,
    text: str | None = None,
    origin: str | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Conversion:
    """Convert the Hugging Face folder SOURCE to the folder OUTPUT (default: SOURCE-onnx) for onnxruntime-genai, and prove it.

    QUANT is f32, f16, int8 or int4, TYPES are overrides (see converters.onnx.choices). Raises ConvertError for a source that cannot be
    converted, UsageError, OutputError, DoesNotFit, and ProofFailed when the result is not the model; nothing is left behind then.
    """
    began = time.perf_counter()
    check_max_kl(max_kl)
    require()
    job = prepare(source, output, quant, types, force=force, progress=progress, notify=notify)
    tell(f"{job.choices.quant} · about {built_bytes(job.plan, job.choices) / 1e6:.0f} MB")
    try:
        with OutputFolder(job.output) as out, Scratch() as scratch, manifest.SourceHashes(job.checkpoint) as hashing:
            at = time.perf_counter()
            export = out.path
            if job.choices.quant != "F32":
                export = Path(scratch) / "export"
                export.mkdir()
                make(job, export, replace(job.choices, quant="F32", options={}), "building F32")
            header = make(job, out.path, job.choices, f"building {job.choices.quant}")
            job.peak_rss_bytes = peak_rss_bytes(children=True)
            job.timings["write_s"] = time.perf_counter() - at
            hashes = hashing.result(lambda done, total: progress("hashing the source", done, total, "B"))
            at = time.perf_counter()
            report, measured = prove(job, out.path, export, max_kl=max_kl, text=text)
            job.timings["proof_s"] = time.perf_counter() - at
            if not report.ok:
                raise failure(job, report)
            facts = lineage(job, header, hashes, report, measured, origin)
            write_json(out.path / LINEAGE, facts)
            digest = sha256_of(out.path)
            paper_of(out.path).write_bytes(passport(job, facts, digest, report, measured))
            size = sum(item.stat().st_size for item in out.path.iterdir())
            out.commit()
    except OSError as error:
        raise cannot_write(job.output, error) from error
    job.timings["total_s"] = time.perf_counter() - began
    return Conversion(
        path=job.output,
        format="onnx",
        bytes=size,
        bpw=header.data_bytes * 8 / job.plan.parameters,
        quant=job.choices.quant,
        types=dict(header.by_type()),
        sha256=digest,
        report=report,
        timings=job.timings,
        peak_rss_bytes=job.peak_rss_bytes,
        proof_peak_rss_bytes=max(peak_rss_bytes(), peak_rss_bytes(children=True)),
        warnings=tuple(job.notices),
    )


def prepare(
    source: Path,
    output: Path | None,
    quant: str,
    types: tuple[str, ...],
    *,
    force: bool,
    progress: Progress,
    notify: Notify,
) -> Job:
    """Find out everything that can be known before a tensor is read: class, choices, tokenizer, output, disk, memory."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(source)
    classes = checkpoint.config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else "a model without `architectures`"
    check_architecture(str(name))
    plan = plan_model(checkpoint)
    choices = parse_choices(
        quant, types, layers=plan.layers, tied=bool(checkpoint.config.get("tie_word_embeddings", True))
    )
    # What libllama's tokenizers cannot do exactly is no matter here: the runtime uses the source's own.
    vocabulary = replace(read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True), inexact=None)
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    target = output or place.with_name(f"{place.name}-onnx")
    check_output_folder(target, checkpoint.files, force=force)
    check_room(plan, choices, target)
    job = Job(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, choices=choices, output=target, progress=progress, notify=notify
    )  # fmt: skip
    for code, message in plan.warnings:
        job.say(Notice(code=code, message=message))
    job.timings["preflight_s"] = time.perf_counter() - began
    return job


def check_room(plan: ModelPlan, choices: Choices, target: Path) -> None:
    """Raise DoesNotFit when memory or a disk is too small for what will be there at once."""
    memory, free = needed_bytes(plan), memory_facts().available
    if memory > free:
        raise DoesNotFit(
            f"building the ONNX model needs about {memory / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free",
            hint="close other programs, or convert on a larger machine: the result runs on smaller ones",
        )
    export = 0 if choices.quant == "F32" else plan.parameters * 4
    check_scratch(plan, export)
    need = built_bytes(plan, choices) + SPARE_BYTES
    if Path(tempfile.gettempdir()).stat().st_dev == target.parent.stat().st_dev:
        need += export
    left = shutil.disk_usage(target.parent).free
    if need > left:
        raise DoesNotFit(
            f"the conversion needs {need / 1e9:.2f} GB in {str(target.parent)!r}, and {left / 1e9:.2f} GB are free",
            hint="free some space, or name a place on another disk with -o",
        )


def make(job: Job, folder: Path, choices: Choices, label: str) -> Header:
    """Build the model into FOLDER."""
    job.progress(label, 0, None)
    header = build(job.checkpoint, job.plan, job.vocabulary, choices, folder, threads=cpu_facts().threads)
    job.progress(label, 1, 1)
    return header


def prove(
    job: Job, folder: Path, export: Path, *, max_kl: float | None, text: str | None
) -> tuple[Report, Mapping[str, float | str]]:
    """Return the report on FOLDER: EXPORT must be torch's equal, and the result near enough to it."""
    with OnnxProof(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        base=job.choices.precision.base,
        exports=True,
        stores=False,
        text=text,
        max_kl=max_kl,
        progress=job.progress,
    ) as proof:
        report = Report(rows=tuple(proof.export(export)))
        if export != folder and report.ok:
            said = {row.name for row in report.rows}
            report = report.plus(row for row in proof.quantized(folder) if not row.ok or row.name not in said)
        for notice in proof.notices:
            job.say(notice)
        return report, dict(proof.summary)


def lineage(
    job: Job,
    header: Header,
    hashes: Mapping[str, str],
    report: Report,
    measured: Mapping[str, float | str],
    origin: str | None,
) -> dict[str, Any]:
    """Return the contents of edgeai.json. It holds no time and no path, so the same source gives the same folder."""
    numbers = ("mean_kl", "p99_kl", "top1", "perplexity_ratio")
    return {
        "format": 1,
        "edgeai": __version__,
        "kind": "onnx",
        "name": manifest.model_name(job.checkpoint, job.plan),
        "quant": job.choices.quant,
        "choices": list(job.choices.said),
        "parameters": job.plan.parameters,
        "opset": header.opsets.get("", 0),
        "source": {**({"origin": origin} if origin else {}), "sha256": manifest.chain(hashes), "files": dict(hashes)},
        "tools": manifest.tools(),
        "passport": {
            "ok": report.ok,
            "reference": str(measured.get("reference", "torch")),
            **{name: rounded(value) for name in numbers if isinstance(value := measured.get(name), float)},
        },
    }


def passport(
    job: Job, facts: Mapping[str, Any], digest: str, report: Report, measured: Mapping[str, float | str]
) -> bytes:
    """Return the passport: what the folder is, what it was made from and with, and the proof."""
    return manifest.passport(
        {
            "file": job.output.name,
            "sha256": digest,
            **{key: facts[key] for key in ("quant", "choices", "parameters", "source")},
            "tools": {"edgeai": __version__, **manifest.tools()},
            "report": report.to_dict(),
            "measured": finite(dict(measured)),
            "warnings": [asdict(notice) for notice in job.notices],
        }
    )


def failure(job: Job, report: Report) -> ProofFailed:
    """Return the error for a report that is not ok."""
    parts = "; ".join(f"{row.name} {shown(row.value)}, limit {row.limit}" for row in report.failed)
    return ProofFailed(
        f"{job.output.name!r} would not be the model in {str(job.checkpoint.path)!r}: {parts}",
        hint="nothing was written",
    )
