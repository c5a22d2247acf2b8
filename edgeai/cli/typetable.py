"""The table of `edgeai convert --dry-run`: which type every tensor gets, layers that are alike on one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeai.cli.output import human_bytes

if TYPE_CHECKING:
    from converters.quantmap import Choice
    from edgeai.dryrun import DryRun

__all__ = ["table"]


@dataclass(slots=True, kw_only=True)
class Line:
    """Tensors of one part of the model that have the same shape, type and reason."""

    name: str
    shape: tuple[int, ...]
    choice: Choice
    layers: list[int] = field(default_factory=list)
    nbytes: int = 0


def table(would: DryRun, *, verbose: bool) -> str:
    """Return the table as text: vectors on one line, matrices of layers that are alike on one; VERBOSE gives each tensor its own."""
    lines = [
        Line(name=tensor.name, shape=tensor.shape, choice=would.quantmap.choices[tensor.name])
        for tensor in would.plan.tensors
    ]
    for line in lines:
        line.nbytes = line.choice.nbytes
    if not verbose:
        lines = grouped(lines)
    cells = [["tensor", "layers", "shape", "type", "size", "why"]]
    for line in lines:
        shape = " x ".join(map(str, line.shape)) if line.shape else "vectors"
        cells.append(
            [
                line.name.removesuffix(".weight"),
                ranges(line.layers),
                shape,
                line.choice.type,
                human_bytes(line.nbytes),
                line.choice.why,
            ]
        )
    if verbose:
        cells = [row[:1] + row[2:] for row in cells]
    return "\n".join([*aligned(cells), "", *summary(would)])


def grouped(lines: Sequence[Line]) -> list[Line]:
    """Return LINES with layers that are alike put together, and all vectors on the last line."""
    found: dict[tuple[object, ...], Line] = {}
    vectors = Line(name="norms and biases", shape=(), choice=lines[0].choice)
    for line in lines:
        if len(line.shape) < 2:
            vectors.choice = line.choice
            vectors.nbytes += line.nbytes
            continue
        parts = line.name.split(".")
        layer = int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else None
        name = ".".join(["blk.*", *parts[2:]]) if layer is not None else line.name
        key = (name, line.shape, line.choice.type, line.choice.why)
        group = found.setdefault(key, Line(name=name, shape=line.shape, choice=line.choice))
        group.nbytes += line.nbytes
        if layer is not None:
            group.layers.append(layer)
    order = {line.name: index for index, line in reversed(list(enumerate(found.values())))}
    return [*sorted(found.values(), key=lambda line: order[line.name]), *([vectors] if vectors.nbytes else [])]


def ranges(layers: Sequence[int]) -> str:
    """Return layer numbers as text: 0-3 7 9-11; many stretches are only counted."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][1] == layer - 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    if len(found) > 4:
        return f"{len(layers)} layers"
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equally wide columns, the last one as it is; sizes are set to the right."""
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]) - 1)]
    return [
        "  ".join(
            [
                text.rjust(width) if index == len(widths) - 1 else text.ljust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=False))
            ]
            + [row[-1]]
        ).rstrip()
        for row in cells
    ]


def summary(would: DryRun) -> list[str]:
    """Return the last lines: the size of the file, its types, and how much of it is what its name says."""
    quantmap = would.quantmap
    types = ", ".join(f"{count} {kind}" for kind, count in quantmap.counts().items())
    fallen = f", {quantmap.fallback_share():.1%} in types that the shapes forced" if quantmap.fallback_share() else ""
    return [
        f"{quantmap.label} · {human_bytes(would.bytes)} ({would.bytes} bytes) · {would.bpw:.2f} bits per weight · {types}",
        f"{quantmap.share():.1%} of the tensor bytes are in {quantmap.base}{fallen} · nothing was written",
    ]
