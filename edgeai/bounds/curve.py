"""The upper half of the picture: how far files are from the model against their size, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeai.bounds.ink import LIGHT, Tips
from edgeai.bounds.labels import Box, Label, along, nearest, place
from edgeai.bounds.outcome import Outcome, Point
from edgeai.bounds.table import interval_text, unit_of

__all__ = ["draw_curve"]

LABEL_SIZE = 8.5
"""Of the names of presets, in points."""
MARGIN = 0.12
"""What stays free left and right of the points, of the width between them."""
LONELY = 0.4
"""How far the axis reaches to both sides of a single point, of its size."""
FURTHER = 4.0
"""How many times lower or higher than all that was measured the axis goes for what is predicted."""
STEPS = ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
"""Which numbers of a decade are written at the axis; the finer ones where the others would be fewer than three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the axes show: sizes in bytes, and the measure."""

    left: float
    right: float
    low: float
    high: float


@dataclass(slots=True, kw_only=True)
class Panel:
    """The axes while they are drawn on: `window` is what they show, `obstacles` what no label may cover, in pixels."""

    figure: Any
    axes: Any
    outcome: Outcome
    window: Window
    tips: Tips
    obstacles: list[Box] = field(default_factory=list)
    labels: list[tuple[str, float, float]] = field(default_factory=list)

    def pixel(self, nbytes: float, value: float) -> tuple[float, float]:
        """Return where a point of the axes is."""
        x, y = self.axes.transData.transform((nbytes, value))
        return float(x), float(y)

    @property
    def scale(self) -> float:
        """Pixels for a point (1/72 inch)."""
        return float(self.figure.dpi) / 72


def draw_curve(figure: Any, axes: Any, outcome: Outcome, tips: Tips) -> None:
    """Draw measured and predicted files on AXES of FIGURE. TIPS gets what each point says."""
    window = window_of(outcome)
    panel = Panel(figure=figure, axes=axes, outcome=outcome, window=window, tips=tips)
    dress(panel)
    draw_limits(panel)
    draw_frontier(panel)
    for point in outcome.presets:
        draw_point(panel, point, color=LIGHT["preset"], marker="o", size=6.5, name=point.name)
    for number, point in enumerate(outcome.rounds):
        draw_round(panel, point, number)
    draw_point(panel, outcome.chosen, color=LIGHT["chosen"], marker="*", size=15, name="chosen", bold=True)
    draw_legend(panel)
    draw_note(panel)
    write_labels(panel)


def value_of(point: Point) -> float | None:
    """Return the height of POINT: what was measured, else what was predicted; None where a logarithmic scale has no place for it."""
    value = point.quality.value if point.quality is not None else point.predicted
    return value if value is not None and math.isfinite(value) and value > 0 else None


def window_of(outcome: Outcome) -> Window:
    """Return what the axes show: all that was measured and the limits, with room around, and of the frontier what falls between."""
    points = [*outcome.presets, *outcome.rounds, outcome.chosen]
    sizes = [float(point.nbytes) for point in points]
    sizes += [float(outcome.target_bytes)] if outcome.target_bytes is not None else []
    left, right = min(sizes), max(sizes)
    if right - left < LONELY * left:
        middle = (left + right) / 2
        left, right = middle * (1 - LONELY), middle * (1 + LONELY)
    room = (right - left) * MARGIN
    left, right = max(0.0, left - room), right + room
    values = [value for point in points if (value := value_of(point)) is not None]
    values += [end for point in points for end in ends_of(point) if end > 0]
    values += [outcome.bound] if outcome.bound else []
    inside = [value_of(point) for point in outcome.frontier if left <= point.nbytes <= right]
    predicted = [value for value in inside if value is not None]
    if values:
        predicted = [min(max(value, min(values) / FURTHER), max(values) * FURTHER) for value in predicted]
    values += predicted
    low, high = min(values, default=0.01), max(values, default=1.0)
    return Window(left=left, right=right, low=low / 1.35, high=high * 1.35)


def ends_of(point: Point) -> tuple[float, ...]:
    """Return the ends of the interval of POINT; none where they are not finite."""
    if point.quality is None or not (math.isfinite(point.quality.low) and math.isfinite(point.quality.high)):
        return ()
    return point.quality.low, point.quality.high


def dress(panel: Panel) -> None:
    """Set scales, ticks and names of the axes."""
    axes, window, outcome = panel.axes, panel.window, panel.outcome
    unit = unit_of(outcome.chosen.nbytes)
    axes.set_yscale("log")
    axes.set_xlim(window.left, window.right)
    axes.set_ylim(window.low, window.high)
    marks = size_ticks(window.left / unit.nbytes, window.right / unit.nbytes)
    axes.set_xticks([mark * unit.nbytes for mark in marks], [f"{mark:g}" for mark in marks])
    ticks = ticks_of(window.low, window.high)
    axes.set_yticks(ticks, [plain(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel(f"size of the file, {unit.name}", color=LIGHT["muted"], fontsize=9)
    axes.set_ylabel(outcome.measure, color=LIGHT["muted"], fontsize=9, parse_math=False)
    axes.tick_params(colors=LIGHT["muted"], labelsize=8.5, length=0, pad=5)
    axes.grid(color=LIGHT["faint"], linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["muted"])
    axes.patch.set_visible(False)


def size_ticks(left: float, right: float) -> list[float]:
    """Return round numbers between LEFT and RIGHT, five to ten of them."""
    step = 10 ** math.floor(math.log10(right - left))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if (right - left) / (step * part) <= 10)
    return [round(number * step, 6) for number in range(math.ceil(left / step), math.floor(right / step) + 1)]


def ticks_of(low: float, high: float) -> list[float]:
    """Return the numbers that are written at a logarithmic axis from LOW to HIGH."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > 6:
        return [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    found: list[float] = []
    for steps in STEPS:
        found = [
            round(step * 10.0**decade, 12) for decade in decades for step in steps if low <= step * 10.0**decade <= high
        ]
        if len(found) >= 3:
            break
    return found


def plain(value: float) -> str:
    """Return VALUE without an exponent where it has few zeros: 0.0005."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if 1e-6 <= value < 1e5 else f"{value:.0e}"


def draw_limits(panel: Panel) -> None:
    """Draw the bound, the target size, and lightly what lies within both."""
    outcome, window, axes = panel.outcome, panel.window, panel.axes
    bound, target = outcome.bound, outcome.target_bytes
    if bound is None and target is None:
        return
    right = window.right if target is None else target
    high = window.high if bound is None else bound
    axes.fill_between([window.left, right], window.low, high, color=LIGHT["zone"], linewidth=0, zorder=0.4)
    line = {"color": LIGHT["bound"], "linewidth": 1.3, "linestyle": (0, (5, 2)), "zorder": 1.5}
    style = {"color": LIGHT["bound"], "fontsize": LABEL_SIZE, "parse_math": False, "zorder": 6}
    if bound is not None:
        axes.axhline(bound, **line)
        panel.obstacles += along([panel.pixel(window.left, bound), panel.pixel(window.right, bound)], 3 * panel.scale)
        text = axes.annotate(
            f"bound {bound:g}", (window.right, bound), (-2, 3), textcoords="offset points", ha="right", va="bottom", **style,
        )  # fmt: skip
        keep_free(panel, text)
    if target is not None:
        axes.axvline(target, **line)
        panel.obstacles += along([panel.pixel(target, window.low), panel.pixel(target, window.high)], 3 * panel.scale)
        near = target > (window.left + window.right) / 2
        text = axes.annotate(
            f"target {unit_of(outcome.chosen.nbytes).text(target)}", (target, window.high), (-4 if near else 4, -2),
            textcoords="offset points", ha="right" if near else "left", va="top", **style,
        )  # fmt: skip
        keep_free(panel, text)


def keep_free(panel: Panel, text: Any) -> None:
    """Keep labels away from TEXT."""
    box = text.get_window_extent(panel.figure.canvas.get_renderer())
    panel.obstacles.append(Box(x=box.x0, y=box.y0, width=box.width, height=box.height))


def draw_frontier(panel: Panel) -> None:
    """Draw the predicted frontier, of the corners that have a place on the scale."""
    corners = [(point.nbytes, value) for point in panel.outcome.frontier if (value := value_of(point)) is not None]
    if not corners:
        return
    panel.axes.plot(*zip(*corners, strict=True), color=LIGHT["chosen"], linewidth=1.4, alpha=0.75, zorder=2)
    window = panel.window
    shown = [(x, y) for x, y in corners if window.left <= x <= window.right and window.low <= y <= window.high]
    panel.obstacles += along([panel.pixel(*corner) for corner in shown], 3 * panel.scale)


def draw_point(
    panel: Panel, point: Point, *, color: str, marker: str, size: float, name: str, bold: bool = False
) -> None:
    """Draw POINT with its interval, hollow where it is only predicted."""
    value = value_of(point)
    if value is None:
        return
    measured = point.quality is not None
    draw_interval(panel, point, color)
    panel.axes.plot(
        [point.nbytes], [value], marker=marker, markersize=size, color=color, zorder=5 if bold else 4, linestyle="",
        markerfacecolor=color if measured else LIGHT["page"], markeredgecolor=LIGHT["page"] if measured else color,
        markeredgewidth=1.0, clip_on=False, gid=tip(panel, point),
    )  # fmt: skip
    x, y = panel.pixel(point.nbytes, value)
    reach = size * panel.scale * (0.8 if bold else 1.1)
    panel.obstacles.append(Box(x=x - reach / 2, y=y - reach / 2, width=reach, height=reach))
    panel.labels.append((name, point.nbytes, value))


def draw_interval(panel: Panel, point: Point, color: str) -> None:
    """Draw the 95 % interval of POINT as a bar with ends; a lower end that the scale does not have runs out of the axes."""
    if not (ends := ends_of(point)):
        return
    low, high = max(ends[0], panel.window.low / 10), ends[1]
    panel.axes.plot(
        [point.nbytes] * 2, [low, high], color=color, linewidth=1.3, marker="_", markersize=6, markeredgewidth=1.3, zorder=3,
    )  # fmt: skip
    pixels = [panel.pixel(point.nbytes, max(low, panel.window.low)), panel.pixel(point.nbytes, high)]
    panel.obstacles += along(pixels, 6 * panel.scale)


def draw_round(panel: Panel, point: Point, number: int) -> None:
    """Draw a file that was measured on the way, as a circle with its number in it."""
    value = value_of(point)
    if value is None:
        return
    color, word = LIGHT["chosen"], point.name.removeprefix("round ")
    draw_interval(panel, point, color)
    panel.axes.plot(
        [point.nbytes], [value], marker="o", markersize=9, markerfacecolor=LIGHT["page"], markeredgecolor=color,
        markeredgewidth=1.2, linestyle="", zorder=4 + number / 100, clip_on=False, gid=tip(panel, point),
    )  # fmt: skip
    panel.axes.annotate(
        word, (point.nbytes, value), (0, -0.4), textcoords="offset points", ha="center", va="center", fontsize=6,
        color=color, zorder=4.005 + number / 100, parse_math=False,
    )  # fmt: skip
    x, y = panel.pixel(point.nbytes, value)
    reach = 10 * panel.scale
    panel.obstacles.append(Box(x=x - reach / 2, y=y - reach / 2, width=reach, height=reach))


def tip(panel: Panel, point: Point) -> str:
    """Write down what POINT says under the pointer; return its id."""
    unit = unit_of(panel.outcome.chosen.nbytes)
    words = [point.name or "predicted", unit.text(point.nbytes), f"{point.bpw:.2f} bits per weight"]
    if point.quality is not None:
        words.append(f"{panel.outcome.measure}: {interval_text(point.quality)}")
    if point.top1 is not None:
        words.append(f"top-1 {point.top1.value:.1%}")
    if point.predicted is not None:
        words.append(f"predicted {point.predicted:.3g}")
    if point.types:
        words.append(", ".join(f"{count} {kind.lower()}" for kind, count in point.types.items()))
    found = f"point-{len(panel.tips)}"
    panel.tips[found] = " · ".join(words)
    return found


def draw_legend(panel: Panel) -> None:
    """Say above the axes what the marks mean, of those that are there."""
    from matplotlib.lines import Line2D

    outcome, page = panel.outcome, LIGHT["page"]
    blue, orange = LIGHT["chosen"], LIGHT["preset"]
    dot = {"marker": "o", "linestyle": ""}
    star = {"marker": "*", "markersize": 11, "linestyle": "", "markeredgecolor": blue}
    chosen = split([outcome.chosen])
    presets = split(outcome.presets)
    bars = [point for point in (*outcome.presets, *outcome.rounds, outcome.chosen) if ends_of(point)]
    looks: tuple[tuple[Sequence[Point], str, dict[str, Any]], ...] = (
        (presets[0], outcome.beside, {**dot, "markersize": 6, "color": orange}),
        (
            presets[1],
            "presets, predicted",
            {**dot, "markersize": 6, "markeredgecolor": orange, "markerfacecolor": page},
        ),
        (chosen[0], "chosen", {**star, "markerfacecolor": blue}),
        (chosen[1], "chosen, predicted", {**star, "markerfacecolor": page}),
        (
            outcome.rounds,
            "measured on the way",
            {**dot, "markersize": 8, "markeredgecolor": blue, "markerfacecolor": page},
        ),
        (outcome.frontier, "best choices of types, predicted", {"color": blue, "linewidth": 1.4, "alpha": 0.75}),
        (bars, "95 % interval", {"marker": "|", "markersize": 9, "color": LIGHT["muted"], "linestyle": ""}),
    )
    entries = [
        (Line2D([], [], **look), label)
        for points, label, look in looks
        if any(value_of(point) is not None for point in points)
    ]
    if entries:
        panel.axes.legend(
            *zip(*entries, strict=True), loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(entries), frameon=False,
            fontsize=8, labelcolor=LIGHT["muted"], handletextpad=0.4, columnspacing=1.4, handlelength=1.6, borderaxespad=0.2,
        )  # fmt: skip


def split(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Return those of POINTS that were measured, and those that were not."""
    measured = [point for point in points if point.quality is not None]
    return measured, [point for point in points if point.quality is None]


def draw_note(panel: Panel) -> None:
    """Name the files that have no place on a logarithmic scale, and say so where there is nothing at all."""
    points = [*panel.outcome.presets, *panel.outcome.rounds, panel.outcome.chosen]
    off = [point for point in points if point.quality is not None and value_of(point) is None]
    if off:
        words = ", ".join(f"{point.name} ({point.quality.value:.3g})" for point in off if point.quality is not None)
        text = panel.axes.annotate(
            f"not on a logarithmic scale: {words}", (0, 0), (4, 4), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, color=LIGHT["muted"], parse_math=False,
        )  # fmt: skip
        keep_free(panel, text)
    if all(value_of(point) is None for point in (*points, *panel.outcome.frontier)):
        panel.axes.set_yticks([])
        panel.axes.annotate(
            "nothing was measured or predicted", (0.5, 0.5), xycoords="axes fraction", ha="center", color=LIGHT["muted"]
        )


def write_labels(panel: Panel) -> None:
    """Write the names of the points where there is room, the chosen one first; a thin line leads to one that had to go further away."""
    axes, renderer, scale = panel.axes, panel.figure.canvas.get_renderer(), panel.scale
    order = sorted(panel.labels, key=lambda item: not item[0].startswith("chosen"))
    texts = [
        axes.annotate(
            name, (x, y), (0, 0), textcoords="offset points", ha="left", va="bottom", fontsize=LABEL_SIZE, zorder=6,
            color=LIGHT["chosen"] if name.startswith("chosen") else LIGHT["ink"], parse_math=False,
            fontweight="bold" if name.startswith("chosen") else "normal", annotation_clip=False,
        )
        for name, x, y in order
    ]  # fmt: skip
    sizes = [text.get_window_extent(renderer) for text in texts]
    labels = [
        Label(x=x, y=y, width=box.width + 2 * scale, height=box.height + scale)
        for box, (x, y) in zip(sizes, (panel.pixel(x, y) for _, x, y in order), strict=True)
    ]
    bounds = axes.get_window_extent(renderer)
    area = Box(x=bounds.x0, y=bounds.y0 + 2 * scale, width=bounds.width, height=bounds.height - 2 * scale)
    gap = 9 * scale
    for text, label, spot in zip(texts, labels, place(labels, panel.obstacles, area, gap), strict=True):
        text.set_position(((spot.x + scale - label.x) / scale, (spot.y + scale / 2 - label.y) / scale))
        lead(panel, label, spot, gap)


def lead(panel: Panel, label: Label, spot: Box, gap: float) -> None:
    """Draw a thin line from a point to its label at SPOT, where that is far away."""
    x, y = nearest(spot, label.x, label.y)
    if math.hypot(x - label.x, y - label.y) < 1.6 * gap:
        return
    ends = panel.axes.transData.inverted().transform(((label.x, label.y), (x, y)))
    columns: Sequence[Any] = list(zip(*ends, strict=True))
    panel.axes.plot(*columns, color=LIGHT["muted"], linewidth=0.6, zorder=2.5, clip_on=False)
