"""Colours and texts of the picture: what each colour means, in light and in dark, and how a type's bits become one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeai.bounds.layers import bits

__all__ = ["DARK", "LIGHT", "Look", "Tips", "fit", "looks_of", "measure", "printable"]

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "ink": "#1f2329",
    "muted": "#5b6470",
    "faint": "#dde1e6",
    "zone": "#eaf4ee",
    "chosen": "#0072b3",
    "preset": "#d45f00",
    "bound": "#00795a",
}
"""Role → colour. The last three are of Okabe and Ito's palette (2008), which people with any colour vision tell apart, shifted by a step so
that each is found again in an SVG file; the text on the page has a contrast of 4.5 or more."""
DARK: Mapping[str, str] = {
    "page": "#15181d",
    "ink": "#e8eaed",
    "muted": "#a4adb8",
    "faint": "#333941",
    "zone": "#1a2721",
    "chosen": "#56b4e9",
    "preset": "#e69f00",
    "bound": "#2fc79a",
}
PALETTE = "viridis"
"""Evenly lighter with its argument, for all kinds of colour vision (van der Walt and Smith, 2015)."""
STOPS = ((1.5, 0.08), (2.6, 0.16), (3.44, 0.27), (4.5, 0.5), (5.5, 0.67), (6.56, 0.8), (8.5, 0.9), (16.0, 1.0))
"""Bits of a weight → place in the palette: most of it for 3 to 7 bits, where most types are. What is darker would be black on a dark
page."""
BLACK, WHITE = "#000000", "#fefefe"
"""Of texts on cells, alike on every page: none of them is a role of `LIGHT`."""
TEXTURES = ("", "//////", "\\\\\\\\\\\\", "||||||", "------")
"""Patterns over a colour, for types that take the same number of bits."""
LINE = 0.3
"""How far the lines of a pattern are from the colour to that of text on it."""
Tips = dict[str, str]
"""Id of something in the picture → what it says when the pointer is on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a type looks: its colour, that of text on it, and the pattern over it with the colour of its lines."""

    color: str
    ink: str
    texture: str
    line: str


def looks_of(kinds: Sequence[str]) -> dict[str, Look]:
    """Return type → look: the more bits the lighter; after the first of KINDS with a number of bits each further one has a pattern."""
    import matplotlib
    from matplotlib.colors import to_hex, to_rgb

    found: dict[str, Look] = {}
    seen: Counter[float] = Counter()
    for kind in kinds:
        red, green, blue, _ = matplotlib.colormaps[PALETTE](place_of(bits(kind)))
        ink = ink_on(red, green, blue)
        mixed = [part + LINE * (other - part) for part, other in zip((red, green, blue), to_rgb(ink), strict=True)]
        found[kind] = Look(
            color=to_hex((red, green, blue)), ink=ink, texture=TEXTURES[seen[bits(kind)] % len(TEXTURES)], line=to_hex(mixed)
        )  # fmt: skip
        seen[bits(kind)] += 1
    return found


def ink_on(red: float, green: float, blue: float) -> str:
    """Return black or white, which has more contrast on a colour: both have the same at a luminance of 0.179 (WCAG 2.2)."""
    luminance = sum(
        weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        for weight, value in ((0.2126, red), (0.7152, green), (0.0722, blue))
    )
    return BLACK if luminance > 0.179 else WHITE


def place_of(count: float) -> float:
    """Return where a type of COUNT bits stands in the palette, on straight lines between `STOPS`."""
    count = min(max(count, STOPS[0][0]), STOPS[-1][0])
    for (low, start), (high, end) in itertools.pairwise(STOPS):
        if count <= high:
            return start + (end - start) * (count - low) / (high - low)
    return STOPS[-1][1]


def printable(text: str) -> str:
    """Return TEXT with a question mark for each character that the font cannot show."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(character if ord(character) in known else "?" for character in text)


def fit(figure: Any, text: str, width: float, **style: Any) -> str:
    """Return TEXT, cut with … to at most WIDTH inches in the STYLE of a text of FIGURE."""
    cut = text
    while len(cut) > 1 and measure(figure, cut, **style)[0] > width:
        cut = cut.removesuffix("…")[:-1].rstrip() + "…"
    return cut


def measure(figure: Any, text: str, **style: Any) -> tuple[float, float]:
    """Return the width and height of TEXT in FIGURE, in inches."""
    shown = figure.text(0, 0, text, parse_math=False, **style)
    box = shown.get_window_extent(figure.canvas.get_renderer())
    shown.remove()
    return box.width / figure.dpi, box.height / figure.dpi
