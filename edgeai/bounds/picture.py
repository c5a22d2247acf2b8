"""A search as a picture: files and what was predicted, distance against size, and the types of the chosen file, layer by layer."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.output import OutputFile, check_name
from edgeai.bounds.curve import draw_curve
from edgeai.bounds.ink import LIGHT, Tips, fit, measure, printable
from edgeai.bounds.layers import layer_map
from edgeai.bounds.mosaic import (
    LEGEND_LINE,
    NAME_SIZE,
    draw_keys,
    draw_tiles,
    height_of,
    key_lines,
    rows_of,
    shares,
    width_of,
)
from edgeai.bounds.outcome import Outcome
from edgeai.bounds.page import page, with_tips
from edgeai.bounds.table import interval_text, unit_of
from edgeai.errors import OutputError, UsageError
from edgeai.evaluation.intervals import Interval

__all__ = ["SUFFIXES", "check_plot", "draw"]

SUFFIXES = (".png", ".svg", ".html")
DPI = 170
"""Of a PNG: 1666 pixels wide, sharp in a README of any screen."""
WIDTH = 9.8
CURVE_HEIGHT = 3.9
LEFT, RIGHT = 0.75, 0.25
TOP, HEAD, LEGEND = 0.16, 0.62, 0.3
BELOW_CURVE, MAP_HEAD, BELOW_MAP, BOTTOM = 0.62, 0.34, 0.5, 0.14
"""Margins and heights, in inches."""
STYLE = {
    "font.family": ["DejaVu Sans"],
    "svg.fonttype": "path",
    "svg.hashsalt": "edgeai",
    "hatch.linewidth": 0.7,
    "path.simplify": False,
}


def check_plot(path: Path, *, force: bool = False) -> None:
    """Raise UsageError or OutputError unless a picture can be drawn to PATH: its ending, its folder, and matplotlib.

    A file that is there already is replaced only with FORCE.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"the picture {str(path)!r} has no ending that is known",
            hint=f"a name that ends with one of {', '.join(SUFFIXES)}, such as kl.png",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a picture needs matplotlib, not installed here", hint="pip install 'edgeai[convert]'")
    check_name(path)
    if not path.parent.is_dir():
        raise OutputError(f"the folder {str(path.parent)!r} does not exist", hint=f"mkdir -p {path.parent}")
    try:
        with OutputFile(path) as out:
            out.temporary()
    except OutputError as error:
        raise OutputError(
            f"the picture {str(path)!r} cannot be written into its folder", hint="name another place: --plot FILE"
        ) from error
    if path.exists() and not path.is_file():
        raise OutputError(f"the picture {str(path)!r} is no regular file", hint="name a file")
    if path.exists() and not force:
        raise OutputError(f"the picture {str(path)!r} is there already", hint="--force replaces it, or name another")


def draw(outcome: Outcome, path: Path) -> None:
    """Draw OUTCOME to PATH, a .png, .svg or .html; the file appears whole or not at all. The same outcome gives the same bytes.

    Raises what `check_plot` raises of a name, a folder or a missing library, and OutputError for a full disk.
    """
    check_plot(path, force=True)
    data = {".png": as_png, ".svg": as_svg, ".html": as_html}[path.suffix.lower()](outcome)
    with OutputFile(path) as out:
        part = out.temporary()
        try:
            part.write_bytes(data)
        except OSError as error:
            raise OutputError(
                f"the picture {str(path)!r} cannot be written: {error.strerror or error}", hint="name another place"
            ) from error
        out.commit(part)


def as_png(outcome: Outcome) -> bytes:
    """Return the picture as PNG, on white."""
    with styled():
        return saved(figure_of(outcome, {}), "png", dpi=DPI, metadata={"Software": None})


def as_svg(outcome: Outcome) -> bytes:
    """Return the picture as SVG on white, with texts as outlines, so that it looks alike everywhere."""
    tips: Tips = {}
    with styled():
        data = saved(figure_of(outcome, tips), "svg", metadata=NOBODY)
    return with_tips(data.decode(), tips).encode()


def as_html(outcome: Outcome) -> bytes:
    """Return a page that needs nothing else: the picture, the table of files, and that of all tensors."""
    tips: Tips = {}
    with styled(**{"svg.fonttype": "none"}):
        data = saved(figure_of(outcome, tips), "svg", metadata=NOBODY, transparent=True)
    return page(outcome, headline(outcome), summary(outcome), with_tips(data.decode(), tips)).encode()


NOBODY = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""Metadata of an SVG file: none, which would hold the time."""


def saved(figure: Any, kind: str, **options: Any) -> bytes:
    """Return FIGURE as a file of the format KIND."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, **options)
    return data.getvalue()


@contextmanager
def styled(**further: Any) -> Iterator[None]:
    """Draw in our style, whatever the user's own for matplotlib is, and put that back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, **further})
        yield


def figure_of(outcome: Outcome, tips: Tips) -> Any:
    """Return the matplotlib figure; TIPS gets what each point and cell says under the pointer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 5), dpi=100, facecolor=LIGHT["page"])
    FigureCanvasAgg(figure)
    found = layer_map(outcome.kinds)
    tiles = rows_of(found)
    widest = max((measure(figure, tile.name, fontsize=NAME_SIZE)[0] for tile in tiles), default=0.0)
    left = max(LEFT, widest + 0.2)
    room = WIDTH - left - RIGHT
    keys = key_lines(figure, found.types, room)
    below = MAP_HEAD + height_of(tiles) + BELOW_MAP + LEGEND_LINE * len(keys) if tiles else 0.0
    height = TOP + HEAD + LEGEND + CURVE_HEIGHT + BELOW_CURVE + below + BOTTOM
    figure.set_size_inches(WIDTH, height)

    def axes(x: float, top: float, width: float, tall: float) -> Any:
        return figure.add_axes((x / WIDTH, (height - top - tall) / height, width / WIDTH, tall / height))

    heading(figure, outcome, height)
    top = TOP + HEAD + LEGEND
    draw_curve(figure, axes(left, top, room, CURVE_HEIGHT), outcome, tips)
    if not tiles:
        return figure
    top += CURVE_HEIGHT + BELOW_CURVE + MAP_HEAD
    write(figure, 0.2, top - 0.16, height, "Types of the chosen file", fontsize=10.5, fontweight="bold")
    draw_tiles(
        figure, axes(left, top, width_of(found.layers, room), height_of(tiles)), tiles, found.layers, shares(outcome.costs), tips
    )  # fmt: skip
    top += height_of(tiles) + BELOW_MAP
    legend = axes(left, top, room, LEGEND_LINE * len(keys))
    legend.set_xlim(0, room)
    legend.set_ylim(0, LEGEND_LINE * len(keys))
    draw_keys(legend, keys)
    return figure


def heading(figure: Any, outcome: Outcome, height: float) -> None:
    """Write the model and the bound, and below what came out; a name that is too long for the line is cut."""
    style = {"fontsize": 13, "fontweight": "bold"}
    name = printable(outcome.model)
    rest = measure(figure, headline(replace(outcome, model="")), **style)[0]
    name = fit(figure, name, WIDTH - 0.45 - rest, **style)
    write(figure, 0.2, TOP + 0.2, height, headline(replace(outcome, model=name)), **style)
    write(figure, 0.2, TOP + 0.46, height, printable(summary(outcome)), fontsize=9.5, color=LIGHT["muted"])


def write(figure: Any, x: float, y: float, height: float, text: str, **style: Any) -> None:
    """Write TEXT with its base line Y inches below the top of FIGURE."""
    look = {"color": LIGHT["ink"], **style}
    figure.text(x / WIDTH, (height - y) / height, text, ha="left", va="baseline", parse_math=False, **look)


def headline(outcome: Outcome) -> str:
    """Return the title: the model, and what was wanted of its file."""
    wanted = []
    if outcome.bound is not None:
        wanted.append(f"{outcome.measure.partition(',')[0]} ≤ {outcome.bound:g}")
    if outcome.min_top1 is not None:
        wanted.append(f"top-1 ≥ {100 * outcome.min_top1:.4g}%")
    target = None if outcome.target_bytes is None else unit_of(outcome.chosen.nbytes).text(outcome.target_bytes)
    if wanted and target:
        return f"{outcome.model} in at most {target} with {' and '.join(wanted)}"
    if wanted:
        return f"{outcome.model}: the smallest file with {' and '.join(wanted)}"
    return f"{outcome.model}: the best file of at most {target}" if target else outcome.model


def summary(outcome: Outcome) -> str:
    """Return one line about the chosen file."""
    point = outcome.chosen
    words = [unit_of(point.nbytes).text(point.nbytes), f"{point.bpw:.2f} bits per weight"]
    name, _, unit = outcome.measure.partition(", ")
    if point.quality is not None:
        words.append(interval_words(name, unit, point.quality))
    elif point.predicted is not None:
        words.append(f"{name} {point.predicted:.3g} {unit}".rstrip() + ", predicted and not measured")
    if point.top1 is not None:
        words.append(f"top-1 {point.top1.value:.1%}")
    return " · ".join(words)


def interval_words(name: str, unit: str, value: Interval) -> str:
    """Return a measured value of NAME in UNIT with its interval: mean KL 0.0182 nats (95 %: 0.0167 to 0.0197)."""
    number, _, ends = interval_text(value).partition(" (")
    known = math.isfinite(value.low) and math.isfinite(value.high)
    return f"{name} {number} {unit}".rstrip() + f" ({'95 %: ' if known else ''}{ends}"
