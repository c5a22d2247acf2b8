"""Work on a model's context that is no request: what it must offer to be done between the batches of requests."""

from __future__ import annotations

import queue
from typing import Protocol, TypeVar

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.handle import Handle

__all__ = ["Job", "ResultJob"]

T = TypeVar("T")


class Job(Protocol):
    """Work on the context that is no request: scores, states. It uses the sequence `handle.scratch`, under its adapters."""

    adapters: Selection

    def step(self, handle: Handle) -> bool:
        """Do a part of it, at most one llama_decode; return True when there is no more to do."""

    def give_way(self) -> None:
        """Begin anew what the scratch sequence had been for: a request needed its cells."""

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits for the result; there will be none."""


class ResultJob(Job, Protocol[T]):
    """A Job that somebody waits for: the result or the error comes through `result`. Once `cancelled`, its next step is its last."""

    result: queue.SimpleQueue[T | BaseException]
    cancelled: bool
