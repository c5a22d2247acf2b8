"""Many requests on one context: a thread that computes them side by side, batch after batch.

Requests wait in the order in which they came. Up to `plan.streams` of them run: each batch has one token of every answer that is being
given, and parts of the prompts that are being read. A request whose beginning another one is just computing waits for that. When the
cache is full, kept prompts go first; then the youngest request gives its cells back and is read again later, with its answer so far.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeai.engines.llamacpp.cache import PrefixCache
from edgeai.engines.llamacpp.composer import Composer, Part
from edgeai.engines.llamacpp.drafting import DraftModel
from edgeai.engines.llamacpp.handle import Aborted, NoRoom
from edgeai.engines.llamacpp.jobs import Job, JobQueue
from edgeai.engines.llamacpp.prefix import common
from edgeai.engines.llamacpp.request import Loaded, Request
from edgeai.engines.llamacpp.settling import settle
from edgeai.errors import Busy, ClosedError, ContextExceeded, EngineCrashed

__all__ = ["Scheduler", "Stats"]

WORTH_WAITING = 32
"""Tokens that another request is computing and this one shares: fewer are computed twice rather than waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a scheduler is doing. `kept_…` tell of what ended requests computed."""

    running: int
    waiting: int
    kept_sequences: int
    kept_tokens: int
    kept_bytes: int
    requests: int
    preempted: int


class Scheduler:
    """Owns a Handle and the thread that uses it. Its public methods may be called from any thread.

    The thread refers to this object and not to the engine, so that a forgotten engine can be collected.
    """

    def __init__(self, model: Loaded, name: str, *, draft: DraftModel | None = None) -> None:
        self.name = name
        self.handle = handle = model.handle
        self._model, self._plan = model, handle.plan
        self._draft = draft
        self._cache = PrefixCache(
            handle,
            budget=0 if handle.plan.deterministic else handle.plan.prefix_bytes,
            token_bytes=handle.token_bytes,
        )
        self._composer = Composer(handle)
        self._jobs = JobQueue(handle, self._cache)
        # Reentrant, since the collector may drop a stream (which cancels) in the middle of any of these methods.
        self._gate = threading.Condition(threading.RLock())
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._computing: tuple[Request, ...] = ()
        self._full = False  # a request had to give its cells back, and none has ended since
        self._settling = False
        self._requests = self._preempted = self._users = 0
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._loop, name=f"edgeai {name}", daemon=True)
        self._thread.start()

    # ---- called from any thread

    @property
    def _forked(self) -> bool:
        """Whether this is a child of the process that has the thread. The lock may be held there by a thread that is not here."""
        return os.getpid() != self._process

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the lock of an engine that is not closed. Raises ClosedError, EngineCrashed after a fork."""
        if self._forked:
            raise EngineCrashed(
                f"{self.name!r} was loaded before this process was forked",
                hint="load the model in the process that uses it",
            )
        with self._gate:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.name!r} has been closed", hint="load it again")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model in memory for a native call of this thread. Raises ClosedError."""
        with self._opened():
            self._users += 1
        try:
            yield
        finally:
            with self._gate:
                self._users -= 1
                self._gate.notify_all()

    def submit(self, request: Request) -> None:
        """Queue REQUEST. Raises Busy when as many wait as may wait, ClosedError."""
        with self._opened():
            running, waiting = (
                sum(not other.cancelled for other in requests) for requests in (self._running, self._waiting)
            )
            if running + waiting >= self._plan.streams + self._plan.queue:
                raise Busy(
                    f"{self.name!r} is busy: {running} requests run and {waiting} wait",
                    hint="try again later, or load the model with a larger queue",
                )
            self._requests += 1
            self._waiting.append(request)
            if self._settling:
                self.handle.abort()
            self._gate.notify_all()

    def run(self, job: Job) -> None:
        """Queue JOB; its steps are taken in turn with the batches of requests."""
        with self._opened():
            self._jobs.add(job)
            if self._settling:
                self.handle.abort()
            self._gate.notify_all()

    def adopt(self, tokens: Sequence[int]) -> bool:
        """Keep TOKENS, which the scratch sequence has, for later requests; false where nothing may be kept. For a job's step alone."""
        return self._cache.adopt(self.handle.scratch, tokens, in_place=not self._running)

    def cancel(self, request: Request) -> None:
        """End REQUEST, running or waiting, within the batch that is being computed; at once if the batch is for it alone."""
        if self._forked:
            return
        with self._gate:
            request.cancelled = True
            if self._computing and all(other.cancelled for other in self._computing):
                self.handle.abort()
            self._gate.notify_all()

    def stats(self) -> Stats:
        """Return what is going on."""
        with contextlib.nullcontext() if self._forked else self._gate:
            return Stats(
                running=len(self._running),
                waiting=len(self._waiting),
                kept_sequences=self._cache.kept_sequences,
                kept_tokens=self._cache.kept_tokens,
                kept_bytes=self._cache.kept_bytes,
                requests=self._requests,
                preempted=self._preempted,
            )

    def shut(self) -> None:
        """Refuse new work and end what runs; the thread then frees the model. Does not wait."""
        if self._forked:
            return
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self.handle.abort()
            self._gate.notify_all()

    def join(self) -> None:
        """Wait until the model is freed."""
        if threading.current_thread() is not self._thread and not self._forked:
            self._thread.join()

    # ---- the thread that owns the context

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._end_unwanted()
                self._admit()
                self._compute()
                self._jobs.take_step(
                    running=bool(self._running), most=self._composer.beside(running=bool(self._running))
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                self._fail_all(error)
        self._end_all()
        with self._gate:
            self._gate.wait_for(lambda: self._users == 0)
            if self._draft is not None:
                self._draft.free()
            self.handle.free()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; false when the engine is closed."""
        if self._idle():
            self._settle()
        with self._gate:
            self._gate.wait_for(lambda: not self._idle())
            return not self._closed

    def _idle(self) -> bool:
        return not (self._closed or self._waiting or self._running or self._jobs)

    def _settle(self) -> None:
        """Read the last answer again, until there is something else to do."""
        self._settling = True
        try:
            settle(self.handle, self._cache, self._composer.batch, self._idle)
        except Exception:  # noqa: BLE001 - nobody has asked for this work; who asks next is told what is wrong
            self._cache.clear()
        finally:
            with self._gate:
                self._settling = False
                if not self._closed:
                    self.handle.clear_abort()

    def _end_unwanted(self) -> None:
        """End requests that were cancelled or whose time is over."""
        with self._gate:
            gone = [request for request in self._waiting if request.cancelled or request.expired]
            for request in gone:
                self._waiting.remove(request)
        for request in gone:
            self._close(request, "cancelled" if request.cancelled else "timeout")
        for request in list(self._running):
            if request.cancelled or request.expired:
                self._finish(request, "cancelled" if request.cancelled else "timeout")

    def _close(self, request: Request, finish: str) -> None:
        if request.guesser is not None:
            request.guesser.close()
        try:
            request.end(finish, self._model.load_s)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            request.fail(error)

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a running request with ERROR; nothing of it is kept."""
        self._leave(request, keep=False)
        self._refuse(request, error)

    def _refuse(self, request: Request, error: BaseException) -> None:
        """End with ERROR a request that has no cells: one that waits may have begun before, and guesses then have a sequence."""
        if request.guesser is not None:
            request.guesser.close()
        request.fail(error)

    def _finish(self, request: Request, finish: str) -> None:
        """End a running request; what it computed stays for others."""
        self._leave(request)
        self._close(request, finish)

    def _leave(self, request: Request, *, keep: bool = True) -> None:
        """Take REQUEST out of those that run, and its sequence back."""
        with self._gate:
            self._running.remove(request)
        self._full = False
        self._jobs.room_again()
        sequence, request.sequence = request.sequence, None
        self._composer.forget(request)
        if sequence is None:
            return
        if keep and request.config.prefix_cache:
            exact, tokens = self._exact_part(request), request.tokens[: request.done]
            self._cache.keep(sequence, tokens, request.adapters, exact=exact, alone=request.alone)
        else:
            self._cache.drop(sequence)

    def _admit(self) -> None:
        """Let waiting requests run, in their order, while there is a place; one that will share what another computes waits for it."""
        with self._gate:
            waiting = list(self._waiting)
        for request in () if self._jobs.hold_back else waiting:
            if len(self._running) >= self._plan.streams or (self._full and self._running):
                return
            if self._will_share(request) or not self._begin(request):
                continue

    def _begin(self, request: Request) -> bool:
        config = request.config
        single = (
            self._plan.streams == 1 and not self._cache.enabled
        )  # nothing to be equal to, and 65 ms of a cold start
        alone = not (single or self._plan.deterministic or self._running or self._jobs)
        found = self._cache.begin(request.tokens, request.adapters, reuse=config.prefix_cache, alone=alone)
        if found is None:
            return False
        request.sequence, request.done, request.exact = found
        request.alone = alone
        if request.answer is None:  # not one that had to give way and computes again what it had computed itself
            request.cached = min(request.done, request.prompt_tokens)
        with self._gate:
            self._waiting.remove(request)
            self._running.append(request)
        try:
            request.start(self._model)
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self._fail(request, error)
        return True

    def _will_share(self, request: Request) -> bool:
        """Whether a running request is about to compute more of this one's prompt than is there. What it has computed is, or no use."""
        config = request.config
        if not (self._cache.enabled and config.prefix_cache) or self.handle.recurrent:
            return False
        most = 0
        for other in self._running:
            if other.pending > 1 and other.adapters == request.adapters and other.config.prefix_cache:
                shared = min(common(other.tokens, request.tokens), len(request.tokens) - 1)
                most = max(most, shared if other.done < shared else 0)
        return most >= WORTH_WAITING and most - self._cache.longest(request.tokens, request.adapters) >= WORTH_WAITING

    # ---- one batch

    def _compute(self) -> None:
        """Compute the next batch, and what follows from it."""
        parts = self._composer.compose(self._running, self._fail)
        if not parts:
            return
        began = time.perf_counter()
        computed = self._decode(parts)
        self._composer.ended(computed=computed)
        if not computed:
            return
        alone = len(self._running) == 1 and not self._jobs
        for part in parts:
            part.request.alone &= alone
            self._advance(part)
        self._composer.learn(parts, time.perf_counter() - began)

    def _decode(self, parts: list[Part]) -> bool:
        """Compute the batch; false when it was not computed, and what stood in the way has been dealt with."""
        with self._gate:
            if self._closed or all(part.request.cancelled for part in parts):
                return False
            self._computing = tuple(part.request for part in parts)
        try:
            self.handle.decode(self._composer.batch)
        except Aborted:
            for part in parts:
                self._step_back(part.request)
            return False
        except NoRoom:
            self._make_room()
            return False
        except Exception as error:  # noqa: BLE001 - it is raised again in the callers' threads
            for part in parts:
                self._fail(part.request, error)
            return False
        finally:
            with self._gate:
                self._computing = ()
                self.handle.clear_abort()
        return True

    def _step_back(self, request: Request) -> None:
        """Leave only what REQUEST had before a batch that was not computed to its end."""
        assert request.sequence is not None  # noqa: S101 - running requests have one
        if not self.handle.trim(request.sequence, request.done):
            self._cache.lost(request.sequence)
            request.done = 0

    def _make_room(self) -> None:
        """Free cells: those of kept prompts, else those of the youngest request, which then waits at the head of the queue.

        Where one request is left, the job that is being done gives way to it and waits until it ends.
        """
        if self._cache.in_cells:
            self._cache.park()
            return
        if len(self._running) == 1:
            if self._jobs.give_way():
                return
            error = ContextExceeded(
                f"the KV cache of {self._plan.kv_cells} tokens is too small", hint="use a larger `ctx`"
            )
            self._fail(self._running[0], error)
            return
        youngest = self._running[-1]
        self._leave(youngest, keep=False)
        youngest.done = 0
        self._preempted += 1
        self._full = True
        with self._gate:
            self._waiting.appendleft(youngest)

    def _advance(self, part: Part) -> None:
        """Note what was computed for a request and, when its pending tokens are all in, draw the next."""
        request = part.request
        request.done += part.count - part.guesses
        if part.padding:
            self._step_back(request)
        if request.alone:
            request.exact = request.done
        if part.index is None:
            self._note(request)
            return
        assert request.answer is not None  # noqa: S101 - it has begun
        if request.reads:
            self._note(request)
        try:
            finish = self._draw(request, part)
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self._fail(request, error)
            return
        if finish is not None:
            self._finish(request, finish)

    def _note(self, request: Request) -> None:
        """Let others begin with what REQUEST has computed."""
        if request.config.prefix_cache and request.sequence is not None:
            exact = self._exact_part(request)
            self._cache.computed(request.sequence, request.tokens[: request.done], request.adapters, exact=exact)

    def _exact_part(self, request: Request) -> int:
        return min(request.exact, request.done, request.prompt_tokens)

    def _draw(self, request: Request, part: Part) -> str | None:
        """Draw the next token, and one more for each guess that was right. Return why the answer ends if it does."""
        answer, index, right = request.answer, part.index, 0
        assert answer is not None  # noqa: S101 - it has begun
        assert index is not None  # noqa: S101 - there are logits
        finish = None
        for at in range(part.guesses + 1):
            token, finish = answer.sample(index + at)
            request.tokens.append(token)
            if finish is not None or at == part.guesses or token != request.guesses[at]:
                break
            right += 1
        request.done += right
        if part.guesses:
            answer.drafted += part.guesses
            answer.accepted += right
            self._composer.learn_guesses(request, part.guesses, right)
            request.guesses = []
            if right < part.guesses:
                self._step_back(request)
        return finish

    # ---- other work, and the end

    def _fail_all(self, error: BaseException) -> None:
        """Hand ERROR to everyone: the thread itself cannot go on with what it has."""
        with self._gate:
            waiting = list(self._waiting)
            self._waiting.clear()
        for request in list(self._running):
            self._fail(request, error)
        for request in waiting:
            self._refuse(request, error)
        self._jobs.fail(error)

    def _end_all(self) -> None:
        """Tell those who are still there when the engine is closed."""
        for request in [*self._running, *self._waiting]:
            self._close(request, "cancelled")
        self._jobs.fail(ClosedError(f"{self.name!r} has been closed", hint="load it again"))
