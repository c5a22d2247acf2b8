"""Import: a GGUF file → a Hugging Face folder with the same model, proved in torch.

    file → keys, vocabulary and tensors read backwards → [proof of the vocabulary] → write the folder → run it in torch, and in the
         runtime the file with its tensors decoded and nothing else changed → rename

The file that torch is compared with is made without any family's rules, so an error in reading them backwards cannot cancel out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters import hf_export, manifest, tokenproof
from converters.checkpoint import open_checkpoint
from converters.families import TensorPlan, plan_model
from converters.gguf_copy import copy_gguf, type_bytes
from converters.imports.checkpoint import Imported, import_gguf
from converters.output_folder import OutputFolder, check_output_folder
from edgeai import __version__
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes, shown
from edgeai.device import cpu_facts
from edgeai.disk import SPARE_BYTES
from edgeai.errors import DoesNotFit, ProofFailed, UsageError
from edgeai.evaluation.passport import Proof, check_scratch, no_torch_notice, scratch_bytes
from edgeai.pipeline import Notify
from edgeai.types import Notice, Progress, Report, Row, no_progress

__all__ = ["AUTO", "import_model"]

AUTO = "auto"
PLAIN = {"F16": "f16", "BF16": "bf16"}


def import_model(
    source: Path,
    output: Path | None = None,
    dtype: str = AUTO,
    *,
    force: bool = False,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
) -> Conversion:
    """Write the GGUF file SOURCE as the Hugging Face folder OUTPUT (default: SOURCE with -hf), and prove it.

    DTYPE is f32, f16, bf16, or auto: the type of the file's matrices, and f32 where they are quantized, because only that holds the
    decoded numbers exactly. Raises InvalidModel, UnsupportedModel, OutputError, DoesNotFit and ProofFailed; then, and after Ctrl-C,
    nothing is left behind.
    """
    began = time.perf_counter()
    timings: dict[str, float] = {}
    notices: list[Notice] = []

    def say(code: str, message: str) -> None:
        notices.append(Notice(code=code, message=message))
        notify(notices[-1])

    if source.is_dir():
        raise UsageError(
            f"{str(source)!r} is a folder, and a GGUF file is read back", hint="name a .gguf file, or use --to gguf"
        )
    imported = import_gguf(source)
    kind = choose(imported, dtype)
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    target = output or place.with_name(f"{place.name.removesuffix('.gguf')}-hf")
    check_output_folder(target, [source], force=force)
    check_disk(imported, target, kind)
    for code, message in imported.notices:
        say(code, message)
    if (notice := no_torch_notice(imported.plan)) is not None:
        say(notice.code, notice.message)
    timings["preflight_s"] = time.perf_counter() - began
    try:
        with OutputFolder(target) as out:
            progress("proving the tokenizer", 0, 1)
            tokenproof.ask([tokenproof.ids_question(source, imported.vocabulary)])
            progress("proving the tokenizer", 1, 1)
            at = time.perf_counter()
            digest = manifest.file_sha256(source)
            lineage = lineage_of(imported, kind, digest)
            written = hf_export.write_folder(
                out.path,
                imported.checkpoint,
                kind,
                more={"edgeai.json": lineage},
                progress=lambda done, total: progress(f"writing {kind}", done, total, "B"),
            )
            peak = peak_rss_bytes()
            timings["write_s"] = time.perf_counter() - at
            if written.rounded:
                say(
                    "rounded",
                    f"{written.rounded} of {written.tensors} tensors have values that {kind} rounds: --dtype f32 keeps them exactly",
                )
            at = time.perf_counter()
            report = prove(imported, out.path, kind, rounded=bool(written.rounded), progress=progress, notices=notices)
            timings["proof_s"] = time.perf_counter() - at
            if not report.ok:
                raise failure(source, target, report)
            hashes = open_checkpoint(out.path).hashes()
            size = sum(path.stat().st_size for path in out.path.iterdir())
            out.commit()
    except OSError as error:
        raise cannot_write(target, error) from error
    timings["total_s"] = time.perf_counter() - began
    return Conversion(
        path=target,
        format="hf",
        bytes=size,
        bpw=hf_export.DTYPES[kind][2] * 8,
        quant=kind.upper(),
        types={kind.upper(): written.tensors},
        sha256=manifest.chain(hashes),
        report=report,
        timings=timings,
        peak_rss_bytes=peak,
        proof_peak_rss_bytes=max(peak_rss_bytes(), peak_rss_bytes(children=True)),
        warnings=tuple(notices),
    )


def choose(imported: Imported, dtype: str) -> str:
    """Return the type of the folder's weights."""
    if dtype == AUTO:
        return PLAIN.get(next(iter(imported.kinds)), "f32") if len(imported.kinds) == 1 else "f32"
    if dtype not in hf_export.DTYPES:
        raise UsageError(f"the dtype {dtype!r} is not known", hint=f"known: {AUTO}, {', '.join(hf_export.DTYPES)}")
    return dtype


def check_disk(imported: Imported, target: Path, kind: str) -> None:
    """Raise DoesNotFit when the folder, or what the proof writes, does not fit on its disk."""
    reference = sum(type_bytes(tensor, "F32") for tensor in imported.header.tensors)
    check_scratch(imported.plan, reference)
    need = hf_export.export_bytes(imported.checkpoint.tensors, kind) + SPARE_BYTES
    if Path(tempfile.gettempdir()).stat().st_dev == target.parent.stat().st_dev:
        need += scratch_bytes(imported.plan) + reference
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise DoesNotFit(
            f"the import needs {need / 1e9:.2f} GB in {str(target.parent)!r}, and {free / 1e9:.2f} GB are free",
            hint="free some space, or name a place on another disk with -o",
        )


def lineage_of(imported: Imported, kind: str, digest: str) -> dict[str, Any]:
    """Return the contents of edgeai.json. It holds no time and no path, so the same file gives the same folder."""
    return {
        "format": 1,
        "edgeai": __version__,
        "kind": "import",
        **imported.described,
        "dtype": kind,
        "parameters": imported.plan.parameters,
        "source": {"format": "gguf", "sha256": digest, "types": sorted(imported.kinds)},
        "tools": manifest.tools(),
    }


def prove(
    imported: Imported, folder: Path, kind: str, *, rounded: bool, progress: Progress, notices: list[Notice]
) -> Report:
    """Return the report on FOLDER: torch runs it, and the runtime runs the file with its tensors decoded to F32."""
    checkpoint = open_checkpoint(folder)
    plan = plan_model(checkpoint)
    first = Row(
        name="token ids of the file",
        value=f"equal for {len(tokenproof.stress_texts(imported.vocabulary))} texts",
        limit="equal",
    )
    if rounded:  # the decoded weights are then the file's own, and not those of the folder
        plan = replace(plan, tensors=plain(imported))
    torch = no_torch_notice(plan) is None
    loose = rounded and torch  # then the type's own limit holds
    with Proof(
        checkpoint=checkpoint,
        plan=plan,
        vocabulary=imported.vocabulary,
        base=kind.upper() if loose else "F32",
        exports=not loose,
        stores=False,
        torch=torch,
        progress=progress,
    ) as proof:
        decoded = proof.place("decoded.gguf")
        copy_gguf(
            imported.header,
            decoded,
            {tensor.name: "F32" for tensor in imported.header.tensors},
            "F32",
            {},
            lambda done, total: progress("decoding the file", done, total, "B"),
            threads=cpu_facts().threads,
        )
        rows = proof.quantized(decoded) if loose else proof.export(decoded)
        notices += [notice for notice in proof.notices if notice not in notices]
    return Report(rows=(first, *rows))


def plain(imported: Imported) -> tuple[TensorPlan, ...]:
    """Return the tensors of the file as they are."""
    return tuple(
        TensorPlan(name=name, shape=tensor.shape, sources=(tensor,)) for name, tensor in imported.stored.items()
    )


def failure(source: Path, target: Path, report: Report) -> ProofFailed:
    """Return the error for a report that is not ok."""
    parts = "; ".join(f"{row.name} {shown(row.value)}, limit {row.limit}" for row in report.failed)
    return ProofFailed(
        f"{target.name!r} would not be the model in {str(source)!r}: {parts}", hint="nothing was written"
    )
