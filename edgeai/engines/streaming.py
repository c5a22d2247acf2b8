"""From token bytes to text that may be shown: whole UTF-8 characters, nothing of a stop string, in a stream that can be cancelled."""

from __future__ import annotations

import codecs
import math
import queue
import time
from collections.abc import Callable, Sequence

from edgeai.types import Chunk

__all__ = ["Channel", "ChunkStream", "StopFilter", "Utf8Decoder"]


_ENDED = EOFError("the stream has ended")
"""Stands in a channel where nothing more comes; never raised."""


TURN_S = 3e-5
"""Long enough for a thread that waits to wake."""


class Channel:
    """A queue from the thread that makes chunks to whoever reads them: by waiting, or by being told (an event loop).

    Chunks that come within PACE seconds of those handed over last wait for the next: a reader costs the maker a switch of threads.
    """

    def __init__(self, pace: float = 0.0) -> None:
        self._pace = pace
        self._handed = -math.inf
        self._held: list[Chunk] = []
        self._items: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()
        self._tell: Callable[[], None] | None = None
        self.begun = False

    def begin(self) -> None:
        """Note, before the first chunk, that the work has begun; who listens is told."""
        self.begun = True
        if (tell := self._tell) is not None:
            tell()

    def put(self, item: Chunk | BaseException) -> None:
        """Add ITEM; an error is raised in the reader. Never waits."""
        if self._pace and isinstance(item, Chunk) and item.finish_reason is None:
            now = time.perf_counter()
            if now - self._handed < self._pace:
                self._held.append(item)
                return
            self._handed = now
        for held in self._held:
            self._items.put(held)
        self._held.clear()
        self._items.put(item)
        if (tell := self._tell) is not None:
            tell()

    def hand_over(self, item: Chunk) -> None:
        """Add ITEM and let its reader run at once: a thread that goes on computing would keep Python's lock for its whole turn (5 ms)."""
        self.put(item)
        time.sleep(TURN_S)

    def listen(self, tell: Callable[[], None]) -> None:
        """Have TELL called after every put and `begin` from now on, in the putting thread; it must return at once and raise nothing."""
        self._tell = tell

    def end(self) -> None:
        """Let everyone who waits, now or later, know that nothing more comes."""
        self._items.put(_ENDED)

    def get(self) -> Chunk | BaseException:
        """Return the next item, waiting for it. Raises StopIteration after `end`."""
        item = self._items.get()
        if item is _ENDED:
            self.end()  # for the next one
            raise StopIteration
        return item

    def poll(self) -> Chunk | BaseException | None:
        """Return the next item, or None where there is none yet."""
        try:
            item = self._items.get_nowait()
        except queue.Empty:
            return None
        if item is _ENDED:
            self.end()
            return None
        return item


class ChunkStream:
    """The chunks of one request as they come; closing it, or forgetting it, cancels the work behind it.

    A generator would not do: one that was never started runs no `finally` when it is closed.
    """

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self.channel = channel
        self._cancel = cancel
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the last chunk or an error has been read, or the stream has been closed."""
        return self._ended

    def __iter__(self) -> ChunkStream:
        return self

    def __next__(self) -> Chunk:
        if self._ended:
            raise StopIteration
        return self._take(self.channel.get())

    def poll(self) -> Chunk | None:
        """Return the next chunk if it is there, else None; never waits. Raises what ended the request."""
        item = None if self._ended else self.channel.poll()
        return None if item is None else self._take(item)

    def _take(self, item: Chunk | BaseException) -> Chunk:
        if isinstance(item, BaseException):
            self._end()
            raise item
        if item.finish_reason is not None:
            self._end()
        return item

    def _end(self) -> None:
        self._ended = True
        self.channel.end()  # another thread may be waiting for more

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
