"""The thread that owns a pooling context: it takes one batch of each call in turn, so that a short call does not wait for a long one."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.abort import Aborted
from edgeai.engines.llamacpp.pooled import PooledContext, Text, batches
from edgeai.engines.waiting import wait
from edgeai.errors import ClosedError, EngineCrashed
from edgeai.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["PoolingThread"]


@dataclass(slots=True, eq=False)
class _Call:
    """The texts of one caller, the groups of them that are still to be computed, and the rows so far."""

    texts: Sequence[Text]
    groups: collections.deque[list[int]]
    rows: F32
    cancelled: bool = False
    done: queue.SimpleQueue[BaseException | None] = field(default_factory=queue.SimpleQueue)


class PoolingThread:
    """Computes rows of texts for callers in any thread. It does not refer to the engine, so that a forgotten engine can be collected."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self._name = artifact.name
        self._process = os.getpid()
        self.native = PooledContext(artifact, plan)
        # Reentrant, since the collector may close an engine in the middle of any of these methods.
        self._gate = threading.Condition(threading.RLock())
        self._calls: collections.deque[_Call] = collections.deque()
        self._current: _Call | None = None
        self._users = 0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"edgeai {artifact.name}", daemon=True)
        self._thread.start()

    # ---- called from any thread

    def rows(self, texts: Sequence[Text]) -> F32:
        """Return the pooled rows of TEXTS, in their order, (texts, width). Raises ClosedError, EngineCrashed."""
        import numpy as np

        width = self.native.width
        groups = collections.deque(batches([len(text.ids) for text in texts], self.native.batch_tokens))
        call = _Call(texts, groups, np.empty((len(texts), width), np.float32))
        with self._gate:
            self._check_open()
            if groups:
                self._calls.append(call)
                self._gate.notify_all()
        try:
            error = wait(call.done) if groups else None
        except BaseException:  # Ctrl-C, a cancelled task: nobody waits for the rest
            self._cancel(call)
            raise
        if error is not None:
            raise error
        return call.rows

    def _cancel(self, call: _Call) -> None:
        with self._gate:
            call.cancelled = True
            if self._current is call:
                self.native.abort()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model in memory for a native call of this thread."""
        with self._gate:
            self._check_open()
            self._users += 1
        try:
            yield
        finally:
            with self._gate:
                self._users -= 1
                self._gate.notify_all()

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise EngineCrashed(
                f"{self._name!r} was loaded before this process was forked",
                hint="load the model in the process that uses it",
            )
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self._name!r} has been closed", hint="load it again")

    def shut(self) -> None:
        """Refuse new work and end what runs; the thread then frees the model. Does not wait."""
        if os.getpid() != self._process:
            return
        with self._gate:
            self._closed = True
            if self._current is not None:
                self.native.abort()
            self._gate.notify_all()

    def join(self) -> None:
        """Wait until the model is freed."""
        if threading.current_thread() is not self._thread and os.getpid() == self._process:
            self._thread.join()

    # ---- the thread that owns the context

    def _loop(self) -> None:
        while (call := self._next()) is not None:
            error = self._step(call)
            with self._gate:
                self._current = None
                if error is None and call.groups:
                    self._calls.append(call)
                    continue
            call.done.put(error)
        with self._gate:
            for call in self._calls:
                call.done.put(self._closed_error())
            self._gate.wait_for(lambda: self._users == 0)
            self.native.free()

    def _next(self) -> _Call | None:
        """Return the call whose turn it is, waiting for one; None once the engine is closed."""
        with self._gate:
            self._gate.wait_for(lambda: self._closed or self._calls)
            if self._closed:
                return None
            self._current = self._calls.popleft()
            self.native.go_on()
            if self._current.cancelled:
                self.native.abort()
            return self._current

    def _step(self, call: _Call) -> BaseException | None:
        """Compute the next group of CALL. Return the error that ends it, None if there is none."""
        group = call.groups.popleft()
        try:
            call.rows[group] = self.native.rows([call.texts[at] for at in group])
        except Aborted:
            return self._closed_error()  # or cancelled, and then nobody reads it
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            return error
        return None
