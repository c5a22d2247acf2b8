"""From token bytes to text that may be shown: whole UTF-8 characters, nothing of a stop string, in a stream that can be cancelled."""

from __future__ import annotations

import codecs
import queue
from collections.abc import Callable, Sequence

from edgeai.types import Chunk

__all__ = ["ChunkStream", "StopFilter", "Utf8Decoder"]


class ChunkStream:
    """The chunks of one request as they come; closing it, or forgetting it, cancels the work behind it.

    A generator would not do: one that was never started runs no `finally` when it is closed.
    """

    def __init__(self, chunks: queue.SimpleQueue[Chunk | BaseException], cancel: Callable[[], None]) -> None:
        self._chunks = chunks
        self._cancel = cancel
        self._ended = False

    def __iter__(self) -> ChunkStream:
        return self

    def __next__(self) -> Chunk:
        if self._ended:
            raise StopIteration
        item = self._chunks.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    def cancel(self) -> None:
        """Ask for the end: what is already made can still be read, up to a last chunk that says `cancelled`."""
        self._cancel()

    def close(self) -> None:
        """Stop the work; nothing more will be read."""
        if not self._ended:
            self._ended = True
            self._cancel()

    def __del__(self) -> None:
        self.close()


class Utf8Decoder:
    """Turns bytes into text, holding back a character until all of its bytes are there; invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        """Return the characters that PIECE completes. What is incomplete at the end of a stream is never returned."""
        return self._decoder.decode(piece)


class StopFilter:
    """Passes text through until a stop string appears; holds back the end of the text while it may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what of the text so far can be shown. After a stop string, `stopped` is true and nothing more comes."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        at = min((index for stop in self._stops if (index := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.stopped = True
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._may_begin_a_stop()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back; the stream has ended without a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _may_begin_a_stop(self) -> int:
        """Return the length of the longest end of the held text that is the beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
