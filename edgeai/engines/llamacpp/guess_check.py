"""How many guesses may be checked at once without changing what a greedy answer would be with none.

libggml multiplies one row, a few rows and groups of rows by different code, which need not round alike: with SmolLM2 in Q4_K_M 26 of 36
greedy answers of 80 tokens were other ones with guesses, in Q4_0 and Q8_0 every logit is the same. So the file that is loaded is tried
on the machine that it runs on.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.batch import decode
from edgeai.engines.llamacpp.handle import Handle

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WHOLE", "GuessCheck"]

WHOLE = 256
"""Cells up to which attention of one token is computed as that of several; beyond, its sums are split (ggml-cpu/ops.cpp, split_kv)."""
BEFORE = 8
"""Tokens before those that are compared."""


@dataclass(slots=True, eq=False)
class GuessCheck:
    """Compares the logits of tokens one by one with those of the same tokens at once, bit by bit.

    `result` gets the number of guesses, MOST or fewer, up to which all are equal.
    """

    most: int
    result: queue.SimpleQueue[int | BaseException] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    adapters: Selection = ()
    alone: bool = False
    _steps: Iterator[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether it has begun."""
        return self._steps is not None

    def step(self, handle: Handle, most: int) -> bool:  # noqa: ARG002 - batches of a few tokens
        """Compute the next batch. Return True when there is no more to do."""
        if self.cancelled:
            return True
        if self._steps is None:
            self._steps = self._compare(handle)
        return next(self._steps, self) is self

    def _compare(self, handle: Handle) -> Iterator[None]:
        tokens = [(97 * at + 331) % handle.n_vocab for at in range(BEFORE + self.most + 1)]
        handle.forget(handle.scratch)
        logits(handle, tokens[:BEFORE], 0)
        yield
        alone = []
        for at in range(BEFORE, len(tokens)):
            alone.append(logits(handle, tokens[at : at + 1], at)[0])
            yield
        for count in range(2, self.most + 2):
            handle.trim(handle.scratch, BEFORE)
            together = logits(handle, tokens[BEFORE : BEFORE + count], BEFORE)
            if any(one.tobytes() != other.tobytes() for one, other in zip(together, alone, strict=False)):
                self.result.put(count - 2)
                return
            yield
        self.result.put(self.most)

    def give_way(self) -> None:
        """Begin anew: the scratch sequence has been emptied."""
        self._steps = None

    def pause(self, handle: Handle) -> bool:  # noqa: ARG002
        """It is short."""
        return False

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits."""
        self.result.put(error)


def logits(handle: Handle, ids: list[int], start: int) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Return the logits, each (n_vocab,), after each of IDS, which the scratch sequence gets at the positions from START."""
    import numpy as np

    count = len(ids)
    places = np.arange(start, start + count)
    wanted = np.ones(count, bool)
    handle.check(decode(handle.lib, handle.context, ids, places, np.full(count, handle.scratch), wanted))
    return [handle.logits(at).copy() for at in range(count)]
