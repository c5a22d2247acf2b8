"""A Hugging Face folder → a folder with an ONNX language model, proved.

    source → checkpoint → family → tokenizer → choices → build F32 → build the file → run the source in torch → prove the F32 export
           → prove the file against the same logits → lineage and passport → rename

As for GGUF files, the exact proof is made on the export in float32; it is removed afterwards, or is the result. With an aim the types of
the matrices are searched for (`edgeai.exporting.bounded`) in place of building the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters import manifest
from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.onnx.choices import Choices, check_architecture, parse_choices
from converters.onnx.header import Header
from converters.onnx.language import build, built_bytes, needed_bytes
from converters.output_folder import OutputFolder, check_output_folder
from converters.scratch import Scratch
from converters.tokenizer import read_vocabulary
from edgeai.bounds.aim import Aim
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes
from edgeai.device import cpu_facts
from edgeai.errors import UsageError
from edgeai.evaluation.limits import check_max_kl
from edgeai.evaluation.onnx_language import OnnxProof
from edgeai.exporting import bounded
from edgeai.exporting.job import FolderJob, check_room, place_of, require
from edgeai.pipeline import Notify
from edgeai.types import Notice, Progress, Report, no_progress

__all__ = ["DEFAULT_QUANT", "convert_language"]

WINDOW_CUT = "context-shortened"
"""The warning of families whose windows libllama does not have."""
DEFAULT_QUANT = "int8"
"""The same choice as for GGUF: 8 bits are within measuring noise of the source."""
SEARCH_BYTES = 7
"""What a search has on the disk for each weight: the export, all in 8 and all in 4 bits, and one choice."""


def convert_language(
    source: Path,
    output: Path | None = None,
    quant: str | None = None,
    *,
    types: tuple[str, ...] = (),
    force: bool = False,
    max_kl: float | None = None,
    text: str | None = None,
    origin: str | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
    aim: Aim | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Conversion:
    """Convert the Hugging Face folder SOURCE to the folder OUTPUT (default: SOURCE-onnx) for onnxruntime-genai, and prove it.

    QUANT is f32, f16, int8 or int4, TYPES are overrides (see converters.onnx.choices). With AIM the types are chosen for a goal, and QUANT
    has nothing to say. Raises ConvertError for a source that cannot be converted, UsageError, OutputError, DoesNotFit, and ProofFailed
    when the result is not the model, or misses a bound; nothing is left behind then.
    """
    began = time.perf_counter()
    check_max_kl(max_kl)
    require()
    if aim is not None and quant is not None:
        raise UsageError(f"quant {quant!r} and a goal exclude each other: the types are chosen", hint="leave one out")
    job, choices = prepare(
        source, output, bounded.BASE if aim else quant or DEFAULT_QUANT, types, force, progress, notify, aim, text
    )
    job.origin = origin
    size = "chosen by a search" if aim else f"{choices.quant} · about {built_bytes(job.plan, choices) / 1e6:.0f} MB"
    tell(f"{size} · built in float32 first, for the proof")
    try:
        with OutputFolder(job.output) as out, Scratch() as scratch, manifest.SourceHashes(job.checkpoint) as hashing:
            with job.step("write"):
                export = out.path
                if choices.quant != "F32":
                    export = Path(scratch) / "export"
                    export.mkdir()
                    make(job, export, Choices(quant="F32"))
                header = make(job, out.path, choices) if aim is None else None
                job.peak_rss_bytes = peak_rss_bytes(children=True)
            hashes = hashing.result(lambda done, total: progress("hashing the source", done, total, "B"))
            tokens = min_top1 = None
            if aim is not None:
                with job.step("search"):
                    found = bounded.find_types(
                        job, aim, choices, source_sha256=manifest.chain(hashes), export=export, scratch=Path(scratch),
                        output=out.path, text=text,
                    )  # fmt: skip
                job.quant, job.said = found.choices.quant, found.choices.said
                job.outcome, job.searched = found.outcome, found.facts
                header, choices, text, tokens = found.header, found.choices, found.text, found.tokens
                if aim.goal is not None:
                    max_kl, min_top1 = aim.goal.max_kl, aim.goal.min_top1
            assert header is not None  # noqa: S101 - built here or by the search
            with job.step("proof"):
                report, measured = prove(
                    job, choices, out.path, export, max_kl=max_kl, text=text, tokens=tokens, min_top1=min_top1
                )
            job.timings["total_s"] = time.perf_counter() - began
            return job.finish(out, header, hashes, report, measured)
    except OSError as error:
        raise cannot_write(job.output, error) from error


def prepare(
    source: Path,
    output: Path | None,
    quant: str,
    types: tuple[str, ...],
    force: bool,
    progress: Progress,
    notify: Notify,
    aim: Aim | None = None,
    text: str | None = None,
) -> tuple[FolderJob, Choices]:
    """Find out everything that can be known before a tensor is read: class, choices, tokenizer, output, disk, memory."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(source)
    classes = checkpoint.config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else "a model without `architectures`"
    check_architecture(str(name))
    plan = whole_context(plan_model(checkpoint), checkpoint.config)
    tied = bool(checkpoint.config.get("tie_word_embeddings", True))
    choices = parse_choices(quant, types, layers=plan.layers, tied=tied)
    if aim is not None:
        bounded.check_aim(aim, choices, text)
    # What libllama's tokenizers cannot do exactly is no matter here: the runtime uses the source's own.
    vocabulary = replace(read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True), inexact=None)
    target = place_of(source, output)
    check_output_folder(target, checkpoint.files, force=force)
    job = FolderJob(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, quant=choices.quant, said=choices.said, output=target,
        progress=progress, notify=notify,
    )  # fmt: skip
    export = 0 if choices.quant == "F32" else plan.parameters * (SEARCH_BYTES if aim else 4)
    job.check_scratch(export)
    check_room(target, memory=needed_bytes(plan), folder=built_bytes(plan, choices), export=export)
    for code, message in plan.warnings:
        job.say(Notice(code=code, message=message))
    job.timings["preflight_s"] = time.perf_counter() - began
    return job, choices


def whole_context(plan: ModelPlan, config: Mapping[str, Any]) -> ModelPlan:
    """Return PLAN with the context that the graph has.

    The graph has windows of attention, which libllama has for some families only. Longrope gives a longer text other angles from its first
    token on, and the graph chooses by the tokens that are there so far: keys of prompts that are read in parts would have the angles
    of both.
    """
    size, whole = config.get("sliding_window"), config.get("max_position_embeddings")
    if any(code == WINDOW_CUT for code, _ in plan.warnings) and isinstance(size, int) and isinstance(whole, int):
        others = tuple(item for item in plan.warnings if item[0] != WINDOW_CUT)
        plan = replace(plan, context=whole, window=size, warnings=others)
    if plan.rope_switch is None or plan.rope_switch >= plan.context:
        return plan
    message = (
        f"the context is {plan.rope_switch} tokens of the source's {plan.context}: longer texts need other rope factors from "
        "their first token on, and prompts are read in parts"
    )
    others = tuple(item for item in plan.warnings if item[0] != "rope-switch")
    return replace(plan, context=plan.rope_switch, rope_switch=None, warnings=(*others, ("context-cut", message)))


def make(job: FolderJob, folder: Path, choices: Choices) -> Header:
    """Build the model into FOLDER."""
    label = f"building {choices.quant}"
    job.progress(label, 0, 1)
    header = build(job.checkpoint, job.plan, job.vocabulary, choices, folder, threads=cpu_facts().threads)
    job.progress(label, 1, 1)
    return header


def prove(
    job: FolderJob,
    choices: Choices,
    folder: Path,
    export: Path,
    *,
    max_kl: float | None,
    text: str | None,
    tokens: int | None = None,
    min_top1: float | None = None,
) -> tuple[Report, Mapping[str, float | str]]:
    """Return the report on FOLDER and what was measured, after one on EXPORT."""
    if choices.base == "F32":  # what is to be proved is an export itself
        export = folder
    with OnnxProof(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        base=choices.base,
        stores=False,
        text=text,
        tokens=tokens,
        max_kl=max_kl,
        min_top1=min_top1,
        progress=job.progress,
    ) as proof:
        return job.judge(proof, export, folder)
