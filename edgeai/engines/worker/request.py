"""The requests to a worker process, from the call that makes one to the last thing that is heard of it."""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from edgeai.engines.streaming import Channel
from edgeai.engines.worker.frames import BrokenStream, Frame, pack
from edgeai.errors import EdgeAIError
from edgeai.types import Chunk, GenerationConfig, Timings, Usage

__all__ = ["OpenRequests", "Request"]

LATE_S = 1.0
"""Seconds that a child has to end a request whose time is over, before the parent does."""
ATTEMPTS = 3
"""How often a request is sent that no child had begun when it died."""


class Request:
    """A call of a method, or a generation whose chunks go to `chunks`.

    `answer` gets what the call returned or raised; of a generation, None as soon as the child has taken it. `begun` is a request that a
    child has started to work on: it is not done again when the child dies, since what it did may be what killed the child.
    """

    def __init__(self, number: int, kind: Literal["call", "generate"], value: tuple[Any, ...]) -> None:
        self.id = number
        self.chunks = Channel() if kind == "generate" else None
        self.answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.accepted = self.sent = self.begun = self.cancelled = False
        self.attempts = 0
        self._made = time.monotonic()
        self._kind, self._value = kind, value
        self._frame = pack(kind, number, value)

    def next_frame(self) -> bytes:
        """Return the frame that asks the next child for this; of a time limit, what is left of it."""
        self.sent, self.begun = True, False
        self.attempts += 1
        if self.attempts == 1 or self._kind == "call":
            return self._frame
        prompt, config = self._value
        if (left := self._left_s) is None:
            return self._frame
        return pack(self._kind, self.id, (prompt, replace(config, max_seconds=max(1e-3, left))))

    @property
    def _left_s(self) -> float | None:
        config = self._value[1] if self._kind == "generate" else None
        if not isinstance(config, GenerationConfig) or config.max_seconds is None:
            return None
        return config.max_seconds - (time.monotonic() - self._made)

    @property
    def overdue(self) -> bool:
        """Whether its time is over and the child has not said so, as one that is stopped does not."""
        left = self._left_s
        return left is not None and left < -LATE_S

    def accept(self, value: Any) -> None:
        """Pass on what the call returned, or that the generation has been taken; nothing when that is known already."""
        if not self.accepted:
            self.accepted = True
            self.answer.put(value)

    def fail(self, error: BaseException) -> None:
        """End with ERROR, where the caller waits for it."""
        if self.chunks is not None and self.accepted:
            self.chunks.put(error)
        else:
            self.answer.put(error)

    def end(self, reason: Literal["cancelled", "timeout"]) -> None:
        """End as a generation of which nothing more is known."""
        self.accept(None)
        if self.chunks is not None:
            spent = time.monotonic() - self._made
            timings = Timings(load_s=0.0, ttft_s=None, prompt_tok_s=None, gen_tok_s=None, total_s=spent, queue_s=spent)
            usage = Usage(prompt_tokens=0, completion_tokens=0)
            self.chunks.put(Chunk(finish_reason=reason, usage=usage, timings=timings))


class OpenRequests:
    """The requests that have not ended. One thread hears the child and one buries it, never both; callers add and cancel under a lock."""

    def __init__(self) -> None:
        self._open: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Request]:
        """The requests in the order they came in."""
        return iter(sorted(self._open.values(), key=lambda request: request.id))

    def add(self, request: Request) -> None:
        """Keep REQUEST until it ends."""
        self._open[request.id] = request

    def cancel(self, request: Request) -> bool:
        """Note that nobody wants REQUEST; return whether the child must be told. One that it does not have ends at once."""
        if request.cancelled or request.id not in self._open:
            return False
        request.cancelled = True
        if request.chunks is None or not request.sent:
            self._drop(request, None)
        return request.sent

    def end_overdue(self) -> list[Request]:
        """End what is overdue, and return it."""
        found = [request for request in self if request.overdue]
        for request in found:
            if self._open.pop(request.id, None) is not None:
                request.end("timeout")
        return found

    def hear(self, frame: Frame, *, load_s: float) -> None:
        """Pass on what the child says of a request. Raises BrokenStream for what cannot be said."""
        if frame.kind == "chunks":
            for number, item in frame.value:
                self._on_chunk(self._open.get(number), item, load_s)
            return
        request = self._open.get(frame.id)
        if frame.kind not in {"begun", "answer", "error"}:
            raise BrokenStream(f"{frame.kind!r} is no message of this version")
        if request is None:
            return  # it has been cancelled
        if frame.kind == "begun":
            request.begun = True
        elif isinstance(frame.value, Exception):
            self._drop(request, frame.value)
        else:
            if request.chunks is None:
                del self._open[request.id]
            request.accept(frame.value)

    def _on_chunk(self, request: Request | None, item: str | Chunk | Exception | None, load_s: float) -> None:
        if request is None or request.chunks is None:
            return
        if isinstance(item, Chunk) and item.kind == "warning" and not request.begun:
            if request.attempts == 1:  # what the engine says before it begins, it says to every child
                request.chunks.put(item)
            return
        request.begun = True
        if item is None:
            request.chunks.begin()
            return
        if isinstance(item, str):
            request.chunks.put(Chunk(text=item))
        elif isinstance(item, Exception):
            self._drop(request, item)
        else:
            if item.finish_reason is not None:
                if self._open.pop(request.id, None) is None:
                    return  # it was overdue
                if item.timings is not None:
                    item = replace(item, timings=replace(item.timings, load_s=load_s))
            request.chunks.put(item)

    def child_died(self, error: EdgeAIError, *, down: EdgeAIError | None, useless: bool) -> None:
        """End with ERROR what the child had begun; keep the rest for the next one, unless all are DOWN or waiting is USELESS."""
        for request in self:
            if request.cancelled and not request.begun:
                self._drop(request, None)
            elif request.begun or useless or request.attempts >= ATTEMPTS:
                self._drop(request, error)
            elif down is not None:
                self._drop(request, down)
            else:
                request.sent = False

    def end_all(self, error: EdgeAIError, *, refusal: EdgeAIError) -> None:
        """End everything: what had begun with ERROR, what waited for a child as cancelled, what was not accepted yet with REFUSAL."""
        for request in self:
            self._drop(request, error if request.begun else None if request.accepted else refusal)

    def _drop(self, request: Request, error: Exception | None) -> None:
        self._open.pop(request.id, None)
        if error is None:
            request.end("cancelled")
        else:
            request.fail(copy.copy(error))  # one error raised in many threads would collect all their tracebacks
