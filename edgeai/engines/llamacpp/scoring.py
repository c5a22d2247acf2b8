"""Log-probabilities of the tokens of a text of any length, a slab of logits at a time."""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.batch import decode
from edgeai.engines.llamacpp.handle import Handle, NoRoom
from edgeai.engines.windows import Window, windows
from edgeai.errors import EngineCrashed, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["ScoreJob"]

LOGITS_BYTES = 32_000_000
"""Logits of all positions that are computed at once: of SmolLM2 162, of Gemma 3 30. A text of any length takes no more."""
FEWEST_TOKENS = 8
IN_FLOAT64 = 32
"""Rows of logits that are looked at together."""


@dataclass(slots=True, eq=False)
class ScoreJob:
    """Scores IDS on the scratch sequence of a context, at most one llama_decode a step, so that others are served between two.

    `window` is the most tokens that are in the KV cache for it. Where the text begins with `bos`, every window does. `result` gets the
    log-probabilities, or the error.
    """

    ids: Sequence[int]
    window: int
    bos: int | None = None
    adapters: Selection = ()
    result: queue.SimpleQueue[list[float] | BaseException] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    alone: bool = False
    _found: list[float] = field(default_factory=list)
    _left: list[Window] | None = None
    _read: int = 0
    _aside: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.ids) < 1:
            raise UsageError("the text is empty", hint="give at least one character")

    @property
    def begun(self) -> bool:
        """Whether a window has been read in part."""
        return self._read > 0

    def step(self, handle: Handle, most: int) -> bool:
        """Compute the next slab. Return True when there is no more to do, and the result is there."""
        if self._left is None:
            self._left = list(windows(len(self.ids), self.window)) if len(self.ids) > 1 else []
        if self._left and not self.cancelled:
            self._slab(handle, self._left[0], most)
        if self._left and not self.cancelled:
            return False
        self._forget(handle)
        self.result.put(self._found)
        return True

    def give_way(self) -> None:
        """Begin the window anew: the scratch sequence has been emptied."""
        self._read, self._aside = 0, None
        if self._left:
            del self._found[self._left[0].first - 1 :]

    def pause(self, handle: Handle) -> bool:
        """Put what has been read of the window aside."""
        if self._read and self._aside is None:
            self._aside = handle.state(handle.scratch)
        self._forget(handle)
        return True

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits."""
        self.result.put(error)

    def _slab(self, handle: Handle, window: Window, most: int) -> None:
        """Read the next tokens of WINDOW, up to MOST, and score those that follow them."""
        if not self._read:
            self._forget(handle)
        elif self._aside is not None:
            if not handle.restore(handle.scratch, self._aside):
                raise NoRoom
            self._aside = None
        # With more outputs than its context was made for, libllama aborts (llama-context.cpp, output_reserve).
        most = min(most, handle.n_outputs, max(FEWEST_TOKENS, LOGITS_BYTES // (4 * handle.n_vocab)))
        start = window.start + self._read
        stop = min(start + most, window.end - 1)  # nothing is asked after the last token
        ids = list(self.ids[start:stop])
        if not self._read and window.start and self.ids[0] == self.bos:
            ids[0] = self.bos
        asked = [at + 1 >= window.first for at in range(start, stop)]
        logits = decode_with_logits(handle, ids, self._read, asked)
        if logits is not None:
            self._found += log_probabilities(logits, self.ids[stop - sum(asked) + 1 : stop + 1])
        self._read += len(ids)
        if stop == window.end - 1:
            assert self._left is not None  # noqa: S101 - `step` has set it
            self._left.pop(0)
            self._read = 0

    def _forget(self, handle: Handle) -> None:
        """Free the cells of the scratch sequence."""
        handle.forget(handle.scratch)


def decode_with_logits(
    handle: Handle, ids: Sequence[int], start: int, asked: Sequence[bool]
) -> npt.NDArray[np.float32] | None:
    """Read IDS at the positions from START of the scratch sequence; return the logits where ASKED, (asked, vocab), or None for none.

    The array is libllama's own and holds until the next decode.
    """
    import numpy as np

    sequence = np.full(len(ids), handle.scratch)
    handle.check(decode(handle.lib, handle.context, ids, np.arange(start, start + len(ids)), sequence, asked))
    if not any(asked):
        return None
    pointer = ctypes.cast(handle.lib.llama_get_logits(handle.context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (sum(asked), handle.n_vocab))


def log_probabilities(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> list[float]:
    """Return log softmax(LOGITS[i])[IDS[i]] for each i, in nats; LOGITS is (n, vocab). Raises EngineCrashed for what is no number."""
    import numpy as np

    chosen = np.asarray(ids, dtype=np.int64)
    found: list[float] = []
    for start in range(0, len(logits), IN_FLOAT64):
        part = logits[start : start + IN_FLOAT64].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        picked = part[np.arange(len(part)), chosen[start : start + IN_FLOAT64]]
        found += (picked - np.log(np.exp(part).sum(axis=1))).tolist()
    if not np.isfinite(found).all():
        raise EngineCrashed("the model gave a probability that is not finite", hint="edgeai verify MODEL")
    return found
