"""The only writer of a pipe: whoever has something to send leaves it here and goes on."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Outbox"]

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Sends items in their order from a thread of its own; those that come together go out in one write.

    A put never waits, however full the pipe is, and may be called while the garbage collector runs. A pipe that nobody reads any more
    ends the thread quietly: the reader of the other pipe finds out as well, and says so.
    """

    def __init__(self, fd: int, pack: Callable[[Sequence[Item]], bytes], *, name: str) -> None:
        self._fd, self._pack = fd, pack
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Send ITEM after what was put before."""
        self._items.put(item)

    def close(self, timeout_s: float | None = None) -> None:
        """Send what is there, then close the pipe; wait for that at most TIMEOUT_S."""
        self._items.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while self._write(self._together()):
                pass
        except OSError:
            pass  # the other side is gone
        finally:
            os.close(self._fd)

    def _together(self) -> list[Item | None]:
        """Wait for an item; return it with those that are there as well, up to the end mark."""
        items = [self._items.get()]
        while items[-1] is not None:
            try:
                items.append(self._items.get_nowait())
            except queue.Empty:
                break
        return items

    def _write(self, items: list[Item | None]) -> bool:
        wanted = [item for item in items if item is not None]
        data = memoryview(self._pack(wanted)) if wanted else memoryview(b"")
        while data:
            data = data[os.write(self._fd, data) :]
        return items[-1] is not None
