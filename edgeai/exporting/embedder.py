"""A Hugging Face folder with an embedding model → a folder with one ONNX graph and its tokenizer, proved.

source → checkpoint → family → tokenizer → export F32 → prove that against torch → quantize → prove the file → rename
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converters import manifest
from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.onnx.embedder import INPUTS, export_embedder
from converters.onnx.encoders import quantize_encoder
from converters.onnx.halves import halve_file
from converters.onnx.header import read_header
from converters.onnx.language import MODEL, write_tokenizer
from converters.onnx.metadata import write_metadata
from converters.output_folder import OutputFolder, check_output_folder
from converters.scratch import Scratch
from converters.tokenizer import read_vocabulary, source_tokenizer
from edgeai import __version__
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes
from edgeai.errors import UsageError
from edgeai.evaluation.corpus import calibration_texts
from edgeai.evaluation.onnx_embedding import OnnxEmbeddingProof
from edgeai.exporting.job import FolderJob, check_room, place_of, require
from edgeai.pipeline import Notify
from edgeai.types import Notice, Progress, Report, no_progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DEFAULT_QUANT", "QUANTS", "convert_embedder"]

QUANTS: Mapping[str, str] = {"F32": "F32", "F16": "F16", "INT8": "INT8"}
"""Quant type → the row of limits that it is judged by. INT8 rounds activations as they come (converters.onnx.encoders)."""
ALIASES = {"FP32": "F32", "FP16": "F16", "INT8_DYNAMIC": "INT8"}
DEFAULT_QUANT = "int8"
TORCH_BYTES = 500 << 20
TEXTS, MOST_TOKENS = 64, 128
"""How many texts are looked at, and the tokens of the longest."""


def convert_embedder(
    source: Path,
    output: Path | None = None,
    quant: str | None = None,
    *,
    force: bool = False,
    text: str | None = None,
    origin: str | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Conversion:
    """Convert the embedding model in the folder SOURCE to the folder OUTPUT (default: SOURCE-onnx), and prove it.

    QUANT is f32, f16 (half the size, computed in float32) or int8. Raises ConvertError, UsageError, OutputError, DoesNotFit, and
    ProofFailed when the vectors are not the source's; nothing is left behind then.
    """
    began = time.perf_counter()
    require()
    job = prepare(source, output, parse(quant or DEFAULT_QUANT), force, progress, notify)
    job.origin = origin
    tell(f"{job.quant} · about {size_of(job) / 1e6:.0f} MB")
    try:
        with OutputFolder(job.output) as out, Scratch() as scratch, manifest.SourceHashes(job.checkpoint) as hashing:
            path = out.path / MODEL
            export = path if job.quant == "F32" else Path(scratch) / MODEL
            hashes = hashing.result(lambda done, total: progress("hashing the source", done, total, "B"))
            with job.step("write"):
                write(job, export, path, manifest.chain(hashes))
                write_tokenizer(out.path, job.vocabulary)
                write_tokenizer(export.parent, job.vocabulary)
                job.peak_rss_bytes = peak_rss_bytes()
            with job.step("proof"):
                report, measured = prove(job, path, export, text)
            job.timings["total_s"] = time.perf_counter() - began
            return job.finish(out, read_header(path), hashes, report, measured)
    except OSError as error:
        raise cannot_write(job.output, error) from error


def parse(name: str) -> str:
    """Return the quant type that NAME means. Raises UsageError."""
    word = name.upper().replace("-", "_")
    word = ALIASES.get(word, word)
    if word not in QUANTS:
        raise UsageError(
            f"the quant type {name!r} is not one of ONNX embedders", hint=f"one of: {', '.join(QUANTS).lower()}"
        )
    return word


def prepare(
    source: Path, output: Path | None, quant: str, force: bool, progress: Progress, notify: Notify
) -> FolderJob:
    """Find out everything that can be known before a tensor is read."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(source)
    plan = plan_model(checkpoint)
    vocabulary = replace(read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True), inexact=None)
    target = place_of(source, output)
    check_output_folder(target, checkpoint.files, force=force)
    job = FolderJob(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, quant=quant, output=target, progress=progress, notify=notify
    )  # fmt: skip
    check_room(target, memory=TORCH_BYTES + plan.parameters * 16, folder=size_of(job), export=plan.parameters * 4)
    for code, message in plan.warnings:
        job.say(Notice(code=code, message=message))
    job.timings["preflight_s"] = time.perf_counter() - began
    return job


def size_of(job: FolderJob) -> int:
    """Return about how large the folder will be."""
    return job.plan.parameters * {"F32": 4, "F16": 2, "INT8": 1}[job.quant] + (2 << 20)


def write(job: FolderJob, export: Path, path: Path, source_sha256: str) -> None:
    """Write the model in float32 to EXPORT, and in its type to PATH."""
    name = manifest.model_name(job.checkpoint, job.plan)
    facts = {"edgeai.version": __version__, "edgeai.name": name, "edgeai.source.sha256": source_sha256}
    facts["edgeai.architecture"] = job.plan.architecture
    job.progress("exporting F32", 0, 1)
    export_embedder(job.checkpoint, job.plan, export, name=name, metadata=facts)
    if job.quant == "INT8":
        job.progress("quantizing", 0, 1)
        quantize_encoder(export, path, usual_texts(job))
    elif job.quant == "F16":
        halve_file(export, path)
    write_metadata(path, {"edgeai.quant": job.quant})
    job.progress("exporting F32", 1, 1)


def usual_texts(job: FolderJob) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Return texts as the graph takes them, by which it is seen how large activations get; none of them is in the proof."""
    import numpy as np

    tokenizer = source_tokenizer(job.vocabulary.spec)
    tokenizer.encode_special_tokens = True
    around = len(job.vocabulary.before) + len(job.vocabulary.after)
    most = max(1, min(MOST_TOKENS, job.plan.context) - around)
    found = []
    for item in tokenizer.encode_batch(calibration_texts(TEXTS), add_special_tokens=False):
        ids = np.asarray([job.vocabulary.with_ends(item.ids[:most])], np.int64)
        found.append(dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
    return found


def prove(job: FolderJob, path: Path, export: Path, text: str | None) -> tuple[Report, Mapping[str, float | str]]:
    """Return the report on PATH and what was measured, after one on EXPORT."""
    with OnnxEmbeddingProof(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        base=QUANTS[job.quant],
        stores=False,
        text=text,
        progress=job.progress,
    ) as proof:
        return job.judge(proof, export, path)
