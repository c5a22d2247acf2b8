"""Labels cover nothing as long as there is room, and stay near their points."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgeai.bounds.labels import Box, Label, along, nearest, place

AREA = Box(x=0, y=0, width=1000, height=400)
GAP = 10.0
points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12, unique=True)


def covers(one: Box, other: Box) -> bool:
    """Whether two boxes overlap, by their ends."""
    return (
        one.x < other.x + other.width and other.x < one.x + one.width and one.y < other.y + other.height and other.y < one.y + one.height
    )  # fmt: skip


@given(points)
def test_labels_of_points_that_are_apart_cover_nothing(cells: list[tuple[int, int]]) -> None:
    labels = [Label(x=80 + 160 * x, y=60 + 90 * y, width=70, height=12) for x, y in cells]
    marks = [Box(x=label.x - 4, y=label.y - 4, width=8, height=8) for label in labels]
    found = place(labels, marks, AREA, GAP)
    assert not any(covers(box, other) for index, box in enumerate(found) for other in (*marks, *found[:index]))


@given(st.integers(0, 1000), st.integers(0, 400))
def test_a_label_stays_inside(x: int, y: int) -> None:
    (found,) = place([Label(x=x, y=y, width=90, height=12)], [], AREA, GAP)
    assert found.x >= 0
    assert found.y >= 0
    assert found.x + found.width <= AREA.width
    assert found.y + found.height <= AREA.height


def test_a_label_alone_is_right_of_its_point() -> None:
    (found,) = place([Label(x=100, y=100, width=50, height=10)], [], AREA, GAP)
    assert (found.x, found.y) == (110, 95)


def test_neighbours_make_room_for_each_other() -> None:
    labels = [Label(x=100 + 6 * number, y=100, width=60, height=12) for number in range(4)]
    marks = [Box(x=label.x - 3, y=97, width=6, height=6) for label in labels]
    found = place(labels, marks, AREA, GAP)
    assert not any(covers(box, other) for index, box in enumerate(found) for other in (*marks, *found[:index]))


def test_without_room_the_least_bad_place_is_taken() -> None:
    full = [Box(x=0, y=0, width=1000, height=400)]
    assert len(place([Label(x=5, y=5, width=50, height=10)] * 3, full, AREA, GAP)) == 3


def test_the_line_to_a_label_crosses_nothing() -> None:
    block = Box(x=0, y=0, width=95, height=260)
    wall = Box(x=105, y=0, width=2, height=260)
    (found,) = place([Label(x=100, y=200, width=50, height=10)], [block, wall], AREA, GAP)
    assert (found.x, found.y) == (75, 270), "far above, and not right behind the wall"


def test_the_same_labels_get_the_same_places() -> None:
    labels = [Label(x=37 * n % 300, y=53 * n % 200, width=60, height=12) for n in range(15)]
    assert place(labels, [], AREA, GAP) == place(labels, [], AREA, GAP)


@given(*[st.integers(0, 300)] * 4)
def test_a_line_is_covered_along_its_whole_length(x0: int, y0: int, x1: int, y1: int) -> None:
    boxes = along([(x0, y0), (x1, y1)], 4)
    for step in range(101):
        x, y = x0 + (x1 - x0) * step / 100, y0 + (y1 - y0) * step / 100
        near = (nearest(box, x, y) for box in boxes)
        assert min(math.hypot(x - place[0], y - place[1]) for place in near) <= 1e-9


def test_a_level_line_is_one_box() -> None:
    assert along([(0, 5), (100, 5)], 4) == [Box(x=-2, y=3, width=104, height=4)]
