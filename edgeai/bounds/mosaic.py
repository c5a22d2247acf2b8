"""The lower half of the picture: the type of every matrix, a column for each layer, coloured by how many bits a weight takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeai.bounds.ink import LIGHT, Look, Tips, looks_of, measure
from edgeai.bounds.layers import LayerMap, Run, bits, runs

__all__ = ["LEGEND_LINE", "Tile", "draw_keys", "draw_tiles", "key_lines", "rows_of", "width_of"]

ROW = 0.27
"""Height of a row, in inches."""
WIDEST = 0.85
"""The widest a cell gets, in inches."""
LEGEND_LINE = 0.24
"""Height of a line of the legend, in inches."""
SIZES = (7.5, 7.0, 6.5, 6.0, 5.5)
"""Sizes of a type's name in its cell, in points; the largest that fits all."""
TEXT_ROOM = 0.03
"""Of a cell's width, left free beside its text, in inches."""
NAME_SIZE = 8.5
EDGE = 0.9
CHIP = 0.16
CHIP_GAP = 0.26


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A row of the map: its name, its runs of layers, layer → tensor, and whether it is one matrix outside of the layers."""

    name: str
    runs: tuple[Run, ...]
    tensors: Mapping[int, str]
    outside: bool = False


def rows_of(found: LayerMap) -> list[Tile]:
    """Return the rows of the map: embeddings, the parts of the layers, and what follows them."""
    last = max(found.layers - 1, 0)
    outer = [
        Tile(name=name, runs=(Run(first=0, last=last, kind=kind),), tensors={0: f"{name}.weight"}, outside=True)
        for name, kind in found.outside.items()
    ]
    inner = [Tile(name=part.name, runs=tuple(runs(part)), tensors=part.tensors) for part in found.parts]
    before = [tile for tile in outer if "embd" in tile.name]
    return [*before, *inner, *(tile for tile in outer if tile not in before)]


def width_of(layers: int, room: float) -> float:
    """Return the width of a map of LAYERS where ROOM inches are free."""
    return min(room, WIDEST * max(layers, 4))


def height_of(tiles: Sequence[Tile]) -> float:
    """Return the height of TILES, in inches."""
    return ROW * len(tiles)


def draw_tiles(
    figure: Any, axes: Any, tiles: Sequence[Tile], layers: int, share: Mapping[str, float], tips: Tips
) -> None:
    """Draw TILES on AXES of FIGURE. SHARE is tensor → part of the expected cost, and TIPS gets what each cell says."""
    columns = max(layers, 1)
    axes.set_xlim(0, columns)
    axes.set_ylim(len(tiles), 0)
    looks = looks_of(sorted({run.kind for tile in tiles for run in tile.runs}, key=lambda kind: (bits(kind), kind)))
    cell = axes.get_position().width * figure.get_figwidth() / columns
    size, each = text_size(figure, [tile for tile in tiles if not tile.outside], cell)
    widths = {kind: measure(figure, kind, fontsize=size)[0] + TEXT_ROOM for kind in looks}
    for row, tile in enumerate(tiles):
        for run in tile.runs:
            look = looks[run.kind]
            for first, last in cells_of(tile, run):
                gid = tip(tips, tile.tensors[first], run.kind, share)
                axes.add_patch(box(first, row, last - first + 1, look, gid=gid, clip_on=False))
            for first, last in cells_of(tile, run) if each else [(run.first, run.last)]:
                frame(axes, row, (first, last))
                if widths[run.kind] <= (last - first + 1) * cell:
                    write(axes, (first + last + 1) / 2, row + 0.5, run.kind, size, look)
    names_and_numbers(axes, tiles, layers, cell)


def text_size(figure: Any, tiles: Iterable[Tile], cell: float) -> tuple[float, bool]:
    """Return the size of the texts, and whether each cell of CELL inches has room for one; otherwise each run of equal cells gets one."""
    kinds = {run.kind for tile in tiles for run in tile.runs}
    for size in SIZES:
        if all(measure(figure, kind, fontsize=size)[0] + TEXT_ROOM <= cell for kind in kinds):
            return size, True
    return SIZES[1], False


def cells_of(tile: Tile, run: Run) -> list[tuple[int, int]]:
    """Return the first and the last column of each cell of RUN: one for each layer, and one for all of a matrix outside of them."""
    if tile.outside:
        return [(run.first, run.last)]
    return [(layer, layer) for layer in range(run.first, run.last + 1)]


def box(x: float, y: float, width: float, look: Look, height: float = 1, **further: Any) -> Any:
    """Return a rectangle in the colour and with the pattern of LOOK."""
    from matplotlib.patches import Rectangle

    line = look.line if look.texture else look.color  # also the border, which closes the seam between equal neighbours
    return Rectangle(
        (x, y), width, height, facecolor=look.color, edgecolor=line, hatch=look.texture or None,
        linewidth=0 if look.texture else 0.3, **further,
    )  # fmt: skip


def frame(axes: Any, row: int, columns: tuple[int, int]) -> None:
    """Draw the border of what has a text of its own: a cell, or a run of equal cells."""
    from matplotlib.patches import Rectangle

    first, last = columns
    axes.add_patch(
        Rectangle(
            (first, row), last - first + 1, 1, fill=False, edgecolor=LIGHT["page"], linewidth=EDGE, clip_on=False, zorder=2
        )
    )  # fmt: skip


def write(axes: Any, x: float, y: float, kind: str, size: float, look: Look) -> None:
    """Write the type KIND into its cell; over a pattern it stands on a patch of the cell's colour."""
    patch = {"boxstyle": "square,pad=0.12", "facecolor": look.color, "edgecolor": "none"} if look.texture else None
    axes.text(x, y, kind, fontsize=size, color=look.ink, ha="center", va="center_baseline", bbox=patch, clip_on=False)


def tip(tips: Tips, tensor: str, kind: str, share: Mapping[str, float]) -> str:
    """Write down what the cell of TENSOR says under the pointer; return its id."""
    words = [tensor, kind, f"{bits(kind):.4g} bits per weight"]
    if tensor in share:
        words.append(f"{share[tensor]:.1%} of the expected cost")
    found = f"cell-{len(tips)}"
    tips[found] = " · ".join(words)
    return found


def names_and_numbers(axes: Any, tiles: Sequence[Tile], layers: int, cell: float) -> None:
    """Write the names of the rows on the left and the numbers of the layers below, as many as there is room for."""
    axes.set_yticks([row + 0.5 for row in range(len(tiles))], [tile.name for tile in tiles], parse_math=False)
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * cell >= 0.24), 100)
    numbers = range(0, layers, step)
    axes.set_xticks([number + 0.5 for number in numbers], [str(number) for number in numbers])
    axes.tick_params(colors=LIGHT["muted"], labelsize=8, length=0, pad=3)
    axes.tick_params(axis="y", labelsize=NAME_SIZE, labelcolor=LIGHT["ink"], pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    if layers:
        axes.set_xlabel("layer", color=LIGHT["muted"], fontsize=9, labelpad=2)


def key_lines(figure: Any, kinds: Sequence[str], room: float) -> list[list[tuple[float, str, str]]]:
    """Return the lines of the legend of KINDS that fit into ROOM inches: (where it begins, type, text)."""
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for kind in kinds:
        text = f"{kind} · {bits(kind):.2f}"
        width = CHIP + 0.07 + measure(figure, text, fontsize=8)[0]
        if lines[-1] and x + width > room:
            lines.append([])
            x = 0.0
        lines[-1].append((x, kind, text))
        x += width + CHIP_GAP
    return lines


def draw_keys(axes: Any, lines: Sequence[Sequence[tuple[float, str, str]]]) -> None:
    """Draw the legend on AXES, whose unit is an inch: a chip in the colour of each type, its name and its bits."""
    looks = looks_of([kind for line in lines for _, kind, _ in line])
    for number, line in enumerate(lines):
        middle = LEGEND_LINE * (len(lines) - number - 0.5)
        for x, kind, text in line:
            axes.add_patch(box(x, middle - CHIP / 2, CHIP, looks[kind], CHIP))
            axes.text(x + CHIP + 0.07, middle, text, fontsize=8, color=LIGHT["muted"], va="center_baseline")
    axes.text(
        -0.07, LEGEND_LINE * (len(lines) - 0.5), "bits / weight", fontsize=8, color=LIGHT["muted"], ha="right",
        va="center_baseline",
    )  # fmt: skip
    axes.axis("off")


def shares(costs: Mapping[str, float]) -> dict[str, float]:
    """Return tensor → its part of the sum of COSTS; nothing where there is no sum."""
    total = sum(cost for cost in costs.values() if math.isfinite(cost))
    return {name: cost / total for name, cost in costs.items() if math.isfinite(cost)} if total > 0 else {}
