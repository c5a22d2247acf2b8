"""Prove a file that is already there: the passport alone, for a file from here or from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converters import manifest
from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.ggml_types import FILE_TYPES
from converters.gguf import write_model
from converters.header import GGUFArray, GGUFHeader, read_header
from converters.mixes import BLOCK, SIZE
from converters.quantmap import MIXED, QUANTS, plan_types
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai import __version__
from edgeai.artifact import dominant
from edgeai.device import cpu_facts
from edgeai.errors import InvalidModel
from edgeai.evaluation.embedding import proof_class
from edgeai.evaluation.heldout import held_out_tokens
from edgeai.evaluation.limits import LIMITS, check_max_kl
from edgeai.evaluation.passport import Proof, check_scratch
from edgeai.evaluation.settings import kind_rows, setting_rows, tensor_rows, token_rows
from edgeai.types import Notice, Progress, Report, Row, finite, no_progress

__all__ = ["Verdict", "prove"]

SHAPE_KEYS = ("block_count", "embedding_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a file is the model in its source: the object that `edgeai prove --json` prints."""

    path: Path
    source: Path
    quant: str
    parameters: int
    sha256: str
    source_files: Mapping[str, str]
    report: Report
    summary: Mapping[str, float | str]
    timings: Mapping[str, float]
    warnings: tuple[Notice, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "path": str(self.path),
            "source": str(self.source),
            "quant": self.quant,
            "sha256": self.sha256,
            "report": self.report.to_dict(),
            "measured": finite(dict(self.summary)),
            "timings": {name: round(value, 4) for name, value in self.timings.items()},
            "warnings": [asdict(notice) for notice in self.warnings],
        }

    def passport(self) -> bytes:
        """Return the passport that is kept beside the file."""
        return manifest.passport(
            {
                "file": self.path.name or self.path.resolve().name,
                "sha256": self.sha256,
                "quant": self.quant,
                "parameters": self.parameters,
                "source": {"sha256": manifest.chain(self.source_files), "files": dict(self.source_files)},
                "tools": {"edgeai": __version__, **manifest.tools()},
                "report": self.report.to_dict(),
                "measured": finite(dict(self.summary)),
                "warnings": [asdict(notice) for notice in self.warnings],
            }
        )


def prove(
    source: Path,
    artifact: Path,
    *,
    text: str | None = None,
    max_kl: float | None = None,
    progress: Progress = no_progress,
    notify: Callable[[Notice], None] = lambda _notice: None,
) -> Verdict:
    """Check that the GGUF file ARTIFACT still is the model in the folder SOURCE; neither is changed.

    Raises what opening them raises, and ProofFailed where one of the two does not run. A file of another model is no error: the report
    says where it differs.
    """
    began = time.perf_counter()
    check_max_kl(max_kl)
    header = read_header(artifact)
    checkpoint = open_checkpoint(source)
    plan = plan_model(checkpoint)
    inexact = "edgeai.tokenizer.inexact" in header.kv  # it was converted so, and what differs is measured again
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=inexact)
    rows = [*shape_rows(header, plan), *kind_rows(header, vocabulary)]
    quant, base = types_of(header)
    if base not in LIMITS:
        raise InvalidModel(f"{str(artifact)!r} is mostly of the type {base}, which no proof is known for")
    notices: list[Notice] = []
    summary: Mapping[str, float | str] = {}
    hashes = checkpoint.hashes(lambda done, total: progress("hashing the source", done, total, "B"))
    chosen = header.kv.get("edgeai.quant") == MIXED and text is None and plan.pooling is None
    tokens = held_out_tokens(plan.parameters, plan.vocab_size) if chosen else None  # as many as its bound was met on
    if all(row.ok for row in rows):
        check_scratch(plan)
        with proof_class(plan.pooling)(
            checkpoint=checkpoint,
            plan=plan,
            vocabulary=vocabulary,
            base=base,
            types={tensor.name: tensor.type for tensor in header.tensors},
            exports=base == "F32",
            text=text,
            tokens=tokens,
            max_kl=max_kl,
            progress=progress,
        ) as proof:
            rows += [*setting_rows(header, plan), *tensor_rows(header, plan), *token_rows(header, vocabulary)]
            rows += run(proof, artifact, plan, vocabulary)
            notices, summary = proof.notices, proof.summary
    for notice in notices:
        notify(notice)
    return Verdict(
        path=artifact,
        source=source,
        quant=quant,
        parameters=plan.parameters,
        sha256=manifest.file_sha256(artifact),
        source_files=hashes,
        report=Report(rows=tuple(rows)),
        summary=summary,
        timings={"total_s": time.perf_counter() - began},
        warnings=tuple(notices),
    )


def run(proof: Proof, artifact: Path, plan: ModelPlan, vocabulary: Vocabulary) -> list[Row]:
    """Return the rows of PROOF about ARTIFACT; without torch an unquantized export is made to compare it with."""
    if proof.exports and not proof.needs_export:
        return proof.export(artifact)
    if proof.needs_export:
        export, quantmap = proof.place("export.gguf"), plan_types(plan, "F32")
        check_scratch(plan, quantmap.nbytes)
        write_model(export, plan, vocabulary, quantmap, {}, threads=cpu_facts().threads)
        proof.use_export(export)
    return proof.quantized(artifact)


def types_of(header: GGUFHeader) -> tuple[str, str]:
    """Return the name of the file's type and its base type, by which it is judged: what the file says, else what most of it is.

    A file that claims a type which none of its tensors has (because no row is whole blocks of it, or to be judged more mildly) keeps
    the name, and is judged by the coarsest type that it has.
    """
    number = header.kv.get("general.file_type")
    claim = FILE_TYPES.get(number, "") if isinstance(number, int) else ""
    most = dominant(header.tensors)
    if claim not in QUANTS or (QUANTS[claim] in ("F32", "F16", "BF16") and QUANTS[claim] != most):
        return most, most
    kinds = {tensor.type for tensor in header.tensors}
    if QUANTS[claim] in kinds:
        return claim, QUANTS[claim]
    return claim, min(sorted(kinds & LIMITS.keys()), key=lambda kind: SIZE[kind] / BLOCK[kind], default=most)


def shape_rows(header: GGUFHeader, plan: ModelPlan) -> Iterator[Row]:
    """Yield one row that the file is of the source's shape, or one for each thing in which it is not."""
    found = dict(differences(header, plan))
    for name, (have, want) in found.items():
        yield Row(name=name, value=f"{have}, in the source {want}", limit="equal", ok=False)
    if not found:
        yield Row(name="architecture and shapes", value=f"{header.arch}, {len(header.tensors)} tensors", limit="equal")


def differences(header: GGUFHeader, plan: ModelPlan) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield (what, (in the file, in the source)) for everything that makes it pointless to run the two."""
    if header.arch != plan.architecture:
        yield "architecture", (header.arch, plan.architecture)
    for key in SHAPE_KEYS:
        have, want = header.kv.get(f"{header.arch}.{key}"), plan.keys.get(key)
        if want is not None and have != want:
            yield key.replace("_", " "), (have, want)
    words = header.kv.get("tokenizer.ggml.tokens", ())
    count = words.length if isinstance(words, GGUFArray) else len(words)
    if count != plan.vocab_size:
        yield "vocabulary", (f"{count} tokens", plan.vocab_size)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    wrong = [
        tensor.name
        for tensor in plan.tensors
        if tensor.name in shapes and squeezed(shapes[tensor.name]) != squeezed(tensor.shape[::-1])
    ]
    if wrong:
        shape = next(list(tensor.shape[::-1]) for tensor in plan.tensors if tensor.name == wrong[0])
        more = f" and of {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        yield f"shape of {wrong[0]}{more}", (list(shapes[wrong[0]]), shape)


def squeezed(shape: tuple[int, ...]) -> list[int]:
    """Return SHAPE without dimensions of one."""
    return [size for size in shape if size != 1]
