"""Logits that are recorded while they come, and taken again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeai.evaluation.prompts import Prompt
from edgeai.evaluation.stream import LogitStream, Recorded, Slab

VOCAB = 5


class Source:
    """A stream whose slabs go when the next is asked for, as those of a child do."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.prompts, self.made = folder, [Prompt(kind="window", ids=[1, 2])] * count, 0

    def take(self, count: int) -> Iterator[Slab]:
        for index in range(self.made, self.made + count):
            path = self.folder / f"{index}.f32"
            np.full((2, VOCAB), index, np.float32).tofile(path)
            self.made = index + 1
            try:
                yield Slab(path=path, positions=2)
            finally:
                path.unlink(missing_ok=True)


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    source: Any = Source(tmp_path, 3)
    stream: LogitStream = source
    return Recorded(stream=stream, folder=tmp_path / "kept")


def firsts(recorded: Recorded, count: int = 3) -> list[float]:
    return [float(slab.rows(0, 1)[0, 0]) for slab in recorded.take(count)]


def test_every_time_all_of_them_come_from_the_first_on(recorded: Recorded) -> None:
    assert [firsts(recorded) for _ in range(3)] == [[0, 1, 2]] * 3


def test_each_is_computed_once(recorded: Recorded) -> None:
    firsts(recorded), firsts(recorded)
    assert recorded.stream.made == 3  # type: ignore[attr-defined]


def test_after_a_break_it_goes_on_where_it_was(recorded: Recorded) -> None:
    assert firsts(recorded, 2) == [0, 1]
    assert not recorded.complete
    assert firsts(recorded) == [0, 1, 2]
    assert recorded.complete
