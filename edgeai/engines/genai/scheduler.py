"""The thread that owns an ONNX model: one part of a prompt or one token of each request in turn.

onnxruntime-genai computes one sequence at a time here, and holds Python's lock while it does. So requests take turns: all answers go
on between the parts of a prompt that is being read, and each answer is the same to the bit alone and in company.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from edgeai.errors import Busy, ClosedError, EngineCrashed

__all__ = ["Scheduler", "Task"]


class Task(Protocol):
    """Something that takes steps on the model. `cancelled` is set by any thread; everything else is called by the scheduler's."""

    cancelled: bool

    @property
    def expired(self) -> bool:
        """Whether its time is over, so that its next step is its last."""

    def step(self) -> bool:
        """Take one step; return whether there is another."""

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to whoever waits."""

    def stop(self) -> None:
        """End as cancelled."""


class Scheduler:
    """Runs tasks side by side, at most STREAMS at once; QUEUE more may wait. Its public methods may be called from any thread."""

    def __init__(self, name: str, *, streams: int, queue: int) -> None:
        self.name = name
        self._streams, self._queue = streams, queue
        # Reentrant, since the collector may drop a stream (which cancels) in the middle of any of these methods.
        self._gate = threading.Condition(threading.RLock())
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._closed = False
        self.steps = 0
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._loop, name=f"edgeai {name}", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the lock of an engine that is not closed. Raises ClosedError, EngineCrashed after a fork."""
        if os.getpid() != self._process:
            raise EngineCrashed(
                f"{self.name!r} was loaded before this process was forked",
                hint="load the model in the process that uses it",
            )
        with self._gate:
            if self._closed:
                raise ClosedError(f"{self.name!r} has been closed", hint="load it again")
            yield

    def submit(self, task: Task) -> None:
        """Queue TASK. Raises Busy when as many wait as may wait, ClosedError."""
        with self.opened():
            running, waiting = (sum(not task.cancelled for task in some) for some in (self._running, self._waiting))
            if running + waiting >= self._streams + self._queue:
                raise Busy(
                    f"{self.name!r} is busy: {running} requests run and {waiting} wait",
                    hint="try again later, or load the model with a larger queue",
                )
            self._waiting.append(task)
            self._gate.notify_all()

    def cancel(self, task: Task) -> None:
        """End TASK before its next step."""
        task.cancelled = True
        if os.getpid() != self._process:
            return  # the lock may be held by a thread that is not here
        with self._gate:
            self._gate.notify_all()

    def shut(self) -> None:
        """End everything; nothing is taken any more. Does not wait."""
        if os.getpid() != self._process:
            return
        with self._gate:
            self._closed = True
            self._gate.notify_all()

    def join(self) -> None:
        """Wait for the thread to end; it frees what its tasks held."""
        if os.getpid() == self._process and threading.current_thread() is not self._thread:
            self._thread.join()

    def _loop(self) -> None:
        try:
            self._run()
        finally:  # whatever happened, nobody waits for a thread that is gone
            with self._gate:
                self._closed = True
                left = [*self._running, *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for task in left:
                _quietly(task.stop)

    def _run(self) -> None:
        while True:
            with self._gate:
                while not (self._closed or self._waiting or self._running):
                    self._gate.wait()
                if self._closed:
                    return
                unwanted = [task for task in self._waiting if task.cancelled or task.expired]
                for task in unwanted:
                    self._waiting.remove(task)
                while self._waiting and len(self._running) < self._streams:
                    self._running.append(self._waiting.popleft())
                turn = list(self._running)
            for task in unwanted:
                self._step(task)
            for task in turn:
                if self._closed or not self._step(task):
                    with self._gate:
                        if task in self._running and not self._closed:
                            self._running.remove(task)

    def _step(self, task: Task) -> bool:
        """Take a step of TASK; one that fails fails alone."""
        self.steps += 1
        try:
            if task.cancelled:
                task.stop()
                return False
            return task.step()
        except BaseException as error:  # noqa: BLE001 - whatever it is (a panic in Rust is no Exception) belongs to who waits for this task
            _quietly(task.fail, error)
            return False


def _quietly(end: Callable[..., None], *arguments: object) -> None:
    """Call END; what it raises concerns nobody else's task."""
    with contextlib.suppress(Exception):
        end(*arguments)
