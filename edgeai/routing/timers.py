"""Calls at a later time, all from one thread: a request that is quick costs no thread for what would have happened if it were slow."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

__all__ = ["Timer", "Timers"]


class Timer:
    """A call to come. `cancel` is certain only before it has begun."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call it; what it would have called is forgotten at once."""
        self._call = None

    def run(self) -> None:
        """Call it, unless it was cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Timers:
    """The calls to come, in the order of their times. The thread begins with the first of them; what is called must return at once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have CALL called in SECONDS."""
        timer = Timer(call)
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._order), timer))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="edgeai timers", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def close(self) -> None:
        """Call nothing any more."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._closed:
                    return
                _, _, timer = heapq.heappop(self._heap)
            timer.run()
