"""The passport that lies beside a file, or inside it: read, checked against the file, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from edgeai.errors import OutputError
from edgeai.types import Notice, Report, Row

__all__ = [
    "PREFIX",
    "Paper",
    "failed_notice",
    "is_paper",
    "paper_of",
    "read_paper",
    "sha256_of",
    "stated_sha256",
    "write_paper",
]

PREFIX = "edgeai.passport."
"""Keys in a GGUF file that say how its proof ended (evaluation.summary writes them)."""

IN_FOLDER = "passport.json"
MAX_BYTES = 16 << 20
KEYS = {"file", "sha256", "quant", "source", "tools", "report"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What is known of the proof of a file.

    `place` is where that was found: "beside" it, in a passport whose sha256 is the file's; "inside", in its keys; or nowhere. `changed`:
    there is a passport beside it that is of other bytes. `facts` is the whole passport, or the keys.
    """

    place: Literal["beside", "inside", "nowhere"]
    ok: bool | None = None
    report: Report = field(default_factory=Report)
    facts: Mapping[str, Any]
    changed: bool = False


def paper_of(path: Path) -> Path:
    """Return where the passport of PATH is: beside a file, and in a folder."""
    if path.is_dir():
        return path / IN_FOLDER
    return path.with_name(f"{path.name}.passport.json")


def load(path: Path) -> dict[str, Any] | None:
    """Return the passport in the file PATH, or None where there is none, or something else."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and facts.keys() >= KEYS else None


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file PATH, or one for all files of a folder but its passport (manifest.chain)."""
    from converters.manifest import chain, file_sha256  # what runs a model needs none of the converters

    if not path.is_dir():
        return file_sha256(path)
    files = [item for item in path.iterdir() if item.is_file() and item.name != IN_FOLDER]
    return chain({item.name: file_sha256(item) for item in files})


def stated_sha256(path: Path) -> tuple[str, str] | None:
    """Return (what the passport of PATH says its sha256 is, what it is); None where there is no passport."""
    facts = load(paper_of(path))
    return None if facts is None else (str(facts["sha256"]), sha256_of(path))


def is_paper(path: Path, of: Path) -> bool:
    """Whether the file PATH is a passport that was written here for a file of the name of OF, or for the folder OF it lies in."""
    facts = load(path)
    return facts is not None and (facts["file"] == of.name or of.is_dir())


def read_paper(path: Path, metadata: Mapping[str, Any]) -> Paper:
    """Return what is known of the proof of the file PATH, whose keys are METADATA. Hashes the file where a passport lies beside it."""
    facts = load(paper_of(path))
    changed = facts is not None and facts["sha256"] != sha256_of(path)
    if facts is not None and not changed:
        report = read_report(facts["report"])
        if report is not None:
            return Paper(place="beside", ok=report.ok, report=report, facts=facts)
    inside = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    ok = inside.get("ok")
    if isinstance(ok, bool):
        return Paper(place="inside", ok=ok, facts=inside, changed=changed)
    return Paper(place="nowhere", facts={}, changed=changed)


def read_report(value: Any) -> Report | None:
    """Return the report in a passport; None where it is not one, or does not say of itself what its rows say."""
    rows = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return None
    found = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or type(row.get("ok")) is not bool:
            return None
        measured: Any = row.get("value")
        ends: Any = row.get("interval")
        limit = row.get("limit")
        if not isinstance(limit, str | None):
            return None
        pair = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
        found.append(
            Row(
                name=row["name"],
                value=float(measured) if is_number(measured) else str(measured),
                limit=limit,
                ok=row["ok"],
                interval=(float(ends[0]), float(ends[1])) if pair else None,
            )
        )
    report = Report(rows=tuple(found))
    return report if value.get("ok") is report.ok else None


def is_number(value: Any) -> bool:
    """Whether VALUE, which a file says, is a number that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 64)


def failed_notice(path: Path, metadata: Mapping[str, Any]) -> Notice | None:
    """Return a warning about the file PATH where its passport says that it failed; None where it passed or has none.

    The file is read whole only where a passport beside it says so: what passed costs nothing.
    """
    facts = load(paper_of(path))
    report = read_report(facts["report"]) if facts is not None else None
    if report is not None and facts is not None:
        if not report.ok and facts["sha256"] == sha256_of(path):
            return failed(path, "; ".join(f"{row.name}" for row in report.failed))
        if report.ok and metadata.get(f"{PREFIX}ok") is False and facts["sha256"] == sha256_of(path):
            return None  # a later proof, kept with `edgeai prove --write`
    if metadata.get(f"{PREFIX}ok") is False:
        return failed(path, "its own keys say so")
    return None


def failed(path: Path, why: str) -> Notice:
    """Return the warning that the file PATH failed its proof."""
    return Notice(
        code="proof-failed", message=f"{path.name} failed its proof, so it is not the model it was made from: {why}"
    )


class Proved(Protocol):
    """The outcome of a proof (evaluation.prove.Verdict)."""

    @property
    def path(self) -> Path:
        """The file that was proved."""

    def passport(self) -> bytes:
        """Return the passport as it is written."""


def write_paper(verdict: Proved) -> Path:
    """Write the passport of VERDICT beside its file, whole or not at all; raises OutputError where something else has that name."""
    from converters.output import OutputFile

    place = paper_of(verdict.path)
    if (place.exists() or place.is_symlink()) and not is_paper(place, verdict.path):
        raise OutputError(f"{str(place)!r} is there already and is no passport of the file", hint="move it away")
    with OutputFile(place) as out:
        path = out.temporary()
        path.write_bytes(verdict.passport())
        out.commit(path)
    return place
