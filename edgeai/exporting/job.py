"""What the conversions to a folder of ONNX share: the job, its lineage and passport, and the folder's name at the end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converters import manifest
from converters.checkpoint import Checkpoint
from converters.families import ModelPlan
from converters.onnx.header import Header
from converters.onnx.language import write_json
from converters.output_folder import OutputFolder
from converters.tokenizer import Vocabulary
from edgeai import __version__
from edgeai.artifact.onnx import LINEAGE
from edgeai.bounds.outcome import Outcome
from edgeai.conversion import Conversion, peak_rss_bytes, shown_with_ends
from edgeai.device import memory_facts
from edgeai.disk import SPARE_BYTES
from edgeai.errors import DoesNotFit, ProofFailed, UsageError
from edgeai.evaluation.passport import Proof, check_scratch
from edgeai.evaluation.summary import rounded
from edgeai.paper import paper_of, sha256_of
from edgeai.pipeline import Notify
from edgeai.types import Notice, Progress, Report, finite

__all__ = ["FolderJob", "check_room", "place_of", "require"]

NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "onnxruntime_genai")
SUMMARY = ("mean_kl", "p99_kl", "top1", "perplexity_ratio", "min_cosine", "spearman")


def require(names: tuple[str, ...] = NEEDED) -> None:
    """Raise UsageError where a library that the export needs is not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"converting to ONNX needs {' and '.join(missing)}, not installed here",
            hint="pip install 'edgeai[convert]'",
        )


def place_of(source: Path, output: Path | None) -> Path:
    """Return where the folder goes: OUTPUT, or beside SOURCE."""
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    return output or place.with_name(f"{place.name}-onnx")


def check_room(target: Path, *, memory: int, folder: int, export: int) -> None:
    """Raise DoesNotFit when MEMORY bytes are not free, or the disks have no room for FOLDER and a temporary EXPORT."""
    free = memory_facts().available
    if memory > free:
        raise DoesNotFit(
            f"building the ONNX model needs about {memory / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free",
            hint="close other programs, or convert on a larger machine: the result runs on smaller ones",
        )
    need = folder + SPARE_BYTES
    if Path(tempfile.gettempdir()).stat().st_dev == target.parent.stat().st_dev:
        need += export
    left = shutil.disk_usage(target.parent).free
    if need > left:
        raise DoesNotFit(
            f"the conversion needs {need / 1e9:.2f} GB in {str(target.parent)!r}, and {left / 1e9:.2f} GB are free",
            hint="free some space, or name a place on another disk with -o",
        )


@dataclass(slots=True, kw_only=True)
class FolderJob:
    """What all steps share. `said` is what was chosen besides the type QUANT, `outcome` how, if it was searched for, and `searched` what
    lineage and passport say of that."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    quant: str
    output: Path
    progress: Progress
    notify: Notify
    said: tuple[str, ...] = ()
    origin: str | None = None
    outcome: Outcome | None = None
    searched: Mapping[str, object] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def say(self, notice: Notice) -> None:
        """Record a notice and pass it on at once."""
        self.notices.append(notice)
        self.notify(notice)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.timings[f"{name}_s"] = self.timings.get(f"{name}_s", 0.0) + time.perf_counter() - began

    def check_scratch(self, export: int) -> None:
        """Raise DoesNotFit when EXPORT bytes and the proof's own files do not fit in the folder for temporary files."""
        check_scratch(self.plan, export)

    def judge(self, proof: Proof, export: Path, result: Path) -> tuple[Report, dict[str, float | str]]:
        """Return the report of PROOF on RESULT: EXPORT, in float32, must be torch's equal, and RESULT near enough to it."""
        report = Report(rows=tuple(proof.export(export)))
        if export != result and report.ok:
            said = {row.name for row in report.rows}
            report = report.plus(row for row in proof.quantized(result) if not row.ok or row.name not in said)
        for notice in proof.notices:
            self.say(notice)
        return report, dict(proof.summary)

    def finish(
        self,
        out: OutputFolder,
        header: Header,
        hashes: Mapping[str, str],
        report: Report,
        measured: Mapping[str, float | str],
    ) -> Conversion:
        """Write lineage and passport into the proved folder OUT, and give it its name. Raises ProofFailed for a REPORT that is not ok."""
        if not report.ok:
            raise self.failure(report)
        facts = self.lineage(header, hashes, report, measured)
        write_json(out.path / LINEAGE, facts)
        digest = sha256_of(out.path)
        paper_of(out.path).write_bytes(self.passport(facts, digest, report, measured))
        size = sum(item.stat().st_size for item in out.path.iterdir())
        out.commit()
        return Conversion(
            path=self.output,
            format="onnx",
            bytes=size,
            bpw=header.data_bytes * 8 / self.plan.parameters,
            quant=self.quant,
            types=dict(header.by_type()),
            sha256=digest,
            report=report,
            timings=self.timings,
            peak_rss_bytes=self.peak_rss_bytes,
            proof_peak_rss_bytes=max(peak_rss_bytes(), peak_rss_bytes(children=True)),
            warnings=tuple(self.notices),
            outcome=self.outcome,
        )

    def lineage(
        self, header: Header, hashes: Mapping[str, str], report: Report, measured: Mapping[str, float | str]
    ) -> dict[str, Any]:
        """Return the contents of edgeai.json. It holds no time and no path, so the same source gives the same folder."""
        return {
            "format": 1,
            "edgeai": __version__,
            "kind": "onnx",
            "name": manifest.model_name(self.checkpoint, self.plan),
            "quant": self.quant,
            "choices": list(self.said),
            **({"search": dict(self.searched)} if self.searched else {}),
            "parameters": self.plan.parameters,
            "opset": header.opsets.get("", 0),
            "source": {
                **({"origin": self.origin} if self.origin else {}),
                "sha256": manifest.chain(hashes),
                "files": dict(hashes),
            },
            "tools": manifest.tools(),
            "passport": {
                "ok": report.ok,
                "reference": str(measured.get("reference", "torch")),
                **{name: rounded(value) for name in SUMMARY if isinstance(value := measured.get(name), float)},
            },
        }

    def passport(
        self, facts: Mapping[str, Any], digest: str, report: Report, measured: Mapping[str, float | str]
    ) -> bytes:
        """Return the passport: what the folder is, what it was made from and with, and the proof."""
        return manifest.passport(
            {
                "file": self.output.name,
                "sha256": digest,
                **{key: facts[key] for key in ("quant", "choices", "search", "parameters", "source") if key in facts},
                "tools": {"edgeai": __version__, **manifest.tools()},
                "report": report.to_dict(),
                "measured": finite(dict(measured)),
                "warnings": [asdict(notice) for notice in self.notices],
            }
        )

    def failure(self, report: Report) -> ProofFailed:
        """Return the error for a report that is not ok."""
        parts = "; ".join(f"{row.name} {shown_with_ends(row)}, limit {row.limit}" for row in report.failed)
        return ProofFailed(
            f"{self.output.name!r} would not be the model in {str(self.checkpoint.path)!r}: {parts}",
            hint="nothing was written",
        )
