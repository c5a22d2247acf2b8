"""The picture as a page: one file, true to the search, and nothing of a model's names is more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeai.bounds.ink import DARK, LIGHT
from edgeai.bounds.layers import bits
from edgeai.bounds.outcome import Outcome
from edgeai.bounds.page import with_tips
from edgeai.bounds.picture import draw
from edgeai.bounds.table import cells
from tests.bounds.outcomes import CASES, outcome

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["two layers", "alone", "unmeasured", "odd", "no layers", "nothing"])
def test_an_outcome_that_lacks_something_has_a_page(name: str, tmp_path: Path) -> None:
    draw(CASES[name](), tmp_path / "kl.html")
    assert [path.name for path in tmp_path.iterdir()] == ["kl.html"]


def tooltips(text: str) -> list[str]:
    """The titles inside the picture of TEXT, read as XML."""
    root = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])  # noqa: S314 - made here
    return [node.text or "" for group in root.iter(f"{SVG}g") for node in group.findall(f"{SVG}title")]


@pytest.mark.parametrize(
    ("suffix", "name"),
    [(".svg", "thirty layers"), (".html", "sixty layers"), (".html", "embedder"), (".svg", "no layers")],
)
def test_every_tensor_and_point_says_what_it_is(suffix: str, name: str, tmp_path: Path) -> None:
    found = CASES[name]()
    draw(found, tmp_path / f"kl{suffix}")
    said = tooltips((tmp_path / f"kl{suffix}").read_text())
    matrices = {tensor: kind for tensor, kind in found.kinds.items() if "norm" not in tensor}
    total = sum(found.costs.values())
    expected = []
    for tensor, kind in matrices.items():
        tail = f" · {found.costs[tensor] / total:.1%} of the expected cost" if tensor in found.costs else ""
        expected.append(f"{tensor} · {kind} · {bits(kind):.4g} bits per weight{tail}")
    assert sorted(text for text in said if ".weight · " in text) == sorted(expected)
    points = [*found.presets, *found.rounds, found.chosen]
    assert sorted(text.partition(" · ")[0] for text in said if ".weight · " not in text) == sorted(
        p.name for p in points
    )


def test_a_tooltip_without_its_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="'point-0' is in the picture 0 times"):
        with_tips("<svg></svg>", {"point-0": "a"})


class Page(HTMLParser):
    """What a page refers to, its texts, and whether its elements are closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        self.references += [value or "" for name, value in attrs if name in names or name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page_of(found: Outcome, tmp_path: Path) -> tuple[str, Page]:
    draw(found, tmp_path / "kl.html")
    text = (tmp_path / "kl.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text, page = page_of(outcome(), tmp_path)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert all(place.startswith("#") for place in re.findall(r"url\(['\"]?([^)]*)", text))
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"'\s]*", text)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_the_page_has_the_table_of_files_and_of_tensors(tmp_path: Path) -> None:
    found = outcome()
    _, page = page_of(found, tmp_path)
    lines = cells(found, rounds=True)
    assert page.rows[: len(lines)] == lines
    assert [row[:2] for row in page.rows[len(lines) + 1 :]] == [[name, kind] for name, kind in found.kinds.items()]


def test_names_of_a_model_are_text_and_nothing_else(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> $x_1$ & \"q\" 'p' \x00\x1b[31m \ud800 模型"
    found = outcome(2, model=name, kinds={'blk.0.<b onload="x">.weight': "q4_k", "token_embd.weight": "q8_0"})
    for suffix in (".png", ".svg"):
        draw(found, tmp_path / f"kl{suffix}")
    ElementTree.fromstring((tmp_path / "kl.svg").read_bytes())  # noqa: S314 - made here
    text, page = page_of(found, tmp_path)
    assert not page.tags & {"script", "b"}
    assert not re.search("[\x00-\x08\x0b-\x1f]", text)
    assert "&lt;script&gt;" in text
    assert "模型" in text


def test_the_page_is_drawn_in_colours_that_dark_mode_changes(tmp_path: Path) -> None:
    text, _ = page_of(outcome(), tmp_path)
    drawing = text[text.index("<svg") : text.index("</svg>")]
    assert not [color for color in LIGHT.values() if color in drawing.lower()]
    assert {role for role in LIGHT if f"var(--{role})" in drawing} == set(LIGHT)
    dark = text[text.index("prefers-color-scheme: dark") :].partition("}")[0]
    assert all(f"--{role}: {color};" in dark for role, color in DARK.items())
