"""Where labels of points go so that none covers another, a point or a line: greedy, then each again in the light of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Label", "along", "nearest", "place"]

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Right, left, above, below, then the corners; the first that is free wins."""
DISTANCES = (1.0, 2.2, 4.0, 7.0)
"""In units of the gap between a point and its label."""
PASSES = 3
CROSSED = 4.0
"""How much worse it is that the line to a point covers something than that the label does: it is thin, and cuts texts."""
OUTSIDE = 50.0
"""How much worse than covering something it is to leave the area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle, in pixels: its left and lower end, its width and height."""

    x: float
    y: float
    width: float
    height: float

    def shared(self, other: Box) -> float:
        """Return the area that both have in common."""
        width = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        height = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A text of WIDTH and HEIGHT that belongs to the point X, Y."""

    x: float
    y: float
    width: float
    height: float


def place(labels: Sequence[Label], obstacles: Sequence[Box], area: Box, gap: float) -> list[Box]:
    """Return the box of each of LABELS inside AREA, as near to its point as it can be without covering OBSTACLES or another label.

    GAP is the distance from a point to its label. Where there is no room at all the least bad place is taken. The same input gives the
    same places.
    """
    found: list[Box | None] = [None] * len(labels)
    for _ in range(PASSES):
        for index, label in enumerate(labels):
            others = [
                piece
                for number, box in enumerate(found)
                if box is not None and number != index
                for piece in (box, *lead(labels[number], box, gap))
            ]
            found[index] = best(label, [*obstacles, *others], area, gap)
    return [box for box in found if box is not None]


def best(label: Label, taken: Sequence[Box], area: Box, gap: float) -> Box:
    """Return the place for LABEL that covers the least of TAKEN; of several the first that `candidates` names.

    The line from the point to its label counts as well, but for what stands around the point itself.
    """
    around = Box(x=label.x - gap / 8, y=label.y - gap / 8, width=gap / 4, height=gap / 4)
    across, up = (max(DISTANCES) * gap + side for side in (label.width, label.height))
    reach = Box(x=label.x - across, y=label.y - up, width=2 * across, height=2 * up)
    taken = [box for box in taken if reach.shared(box)]
    others = [box for box in taken if not around.shared(box)]

    found, least = None, math.inf
    for box in candidates(label, gap):
        price = sum(map(box.shared, taken)) + OUTSIDE * (box.width * box.height - box.shared(area))
        if price < least:
            price += CROSSED * sum(piece.shared(other) for piece in lead(label, box, gap) for other in others)
        if price < least:
            found, least = box, price
        if not least:
            break
    assert found is not None  # noqa: S101 - a price is always finite
    return found


def lead(label: Label, box: Box, gap: float) -> list[Box]:
    """Return what the line from the point of LABEL to its BOX covers."""
    return along([(label.x, label.y), nearest(box, label.x, label.y)], gap / 4)


def nearest(box: Box, x: float, y: float) -> tuple[float, float]:
    """Return the place of BOX that is nearest to the point X, Y."""
    return min(max(x, box.x), box.x + box.width), min(max(y, box.y), box.y + box.height)


def candidates(label: Label, gap: float) -> Iterable[Box]:
    """Yield the places that LABEL may have, the nearest first."""
    for distance in DISTANCES:
        for across, up in DIRECTIONS:
            reach = gap * distance / math.hypot(across, up)
            x = label.x + across * reach + (across - 1) * label.width / 2
            y = label.y + up * reach + (up - 1) * label.height / 2
            yield Box(x=x, y=y, width=label.width, height=label.height)


def along(points: Sequence[tuple[float, float]], size: float) -> list[Box]:
    """Return boxes that cover the line through POINTS, SIZE wide; where it is level or upright, one is enough."""
    found = []
    for (left, low), (right, high) in itertools.pairwise(points):
        across, up = abs(right - left), abs(high - low)
        count = math.ceil(math.hypot(across, up) / size) if min(across, up) > size else 0
        if not count:
            x, y = min(left, right) - size / 2, min(low, high) - size / 2
            found.append(Box(x=x, y=y, width=across + size, height=up + size))
        for step in range(count + 1 if count else 0):
            x, y = left + (right - left) * step / count, low + (high - low) * step / count
            found.append(Box(x=x - size / 2, y=y - size / 2, width=size, height=size))
    return found
