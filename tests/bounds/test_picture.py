"""The picture of a search: whole or not there, the same every time, true to its numbers, and nothing covers anything."""

from __future__ import annotations

import errno
import functools
import importlib.util
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from converters.quantmap import TENSOR_TYPES
from edgeai.bounds import curve, picture
from edgeai.bounds.ink import BLACK, DARK, LIGHT, WHITE, looks_of
from edgeai.bounds.labels import Box
from edgeai.bounds.layers import bits, layer_map
from edgeai.bounds.outcome import Outcome, Point
from edgeai.bounds.page import with_tips
from edgeai.bounds.picture import SUFFIXES, check_plot, draw, figure_of, headline, styled, summary
from edgeai.bounds.table import cells
from edgeai.errors import OutputError, UsageError
from edgeai.evaluation.intervals import Interval
from tests.bounds.outcomes import PARTS, interval, kinds, outcome

SVG = "{http://www.w3.org/2000/svg}"


def embedder() -> Outcome:
    """A search for a cosine."""
    parts = tuple(part for part in PARTS if part != "ffn_gate")
    return outcome(6, 22e6, measure="1 - cosine", bound=0.005, kinds=kinds(6, parts=parts), model="all-MiniLM-L6-v2")


def crowded() -> Outcome:
    """Presets that lie close to each other."""
    found = outcome()
    more = [
        ("q3_k_s", 3.7, 0.13),
        ("q4_k_s", 4.68, 0.041),
        ("q5_0", 5.52, 0.019),
        ("q5_k_s", 5.55, 0.0175),
        ("iq4_nl", 4.56, 0.058),
    ]
    points = [
        Point(name=name, nbytes=int(134.5e6 * bpw / 8 + 1.8e6), bpw=bpw, quality=interval(kl)) for name, bpw, kl in more
    ]
    return replace(found, presets=(*found.presets, *points))


def unmeasured() -> Outcome:
    """Nothing but predictions."""
    found = outcome()
    presets = tuple(replace(point, quality=None, top1=None, predicted=0.7 * point.bpw**-3) for point in found.presets)
    return replace(found, presets=presets, rounds=(), chosen=replace(found.chosen, quality=None, top1=None))


def odd() -> Outcome:
    """Values that a logarithmic scale has no place for, and ends that are none."""
    found = outcome()
    values = (0.0, -0.001, math.nan, 0.01, 0.02)
    ends = ((0.0, 0.0), (-0.01, 0.01), (math.nan, math.nan), (-math.inf, math.inf), (-0.001, 0.041))
    presets = tuple(
        replace(point, quality=Interval(value=value, low=low, high=high))
        for point, value, (low, high) in zip(found.presets, values, ends, strict=False)
    )
    return replace(found, presets=presets)


CASES: dict[str, Callable[[], Outcome]] = {
    "thirty layers": outcome,
    "two layers": lambda: outcome(2, 3.2e6),
    "sixty layers": lambda: outcome(60, 7e9, kinds=kinds(60, tied=False)),
    "gemma": lambda: outcome(18, 268e6, bound=None, target_bytes=175_000_000, rounds=()),
    "embedder": embedder,
    "crowded": crowded,
    "no presets": lambda: outcome(presets=()),
    "alone": lambda: outcome(presets=(), rounds=(), frontier=()),
    "unmeasured": unmeasured,
    "odd": odd,
    "both bounds": lambda: outcome(target_bytes=95_000_000, min_top1=0.94),
    "top-1": lambda: outcome(bound=None, min_top1=0.94),
    "no layers": lambda: outcome(kinds={"token_embd.weight": "q8_0"}),
    "nothing": lambda: outcome(
        presets=(), rounds=(), frontier=(), kinds={}, costs={}, bound=None, chosen=Point(name="chosen", nbytes=1, bpw=1.0)
    ),
}  # fmt: skip


@functools.cache
def of_case(name: str) -> tuple[Outcome, Any]:
    """The outcome NAME of `CASES` and its figure, drawn once."""
    found = CASES[name]()
    return found, drawn(found)


def drawn(found: Outcome) -> Any:
    """The figure of FOUND; its first axes are those of files."""
    with styled():
        figure = figure_of(found, {})
        figure.draw_without_rendering()
    return figure


every_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", ["two layers", "alone", "unmeasured", "odd", "no layers", "nothing"])
def test_an_outcome_that_lacks_something_has_a_page(name: str, tmp_path: Path) -> None:
    draw(CASES[name](), tmp_path / "kl.html")
    assert [path.name for path in tmp_path.iterdir()] == ["kl.html"]


@pytest.mark.parametrize("name", ["sixty layers", "nothing"])
def test_a_png_can_be_opened_and_holds_no_time_and_no_version(name: str, tmp_path: Path) -> None:
    from PIL import Image

    draw(CASES[name](), tmp_path / "kl.png")
    with Image.open(tmp_path / "kl.png") as image:
        image.load()
        assert image.width == 1666
        assert 700 < image.height < 3000
        assert set(image.info) <= {"dpi"}


def extents(axes: Any, renderer: Any) -> list[tuple[str, Any]]:
    """Each text of AXES with where matplotlib puts it."""
    found = list(axes.texts)
    if axes.axison:
        found += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    if axes.get_legend() is not None:
        found += axes.get_legend().get_texts()
    return [(item.get_text(), item.get_window_extent(renderer)) for item in found if item.get_text()]


@every_case
def test_no_text_covers_another(name: str) -> None:
    _, figure = of_case(name)
    with styled():
        for number, axes in enumerate(figure.axes):
            found = extents(axes, figure.canvas.get_renderer())
            for (text, box), (other_text, other) in itertools.combinations(found, 2):
                if number == 0 and text in "123" and other_text in "123":
                    continue  # numbers of rounds stand in their circles, which may overlap
                width = min(box.x1, other.x1) - max(box.x0, other.x0)
                height = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert min(width, height) <= 1, (text, other_text)


def test_that_texts_cover_each_other_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(labels: Any, obstacles: Any, area: Any, gap: float) -> list[Box]:
        return [Box(x=label.x + gap, y=label.y, width=label.width, height=label.height) for label in labels]

    monkeypatch.setattr(curve, "place", careless)
    monkeypatch.setitem(CASES, "careless", crowded)
    with pytest.raises(AssertionError):
        test_no_text_covers_another("careless")


@every_case
def test_no_text_leaves_the_picture(name: str) -> None:
    _, figure = of_case(name)
    with styled():
        renderer = figure.canvas.get_renderer()
        found = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
        for text, box in (*found, *(item for axes in figure.axes for item in extents(axes, renderer))):
            assert box.x0 >= 0, text
            assert box.x1 <= figure.bbox.width, text
            assert box.y0 >= 0, text
            assert box.y1 <= figure.bbox.height, text


def test_points_stand_where_they_were_measured() -> None:
    found, figure = of_case("thirty layers")
    curve = figure.axes[0]
    single = {(line.get_xdata()[0], line.get_ydata()[0]) for line in curve.lines if len(line.get_xdata()) == 1}
    points = (*found.presets, *found.rounds, found.chosen)
    assert single == {(point.nbytes, point.quality.value) for point in points if point.quality is not None}
    assert curve.get_yscale() == "log"


def test_bars_are_the_intervals() -> None:
    found, figure = of_case("thirty layers")
    curve = figure.axes[0]
    bars = {(*line.get_xdata(), *line.get_ydata()) for line in curve.lines if line.get_marker() == "_"}
    points = (*found.presets, *found.rounds, found.chosen)
    assert bars == {(p.nbytes, p.nbytes, p.quality.low, p.quality.high) for p in points if p.quality is not None}


def test_the_frontier_is_a_line_through_its_corners() -> None:
    found, figure = of_case("thirty layers")
    curve = figure.axes[0]
    line = max(curve.lines, key=lambda line: len(line.get_xdata()))
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [
        (p.nbytes, p.predicted) for p in found.frontier
    ]
    assert "predicted" in " ".join(text.get_text() for text in curve.get_legend().get_texts())


def test_bound_and_target_are_lines_across() -> None:
    curve = of_case("both bounds")[1].axes[0]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in curve.lines]
    assert ([0, 1], [0.02, 0.02]) in lines
    assert ([95_000_000, 95_000_000], [0, 1]) in lines
    texts = {text.get_text() for text in curve.texts}
    assert {"bound 0.02", "target 95.0 MB"} <= texts


@every_case
def test_every_point_that_has_a_place_is_inside(name: str) -> None:
    case, figure = of_case(name)
    curve = figure.axes[0]
    (left, right), (low, high) = curve.get_xlim(), curve.get_ylim()
    for point in (*case.presets, *case.rounds, case.chosen):
        value = point.quality.value if point.quality is not None else point.predicted
        if value is not None and value > 0:
            assert left < point.nbytes < right
            assert low < value < high


def test_what_has_no_place_on_the_scale_is_named() -> None:
    curve = of_case("odd")[1].axes[0]
    note = next(text.get_text() for text in curve.texts if "logarithmic" in text.get_text())
    assert note == "not on a logarithmic scale: q3_k_m (0), iq4_xs (-0.001), q4_0 (nan)"


def test_a_picture_of_nothing_says_so() -> None:
    curve = of_case("nothing")[1].axes[0]
    assert "nothing was measured or predicted" in {text.get_text() for text in curve.texts}


def test_what_is_only_predicted_is_hollow() -> None:
    for name, hollow in (("thirty layers", False), ("unmeasured", True)):
        curve = of_case(name)[1].axes[0]
        stars = [line for line in curve.lines if line.get_marker() == "*"]
        assert [line.get_markerfacecolor() == LIGHT["page"] for line in stars] == [hollow]
    assert summary(unmeasured()).endswith("predicted and not measured")


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "SmolLM2-135M: the smallest file with mean KL ≤ 0.02"),
        ({"bound": None, "target_bytes": 90_000_000}, "SmolLM2-135M: the best file of at most 90.0 MB"),
        ({"bound": None, "min_top1": 0.955}, "SmolLM2-135M: the smallest file with top-1 ≥ 95.5%"),
        ({"target_bytes": 90_000_000}, "SmolLM2-135M in at most 90.0 MB with mean KL ≤ 0.02"),
        ({"bound": 0.005, "measure": "1 - cosine"}, "SmolLM2-135M: the smallest file with 1 - cosine ≤ 0.005"),
        ({"bound": None}, "SmolLM2-135M"),
    ],
)
def test_the_title_says_the_model_and_the_bound(changes: dict[str, Any], title: str) -> None:
    assert headline(outcome(**changes)) == title


def test_the_title_is_in_the_picture() -> None:
    for name in ("both bounds", "gemma", "top-1"):
        found, figure = of_case(name)
        assert headline(found) in {text.get_text() for text in figure.texts}


def test_a_long_name_is_cut_and_the_bound_stays() -> None:
    figure = drawn(outcome(2, model="name " * 40))
    assert figure.texts[0].get_text().endswith("…: the smallest file with mean KL ≤ 0.02")
    with styled():
        assert figure.texts[0].get_window_extent(figure.canvas.get_renderer()).x1 <= figure.bbox.width


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_outcome_gives_the_same_bytes(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    path = tmp_path / f"kl{suffix}"
    draw(outcome(6), path)
    first = path.read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with matplotlib.rc_context(
        {"font.size": 30, "savefig.bbox": "tight", "legend.numpoints": 3, "svg.hashsalt": "other"}
    ):
        before = dict(matplotlib.rcParams)
        draw(outcome(6), path)
        assert dict(matplotlib.rcParams) == before
    assert path.read_bytes() == first


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


def test_colours_of_types_are_none_of_the_page() -> None:
    used = {look.color for look in looks_of(TENSOR_TYPES).values()} | {BLACK, WHITE}
    used |= {look.line for look in looks_of(TENSOR_TYPES).values()}
    assert not used & set(LIGHT.values())


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2.2."""
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_can_be_read_on_both_pages(colors: dict[str, str]) -> None:
    assert set(LIGHT) == set(DARK)
    for ground in ("page", "zone"):
        assert contrast(colors["ink"], colors[ground]) >= 7
        assert contrast(colors["muted"], colors[ground]) >= 4.5
        assert contrast(colors["chosen"], colors[ground]) >= 4.5
        assert contrast(colors["bound"], colors[ground]) >= 4.5
        assert contrast(colors["preset"], colors[ground]) >= 3


def test_types_can_be_read_and_are_lighter_the_more_bits_they_take() -> None:
    found = looks_of(sorted(TENSOR_TYPES, key=bits))
    assert all(contrast(look.color, look.ink) >= 4.5 for look in found.values())
    distinct = {bits(kind): luminance(look.color) for kind, look in found.items()}
    values = [distinct[count] for count in sorted(distinct) if 1.5 <= count <= 16]
    assert all(low < high for low, high in itertools.pairwise(values))


def test_types_with_the_same_bits_have_different_patterns() -> None:
    found = looks_of(["q4_0", "q4_k", "iq4_nl", "q6_k"])
    assert len({(look.color, look.texture) for look in found.values()}) == 4
    assert [look.texture for look in found.values()][::3] == ["", ""]


def test_a_cell_has_the_colour_of_its_type() -> None:
    from matplotlib.colors import to_hex

    found = outcome(12)
    figure = drawn(found)
    looks = looks_of(layer_map(found.kinds).types)
    parts = layer_map(found.kinds).parts
    cells_drawn = {
        (patch.get_x(), patch.get_y()): to_hex(patch.get_facecolor())
        for patch in figure.axes[1].patches
        if patch.get_fill()
    }
    for row, part in enumerate(parts, 1):  # the embedding comes first
        for layer, kind in part.kinds.items():
            assert cells_drawn[layer, row] == looks[kind].color


def test_narrow_cells_have_one_name_for_a_run() -> None:
    found, figure = of_case("sixty layers")
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert len(texts) == 7 * 20 + 2  # types change with every third layer
    assert set(texts) == set(layer_map(found.kinds).types)


@pytest.mark.parametrize("name", ["kl", "kl.pdf", "kl.png.txt", "kl.jpeg", ".png"])
def test_an_ending_that_is_not_known_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(name)) as caught:
        check_plot(tmp_path / name)
    assert ".html" in (caught.value.hint or "")


def test_endings_are_read_in_any_case(tmp_path: Path) -> None:
    check_plot(tmp_path / "KL.PNG")
    draw(outcome(2), tmp_path / "KL.PNG")
    assert (tmp_path / "KL.PNG").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        check_plot(tmp_path / "kl.png")
    assert caught.value.hint == "pip install 'edgeai[convert]'"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").write_text("mine")
    for name, why in (
        ("none/kl.png", "does not exist"),
        ("folder.png", "no regular file"),
        ("there.png", "is there already"),
    ):
        with pytest.raises(OutputError, match=why):
            check_plot(tmp_path / name)
    with pytest.raises(OutputError):
        check_plot(tmp_path / f"{'x' * 300}.png")
    check_plot(tmp_path / "there.png", force=True)
    assert (tmp_path / "there.png").read_text() == "mine"


def test_a_picture_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kl.png"
    path.write_text("before")

    def fail(*_args: object, **_options: object) -> bytes:
        raise RuntimeError("broken")

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture, "saved", fail)
    with pytest.raises(RuntimeError):
        draw(outcome(2), path)
    monkeypatch.undo()
    monkeypatch.setattr(picture.OutputFile, "commit", fail)
    with pytest.raises(RuntimeError):
        draw(outcome(2), path)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        draw(outcome(2), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_command_line_imports_brings_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, edgeai.bounds.picture, edgeai.bounds.recipe, edgeai.bounds.table, edgeai.bounds.goals\n"
        "print([name for name in ('matplotlib', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
