"""The circuit breaker of one endpoint: after failures nobody asks it for a while, and then one request tries it again."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, get_args

from edgeai.errors import CloudFailure, FailureKind

__all__ = ["Breaker"]

IN_A_ROW = 5
"""Failures one after the other that open it; Envoy's `consecutive_5xx` has the same default."""
WINDOW_S, WINDOW_LEAST, WINDOW_SHARE = 60.0, 10, 0.5
"""It opens, too, when more than this share of at least so many requests within the window failed."""
FIRST_S, LONGEST_S = 30.0, 600.0
"""How long it stays open the first time; each time that the probe fails twice as long, up to the longest."""
QUOTA_S = 24 * 3600.0
"""An account that has run out is not asked again today."""
COOL_S = 5.0
"""A rate limit without a time."""

Weight = Literal["fault", "nothing"]
COUNTED: dict[FailureKind, Weight] = {
    "server": "fault", "connection": "fault", "timeout": "fault", "malformed": "fault", "captive": "fault",
    "refused": "nothing", "context": "nothing", "aborted": "nothing",
}  # fmt: skip
"""What says something about the health of an endpoint. The other kinds are times that it stays shut: see `failed`."""
assert set(COUNTED) | {"credentials", "quota", "rate_limited"} == set(get_args(FailureKind))  # noqa: S101


class Breaker:
    """Closed: requests pass. Open: none does, until a time. Then half open: one probe passes, and its outcome decides.

    CLOCK is monotonic, in seconds. Credentials that were refused keep it open for good: only another configuration mends them.
    Any thread may call it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._seen: deque[tuple[float, bool]] = deque()
        self._until = -math.inf
        self._next_s = FIRST_S
        self._probing = False
        self._opened = False
        self.why = ""

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """What a request that came now would meet; a probe that runs keeps the others out."""
        with self._lock:
            return self._state()

    @property
    def wait_s(self) -> float:
        """How long it stays open, in seconds: 0 where it is not."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._opened else 0.0

    def admit(self) -> bool:
        """Whether a request may go now; True in the half open state makes it the probe, which must report how it ended."""
        with self._lock:
            state = self._state()
            if state == "half_open":
                self._probing = True
            return state != "open"

    def succeeded(self) -> None:
        """Note an answer."""
        with self._lock:
            self._note(ok=True)
            self._in_a_row, self._probing, self._opened, self._next_s, self.why = 0, False, False, FIRST_S, ""

    def failed(self, failure: CloudFailure) -> None:
        """Note FAILURE, which may open it."""
        with self._lock:
            probing, self._probing = self._probing, False
            self.why = failure.kind  # no words of the endpoint, which may quote another request
            if failure.kind == "credentials":
                self._open(math.inf)
            elif failure.kind == "quota":
                self._open(max(QUOTA_S, failure.retry_after_s or 0.0))
            elif failure.kind == "rate_limited":
                self._open(COOL_S if failure.retry_after_s is None else failure.retry_after_s)
            elif COUNTED[failure.kind] == "fault":
                self._count(probing=probing)

    def _count(self, *, probing: bool) -> None:
        self._note(ok=False)
        self._in_a_row += 1
        failures = sum(not ok for _, ok in self._seen)
        many = len(self._seen) >= WINDOW_LEAST and failures > WINDOW_SHARE * len(self._seen)
        if probing or self._in_a_row >= IN_A_ROW or many:
            self._open(self._next_s)
            self._next_s = min(LONGEST_S, 2 * self._next_s)

    def _open(self, seconds: float) -> None:
        self._opened = True
        self._until = self._clock() + seconds

    def _note(self, *, ok: bool) -> None:
        now = self._clock()
        self._seen.append((now, ok))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()

    def _state(self) -> Literal["closed", "open", "half_open"]:
        if not self._opened:
            return "closed"
        return "open" if self._probing or self._clock() < self._until else "half_open"
