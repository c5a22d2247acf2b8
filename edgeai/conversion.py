"""What comes of a conversion: the object that `edgeai convert --json` prints, and the errors and sizes that all of them share."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeai.bounds.outcome import Outcome
from edgeai.errors import DoesNotFit, OutputError
from edgeai.types import Notice, Report

__all__ = ["Conversion", "cannot_write", "peak_rss_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A finished, proved conversion: the object that `edgeai convert --json` prints.

    `peak_rss_bytes` is the memory of the conversion itself, and `proof_peak_rss_bytes` that of the largest process of the proof,
    which runs the source in torch; `timings` keep the two apart as well (`proof_s`). `example` is what it could be run with.
    """

    path: Path
    bytes: int
    bpw: float
    quant: str
    types: Mapping[str, int]
    sha256: str
    report: Report
    timings: Mapping[str, float]
    peak_rss_bytes: int
    proof_peak_rss_bytes: int
    warnings: tuple[Notice, ...] = ()
    format: str = "gguf"
    example: str = '"Hello"'
    outcome: Outcome | None = None
    recipe: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "bpw": round(self.bpw, 4),
            "quant": self.quant,
            "types": dict(self.types),
            "sha256": self.sha256,
            "report": self.report.to_dict(),
            "timings": {name: round(value, 4) for name, value in self.timings.items()},
            "peak_rss_bytes": self.peak_rss_bytes,
            "proof_peak_rss_bytes": self.proof_peak_rss_bytes,
            "warnings": [asdict(notice) for notice in self.warnings],
            **({"recipe": str(self.recipe)} if self.recipe else {}),
            **({"search": self.outcome.to_dict()} if self.outcome else {}),
        }


def cannot_write(output: Path, error: OSError) -> DoesNotFit | OutputError:
    """Return the error for a write that the system refused."""
    folder = str(output.parent)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFit(
            f"the disk of {folder!r} is full", hint="free some space, or name a place on another disk with -o"
        )
    return OutputError(f"{str(output)!r} cannot be written: {error.strerror or error}")


def peak_rss_bytes(*, children: bool = False) -> int:
    """Return the largest memory of this process, or of one of its children, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not children and status.exists():  # getrusage would count the program that started this one, before exec
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
