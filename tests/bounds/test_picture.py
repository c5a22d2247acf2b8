"""The picture of a search: whole or not there, the same every time, true to its numbers, and nothing covers anything."""

from __future__ import annotations

import errno
import functools
import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converters.quantmap import TENSOR_TYPES
from edgeai.bounds import curve, picture
from edgeai.bounds.ink import BLACK, DARK, LIGHT, WHITE, looks_of
from edgeai.bounds.labels import Box
from edgeai.bounds.layers import bits, layer_map
from edgeai.bounds.outcome import Outcome
from edgeai.bounds.picture import SUFFIXES, check_plot, draw, figure_of, headline, styled, summary
from edgeai.errors import OutputError, UsageError
from tests.bounds.outcomes import CASES, crowded, outcome


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
    assert summary(of_case("unmeasured")[0]).endswith("predicted and not measured")


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
