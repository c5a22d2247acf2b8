"""The disk that a conversion needs: for its file, the unquantized one beside it, and what lies in the folder for temporary files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from converters.families import ModelPlan
from converters.quantmap import QuantMap
from edgeai.errors import DoesNotFit
from edgeai.evaluation.heldout import held_out_bytes
from edgeai.evaluation.passport import check_scratch, scratch_bytes
from edgeai.preflight import Need

__all__ = ["SPARE_BYTES", "check_disk", "disk_need", "export_bytes", "search_bytes"]

SPARE_BYTES = 32 << 20


def disk_need(output: Path, plan: ModelPlan, quantmap: QuantMap) -> Need:
    """Return what the folder of OUTPUT has to hold: the file, the unquantized one beside it, temporary files if they go there."""
    needed = quantmap.nbytes + SPARE_BYTES + export_bytes(plan, quantmap)
    if Path(tempfile.gettempdir()).stat().st_dev == output.parent.stat().st_dev:
        needed += scratch_bytes(plan) + trial_bytes(plan, quantmap)
    return Need(needed=needed, free=shutil.disk_usage(output.parent).free)


def export_bytes(plan: ModelPlan, quantmap: QuantMap) -> int:
    """Return the size of the unquantized file that the proof needs beside the result."""
    return 0 if quantmap.weakest == "F32" else sum(tensor.elements for tensor in plan.tensors) * 4


def check_disk(output: Path, plan: ModelPlan, quantmap: QuantMap) -> None:
    """Raise DoesNotFit when the disk is too small for all files together."""
    check_scratch(plan, trial_bytes(plan, quantmap))
    need = disk_need(output, plan, quantmap)
    if not need.fits:
        raise DoesNotFit(
            f"the conversion needs {need.needed / 1e9:.2f} GB in {str(output.parent)!r}, and {need.free / 1e9:.2f} GB are free",
            hint="free some space, or name a place on another disk with -o",
        )


def search_bytes(quantmap: QuantMap) -> int:
    """Return how large a file is, at most, that a search makes to be measured; 0 without a search."""
    return quantmap.nbytes if quantmap.mixed else 0


def trial_bytes(plan: ModelPlan, quantmap: QuantMap) -> int:
    """Return how many bytes lie on the disk during a search: a file, as much again encoded for the next, and torch's logits."""
    return 2 * search_bytes(quantmap) + (held_out_bytes(plan) if quantmap.mixed else 0)
