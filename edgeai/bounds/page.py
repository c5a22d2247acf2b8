"""The picture as a page: one file without anything from elsewhere, in light and in dark as the reader's system is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

from edgeai.bounds.ink import DARK, LIGHT, Tips
from edgeai.bounds.layers import bits
from edgeai.bounds.mosaic import shares
from edgeai.bounds.outcome import Outcome
from edgeai.bounds.table import cells, rows

__all__ = ["page", "with_tips"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
CSS = """
html { color-scheme: light dark; background: var(--page); color: var(--ink); font: 15px/1.5 FONT; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 44rem; height: auto; }
svg text { font-family: FONT !important; pointer-events: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child, .names td, .names th { text-align: left; padding-left: .2rem; }
th { color: var(--muted); font-weight: 500; }
tr.chosen { color: var(--chosen); font-weight: 600; }
summary { cursor: pointer; color: var(--muted); margin-top: 2rem; }
p { color: var(--muted); font-size: .85rem; }
""".replace("FONT", FONT)


def with_tips(svg: str, tips: Tips) -> str:
    """Return SVG with a title, which a browser shows under the pointer, in each group whose id is in TIPS."""
    for name, text in tips.items():
        opening = f'<g id="{name}">'
        if svg.count(opening) != 1:
            raise ValueError(f"{name!r} is in the picture {svg.count(opening)} times")
        svg = svg.replace(opening, f"{opening}<title>{escape(clean(text))}</title>")
    return svg


def clean(text: str) -> str:
    """Return TEXT without the characters that XML does not allow."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def page(outcome: Outcome, title: str, summary: str, svg: str) -> str:
    """Return the page of OUTCOME with its TITLE and SUMMARY; SVG is a whole file in the colours of `LIGHT`."""
    heading = escape(clean(title))
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
:root {{ {variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
{CSS}</style>
<body>
<h1>{heading}: {escape(clean(summary))}</h1>
<div class="wide">{inline(svg)}</div>
<h2>Files</h2>
<div class="wide">{files(outcome)}</div>
<p>{escape(note(outcome))}</p>
<details><summary>Type of every tensor</summary><div class="wide">{tensors(outcome)}</div></details>
</body>
</html>
"""


def variables(colors: Mapping[str, str]) -> str:
    """Return COLORS as variables of CSS."""
    return " ".join(f"--{role}: {color};" for role, color in colors.items())


def inline(svg: str) -> str:
    """Return the file SVG as an element of a page whose colours are variables, so that dark mode reaches it."""
    body = svg[svg.index("<svg") :].rstrip()
    for role, color in LIGHT.items():
        body = body.replace(color, f"var(--{role})")
    return body


def files(outcome: Outcome) -> str:
    """Return the table of files."""
    heads, *lines = cells(outcome, rounds=True)
    found = [f"<tr>{''.join(f'<th>{escape(clean(head))}</th>' for head in heads)}</tr>"]
    for row, line in zip(rows(outcome, rounds=True), lines, strict=True):
        mark = ' class="chosen"' if row.chosen else ""
        found.append(f"<tr{mark}>{''.join(f'<td>{escape(clean(cell))}</td>' for cell in line)}</tr>")
    return "<table>\n" + "\n".join(found) + "\n</table>"


def note(outcome: Outcome) -> str:
    """Return what the table means."""
    measured = "Measured against the source on text that was not used to choose; in brackets the 95 % interval."
    limits = [f"{outcome.measure} at most {outcome.bound:g}"] if outcome.bound is not None else []
    limits += [f"top-1 at least {100 * outcome.min_top1:.4g}%"] if outcome.min_top1 is not None else []
    limits += [f"{outcome.target_bytes} bytes"] if outcome.target_bytes is not None else []
    return f"{measured} Wanted: {', '.join(limits)}." if limits else measured


def tensors(outcome: Outcome) -> str:
    """Return the table of all tensors in the order of the file."""
    part = shares(outcome.costs)
    found = ["<tr><th>tensor</th><th>type</th><th>bits per weight</th><th>share of the expected cost</th></tr>"]
    for name, kind in outcome.kinds.items():
        cost = f"{part[name]:.2%}" if name in part else ""
        found.append(
            f"<tr><td>{escape(clean(name))}</td><td>{escape(kind.lower())}</td><td>{bits(kind):.4g}</td><td>{cost}</td></tr>"
        )
    return '<table class="names">\n' + "\n".join(found) + "\n</table>"
