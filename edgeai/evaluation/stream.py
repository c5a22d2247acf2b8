"""Logits of one prompt after the other, from a child that is never more than some megabytes ahead.

A child writes the logits of each prompt to a file and says so; it goes on as long as it has been granted prompts. So neither it nor
this process holds more than one prompt's logits, whatever the vocabulary. Two children compute side by side, each with its half of
the threads: none waits for the other, and no thread of one spins on a core that the other needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from converters.child import Child
from edgeai.evaluation.prompts import WINDOW_BYTES, Prompt
from edgeai.types import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]

__all__ = ["AHEAD_BYTES", "LogitStream", "Recorded", "Slab", "Stream"]

AHEAD_BYTES = 384 << 20
"""Logits of the reference that may lie on the disk: it starts while the export is still being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """The logits of one prompt, (positions, vocab) float32, in a file."""

    path: Path
    positions: int

    @property
    def vocab(self) -> int:
        """The number of logits at each position."""
        return self.path.stat().st_size // 4 // self.positions

    def rows(self, first: int, last: int) -> Logits:
        """Return the rows FIRST to LAST (not included), read from the file."""
        import numpy as np

        vocab = self.vocab
        flat = np.fromfile(self.path, np.float32, (last - first) * vocab, offset=first * vocab * 4)
        rows: Logits = flat.reshape(last - first, vocab)
        return rows


class Stream(Protocol):
    """What yields the logits of its prompts."""

    def take(self, count: int) -> Iterator[Slab]:
        """Yield the next COUNT logits."""
        ...


@dataclass(slots=True)
class LogitStream:
    """The logits of PROMPTS in their order, from CHILD, which puts them into FOLDER. `label` is what progress is told."""

    child: Child
    folder: Path
    prompts: Sequence[Prompt]
    vocab: int
    ahead_bytes: int = WINDOW_BYTES
    label: str = "running the file"
    progress: Progress = no_progress
    facts: dict[str, Any] = field(default_factory=dict, init=False)
    _granted: int = field(default=0, init=False)
    _ready: int = field(default=0, init=False)
    _taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._grant()

    def wait_facts(self) -> dict[str, Any]:
        """Return what the child found out before the first logits. Raises ChildDied or ChildFailed."""
        while not self.facts:
            self._read()
        return self.facts

    def take(self, count: int) -> Iterator[Slab]:
        """Yield the next COUNT logits, each removed when the next is asked for. Raises ChildDied or ChildFailed."""
        for index in range(self._taken, self._taken + count):
            self._grant()
            while self._ready <= index:
                self._read()
            slab = Slab(path=self.folder / f"{index}.f32", positions=len(self.prompts[index].ids))
            try:
                yield slab
            finally:
                slab.path.unlink(missing_ok=True)
                self._taken = index + 1

    def _read(self) -> None:
        """Take notice of one line of the child."""
        line = self.child.line()
        if line == "facts":
            self.facts = json.loads((self.folder / "facts.json").read_bytes())
        elif line.startswith("ready "):
            self._ready += 1
            self.progress(self.label, self._ready, len(self.prompts))

    def _grant(self) -> None:
        """Let the child compute as many more prompts as may lie on the disk, and one at least where it has none."""
        held = sum(self._size(prompt) for prompt in self.prompts[self._taken : self._granted])
        count = 0
        for prompt in self.prompts[self._granted :]:
            held += self._size(prompt)
            if held > self.ahead_bytes and self._granted + count > self._taken:
                break
            count += 1
        if count:
            self._granted += count
            self.child.send(str(count))

    def _size(self, prompt: Prompt) -> int:
        return 4 * len(prompt.ids) * self.vocab


@dataclass(slots=True, kw_only=True)
class Recorded:
    """The logits of STREAM, which stay in FOLDER: each time they are taken from the first prompt on."""

    stream: LogitStream
    folder: Path
    slabs: list[Slab] = field(default_factory=list, init=False)

    def take(self, count: int) -> Iterator[Slab]:
        """Yield the logits of the first COUNT prompts. Raises ChildDied or ChildFailed."""
        yield from self.slabs[:count]
        self.folder.mkdir(exist_ok=True)
        for slab in self.stream.take(count - len(self.slabs)):
            path = slab.path.rename(self.folder / slab.path.name)
            self.slabs.append(Slab(path=path, positions=slab.positions))
            yield self.slabs[-1]

    @property
    def complete(self) -> bool:
        """Whether nothing is left that the child would have to compute."""
        return len(self.slabs) == len(self.stream.prompts)
