"""Waiting for another thread on behalf of somebody who may stop wanting the result: a cancelled task, a caller in another process."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["Abandoned", "Patience", "outcome", "wait"]

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody wants the result any more; who waits for it stops the work, as after a Ctrl-C."""


class Patience:
    """How long somebody wants a result that a thread is waiting for: until `give_up`, which any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up = False
        self._replies: queue.SimpleQueue[Any] | None = None

    @property
    def given_up(self) -> bool:
        """Whether the result is not wanted any more."""
        return self._given_up

    def give_up(self) -> None:
        """End the wait of this moment, and those that would follow, with Abandoned."""
        with self._lock:
            self._given_up = True
            if self._replies is not None:
                self._replies.put(Abandoned())

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Have every `wait` of this thread in the block end when this patience does."""
        _here.patience = self
        try:
            yield
        finally:
            _here.patience = None

    def wait(self, replies: queue.SimpleQueue[T]) -> T:
        """Return the next of REPLIES. Raises Abandoned after `give_up`."""
        with self._lock:
            if self._given_up:
                raise Abandoned
            self._replies = replies
        try:
            found = replies.get()
        finally:
            with self._lock:
                self._replies = None
        if isinstance(found, Abandoned):
            raise found
        return found


_here = threading.local()


def wait(replies: queue.SimpleQueue[T]) -> T:
    """Return the next of REPLIES, waiting for it. Raises Abandoned where this thread waits for somebody (`Patience.here`) who gives up."""
    patience: Patience | None = getattr(_here, "patience", None)
    return replies.get() if patience is None else patience.wait(replies)


def outcome(replies: queue.SimpleQueue[T | BaseException], cancel: Callable[[], object]) -> T:
    """Wait for the one result in REPLIES and return it, or raise it where it is an error. Who stops waiting calls CANCEL first."""
    try:
        found = wait(replies)
    except BaseException:  # Ctrl-C, a cancelled task: nobody waits for the rest
        cancel()
        raise
    if isinstance(found, BaseException):
        raise found
    return found
