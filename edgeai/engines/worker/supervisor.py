"""What keeps a worker process running: starts it, watches it while it has work, tells whose work died with it, starts it again."""

from __future__ import annotations

import copy
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeai.childprocess import CRASHES
from edgeai.engines.worker.frames import BrokenStream, Frame, pack
from edgeai.engines.worker.limits import Backoff, Limits, Patience
from edgeai.engines.worker.process import CHILD, Ending, WorkerProcess
from edgeai.engines.worker.request import OpenRequests, Request
from edgeai.errors import ClosedError, EdgeAIError, EngineCrashed, InvalidModel
from edgeai.options import LoadOptions
from edgeai.plan import Plan
from edgeai.types import Notice

__all__ = ["Loaded", "Supervisor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a child says of the model when it has loaded it; `load_s` is the time since the child was started."""

    plan: Plan
    backend: str
    load_s: float


class Supervisor:
    """Runs one child after the other for the model at PATH. It knows nothing of the engine, so that a forgotten one can go."""

    def __init__(
        self,
        name: str,
        path: Path,
        options: LoadOptions,
        *,
        limits: Limits,
        module: str = CHILD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.loaded: Loaded | None = None
        self.restarts = 0
        self._path, self._options, self._limits, self._module = path, options, limits, module
        self._backoff = Backoff(limits, clock)
        self._file = _identity(path)
        self._owner = os.getpid()
        # Reentrant, since the collector may drop a stream (which cancels) in the middle of any of these methods.
        self._gate = threading.Condition(threading.RLock())
        self._numbers = itertools.count(1)
        self._requests = OpenRequests()
        self._child: WorkerProcess | None = None
        self._up = self._gone = self._closing = False
        self._pongs = self._progress = 0
        self._problem: EdgeAIError | None = None  # why the model could not be loaded this time
        self._down: EdgeAIError | None = None  # why it will not be started again
        self._planned: Plan | None = None  # by the first child
        self._started = self._delay = 0.0
        self._thread = threading.Thread(target=self._run, name=f"edgeai worker {name}", daemon=True)
        self._thread.start()

    # ---- called from any thread

    @property
    def pid(self) -> int | None:
        """The process id of the child, None while there is none."""
        child = self._child
        return None if child is None else child.pid

    def wait_until_loaded(self) -> Loaded:
        """Return what the first child says of the model; raises what kept it from loading."""
        with self._gate:
            self._gate.wait_for(lambda: self.loaded is not None or self._down is not None or self._closing)
            self._check_open()
            assert self.loaded is not None  # noqa: S101 - what was waited for
            return self.loaded

    def _check_open(self) -> None:
        if os.getpid() != self._owner:
            raise EngineCrashed(
                f"{self.name!r} was loaded before this process was forked",
                hint="load the model in the process that uses it",
            )
        if self._closing:
            raise _closed(self.name)
        if self._down is not None:
            raise copy.copy(self._down)

    def submit(self, kind: Literal["call", "generate"], value: tuple[Any, ...]) -> Request:
        """Send a request, now or as soon as a child runs, and return it; its answer comes later. Raises ClosedError, EngineCrashed."""
        self._check_open()
        request = Request(next(self._numbers), kind, value)
        with self._gate:
            self._check_open()
            self._requests.add(request)
            if self._up:
                self._send(request)
            if len(self._requests) == 1:
                self._gate.notify_all()  # from now on the child is watched
        return request

    def _send(self, request: Request) -> None:
        assert self._child is not None  # noqa: S101 - it is up
        self._child.send(request.next_frame())

    def cancel(self, request: Request) -> None:
        """End REQUEST."""
        if os.getpid() != self._owner:
            return
        with self._gate:
            if self._requests.cancel(request) and self._child is not None:
                self._child.send(pack("cancel", request.id))

    def shut(self) -> None:
        """Refuse new work and end the child. Does not wait."""
        if os.getpid() != self._owner:
            return
        with self._gate:
            self._closing = True
            self._gate.notify_all()

    def join(self) -> None:
        """Wait until the child is gone, which takes at most the time that Limits gives it."""
        child = self._child
        ours = (self._thread, None if child is None else child.reader)
        if threading.current_thread() not in ours and os.getpid() == self._owner:
            self._thread.join()

    # ---- the thread that reads from the child

    def _on_frame(self, frame: Frame) -> None:
        try:
            self._hear(frame)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BrokenStream(f"{frame.kind!r} with {frame.value!r:.60}") from error

    def _hear(self, frame: Frame) -> None:
        if frame.kind == "pong":
            self._pongs, self._progress = self._pongs + 1, int(frame.value)
        elif frame.kind == "loaded":
            self._on_loaded(**frame.value)
        elif frame.kind == "error" and frame.id == 0:
            with self._gate:
                self._problem = _as_ours(frame.value)
                self._gate.notify_all()
        else:
            self._requests.hear(frame, load_s=0.0 if self.loaded is None else self.loaded.load_s)

    def _on_loaded(self, plan: Plan, backend: str) -> None:
        with self._gate:
            if self._up or self._child is None:
                raise BrokenStream("'loaded' that was not asked for")
            self._planned = self._planned or plan
            plan = replace(plan, notices=(*plan.notices, *_changes(self._planned, plan)))
            self.loaded = Loaded(plan=plan, backend=backend, load_s=time.perf_counter() - self._started)
            self._up = True
            for request in self._requests:
                self._send(request)
            self._gate.notify_all()

    def _on_end(self) -> None:
        with self._gate:
            self._gone = True
            self._gate.notify_all()

    # ---- the thread that starts the child, and that must live as long as it (see WorkerProcess)

    def _run(self) -> None:
        while True:
            error = self._live_once()
            with self._gate:
                if self._closing:
                    break
                self._down = self._verdict(error)
                self._requests.child_died(error, down=self._down, useless=self._problem is not None)
                self._gate.notify_all()
                if self._down is not None:
                    break
                self._gate.wait_for(lambda: self._closing, self._delay)
                self.restarts += 1
        with self._gate:
            self._requests.end_all(error, refusal=self._down or _closed(self.name))

    def _live_once(self) -> EdgeAIError:
        """Start a child and stay until it is gone; return what there is to say about it."""
        with self._gate:
            self._gone, self._problem, self._pongs, self._progress = False, None, 0, -1
            self._started = time.perf_counter()
        try:
            self._check_file()
            child = WorkerProcess(self._on_frame, self._on_end, module=self._module)
        except EdgeAIError as error:
            self._problem = error
            return error
        except OSError as error:
            reason = f"the process that runs {self.name!r} does not start: {error}"
            self._problem = EngineCrashed(reason, hint="edgeai doctor")
            return self._problem
        with self._gate:
            self._child = child
        child.send(pack("load", 0, (self._path, self._options)))
        self._watch(child)
        ending = child.bury()
        with self._gate:
            self._child, was_up, self._up = None, self._up, False
            return self._problem or self._crash(ending, loading=not was_up)

    def _check_file(self) -> None:
        if _identity(self._path) != self._file:
            raise InvalidModel(f"{str(self._path)!r} has changed since it was loaded", hint="load it again")

    def _crash(self, ending: Ending, *, loading: bool) -> EdgeAIError:
        the_gpu = "CUDA error" in ending.reason
        if loading and self.loaded is None and ending.signal in CRASHES and not the_gpu:
            return InvalidModel(
                f"{str(self._path)!r} kills the native library: it {ending.reason}",
                hint="the file is damaged, or made to do so; pull or convert it again",
            )
        return EngineCrashed(
            f"the process that runs {self.name!r} {ending.reason}",
            hint="edgeai doctor"
            if loading
            else "it is started again by itself: ask once more; edgeai doctor if it happens again",
        )

    def _watch(self, child: WorkerProcess) -> None:
        """Wait until CHILD is gone; end it when it hangs, cannot load, or is not wanted any more."""
        with self._gate:
            while not (self._gone or self._closing or self._problem):
                if self._up and not self._requests:
                    self._gate.wait()
                elif not self._watch_at_work(child):
                    return
            if self._gone:
                return
            if self._closing and self._up:
                child.send(pack("close"))
                if self._gate.wait_for(lambda: self._gone, self._limits.close_s):
                    return
        child.kill("did not end when asked to and was killed")

    def _watch_at_work(self, child: WorkerProcess) -> bool:
        """Ping CHILD until it has nothing to do; return False when it hangs, and has been killed."""
        loading, tick_s = not self._up, self._limits.tick_s
        patience = Patience(self._limits, loading=loading)
        while (not self._up) == loading and (loading or self._requests):
            child.send(pack("ping"))
            if self._gate.wait_for(lambda: self._gone or self._closing or self._problem, tick_s):
                return True
            for request in self._requests.end_overdue():
                child.send(pack("cancel", request.id))
            if lack := patience.tick(self._pongs, self._progress):
                child.kill(f"was killed: it hung, without {lack}")
                return False
        return True

    # ---- whose work died

    def _verdict(self, error: EdgeAIError) -> EdgeAIError | None:
        """Return why there will be no next child; None when there will be one, after `_delay` seconds."""
        if self.loaded is None:
            return error
        delay = self._backoff.crashed()
        if delay is None:
            limits = self._limits
            return EngineCrashed(
                f"the process that runs {self.name!r} ended {limits.crashes + 1} times within {limits.window_s:g} s and is not "
                f"started again; the last time: {error}",
                hint="edgeai doctor; then close the model and load it again",
            )
        self._delay = delay
        return None


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that has taken its place; None where there is none, which loading it will say better."""
    try:
        file = path.stat()
    except OSError:
        return None
    return file.st_size, file.st_mtime_ns, file.st_ino


def _changes(first: Plan, now: Plan) -> tuple[Notice, ...]:
    """Return a notice where the machine is not what it was when the model was loaded, and the model runs in another way since a crash."""
    names = [
        name
        for name in ("device", "gpu_layers", "context", "kv_type", "streams")
        if getattr(first, name) != getattr(now, name)
    ]
    changes = ", ".join(f"{name} {getattr(now, name)} instead of {getattr(first, name)}" for name in names)
    return (Notice(code="plan-changed", message=f"started again after a crash with {changes}"),) if names else ()


def _closed(name: str) -> ClosedError:
    return ClosedError(f"{name!r} has been closed", hint="load it again")


def _as_ours(error: Exception) -> EdgeAIError:
    if isinstance(error, EdgeAIError):
        return error
    return EngineCrashed(f"loading the model failed: {type(error).__name__}: {error}", hint="edgeai doctor")
