"""Work on a model's context that is no request: what it must offer to be done between the batches of requests."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import Protocol, TypeVar

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.cache import PrefixCache
from edgeai.engines.llamacpp.handle import Aborted, Handle, NoRoom
from edgeai.errors import ContextExceeded

__all__ = ["Job", "JobQueue", "ResultJob"]

T = TypeVar("T")
TURN_S = 0.25
"""Seconds after which a job leaves the scratch sequence to the next one, if it can."""


class Job(Protocol):
    """Work on the context that is no request: scores, states. It uses the sequence `handle.scratch`, under its adapters.

    `begun`: the scratch sequence has something of it. `alone`: no request may run beside it, or its result is not exact (exact.py).
    """

    adapters: Selection
    alone: bool

    @property
    def begun(self) -> bool: ...  # noqa: D102 - see above

    def step(self, handle: Handle, most: int) -> bool:
        """Do a part of it, at most one llama_decode of MOST tokens; return True when there is no more to do. Raises NoRoom."""

    def give_way(self) -> None:
        """Begin anew what the scratch sequence had been for: a request needed its cells."""

    def pause(self, handle: Handle) -> bool:
        """Leave the scratch sequence to another job until the next step; false where it cannot now."""

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits for the result; there will be none."""


class ResultJob(Job, Protocol[T]):
    """A Job that somebody waits for: the result or the error comes through `result`. Once `cancelled`, its next step is its last."""

    result: queue.SimpleQueue[T | BaseException]
    cancelled: bool


class JobQueue:
    """The jobs of a Handle, which take turns. Any thread may `add` one; all else belongs to the thread of the scheduler."""

    def __init__(self, handle: Handle, cache: PrefixCache) -> None:
        self._handle, self._cache = handle, cache
        self._jobs: deque[Job] = deque()
        self._turn_began = 0.0
        self._owed: Job | None = None  # gave its cells to requests, or found none, and comes before new ones
        self._given_way = False  # and none of them has ended since

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Queue JOB."""
        self._jobs.append(job)

    @property
    def hold_back(self) -> bool:
        """Whether no request may begin before a job is done."""
        return self._owed is not None or (bool(self._jobs) and self._jobs[0].alone)

    def room_again(self) -> None:
        """Go on with a job that has given way: a request has ended."""
        self._given_way = False

    def give_way(self) -> bool:
        """Free the cells of the job that is being done; false where it has none."""
        if not self._jobs or self._handle.span(self._handle.scratch) == (-1, -1):
            return False
        self._handle.forget(self._handle.scratch)
        self._owed = self._jobs[0]
        self._owed.give_way()
        self._given_way = True
        return True

    def take_step(self, *, running: bool, most: int) -> None:
        """Take one step, of MOST tokens, of the job whose turn it is, while requests are RUNNING or none."""
        job = self._jobs[0] if self._jobs else None
        if job is None or self._given_way or (job.alone and running):
            return
        if self._handle.plan.unified and not running:
            self._cache.park()  # what a job computes is the same wherever others have been
        try:
            self._handle.adapters.select(self._handle.context, job.adapters)
            finished = job.step(self._handle, most)
        except NoRoom:
            if self._cache.in_cells or running:
                self._owed = job if running else self._owed
                self._cache.park()
                return
            finished = True
            job.fail(ContextExceeded("the KV cache is too small", hint="use a larger `ctx`"))
        except Aborted:
            return
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            finished = True
            job.fail(error)
        self._next(job, finished=finished)

    def _next(self, job: Job, *, finished: bool) -> None:
        """Let another job have the scratch sequence if JOB is FINISHED or has had its turn."""
        if self._owed is job and (finished or not job.begun):
            self._owed = None
        now = time.monotonic()
        if finished:
            self._handle.forget(self._handle.scratch)
            self._jobs.popleft()
        elif len(self._jobs) == 1 or now - self._turn_began < TURN_S or not job.pause(self._handle):
            return
        else:
            self._jobs.rotate(-1)
        self._turn_began = now

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to all who wait."""
        jobs, self._owed, self._given_way = list(self._jobs), None, False
        for job in jobs:
            self._jobs.remove(job)
            job.fail(error)
