"""The table in README of what was converted and proved: recorded by the tests that do so, and drawn from the record.

    make table      runs those tests, rewrites tests/golden/proofs.json and the table

An ordinary run fails where a test makes a proof that is not in the record, or README has another table than the record's.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "proofs.json"
BEGIN, END = "<!-- families: drawn by `make table` -->", "<!-- families end -->"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Proved:
    """One proof that a test made: the model class, the kind of source, which shape of it, what was compared, and how closely.

    `worst` is the power of ten that the error stays below, so that machines agree on it.
    """

    model: str
    source: str
    variant: str
    proof: str
    worst: int

    def same_as(self, other: Proved) -> bool:
        """Whether both are about the same thing; how closely may differ by machine."""
        return (self.model, self.source, self.variant, self.proof) == (
            other.model,
            other.source,
            other.variant,
            other.proof,
        )


def power_of_ten(error: float) -> int:
    """Return the smallest power of ten above ERROR, at least -15."""
    return max(-15, math.floor(math.log10(error)) + 1) if error > 0 else -15


def recorded() -> list[Proved]:
    """Return the proofs in the record."""
    return [Proved(**item) for item in json.loads(GOLDEN.read_text())] if GOLDEN.exists() else []


def write(found: list[Proved]) -> None:
    """Replace the record and the table by FOUND."""
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(item)) for item in sorted(set(found)))
    GOLDEN.write_text(f"[\n{lines}\n]\n")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_table(text, table(found)), encoding="utf-8")


def with_table(text: str, drawn: str) -> str:
    """Return the README TEXT with the table DRAWN between its marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{drawn}\n{END}{tail}"


def table(found: list[Proved]) -> str:
    """Return the table in Markdown: one row for each model class, one line in it for each kind of source."""
    rows: dict[str, dict[str, list[Proved]]] = defaultdict(lambda: defaultdict(list))
    for item in sorted(set(found)):
        rows[item.model][item.source].append(item)
    lines = ["| model class | from | proved against the source in torch |", "|---|---|---|"]
    for model, sources in sorted(rows.items()):
        for source, items in sorted(sources.items(), key=lambda pair: (pair[0] != "safetensors", pair[0])):
            proofs = sorted({item.proof for item in items})
            told = "; ".join(describe(proof, [item for item in items if item.proof == proof]) for proof in proofs)
            lines.append(f"| {model} | {source} | {told} |")
    return "\n".join(lines)


def describe(proof: str, items: list[Proved]) -> str:
    """Return one proof in words: what, how closely, for how many shapes."""
    shapes = f"{len(items)} shapes" if len(items) > 1 else items[0].variant
    return f"{proof} < 1e{max(item.worst for item in items)} ({shapes})"
