"""Whether an endpoint that failed is asked again, and when."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from edgeai.errors import CloudFailure, FailureKind

__all__ = ["RetryBudget", "wait_before_retry"]

BASE_S, CAP_S = 0.4, 4.0
"""Back-off: a random time below BASE_S · 2ⁿ, at most CAP_S ("full jitter": Brooker, Exponential Backoff And Jitter, AWS 2015)."""
PATIENCE_S = 120.0
"""A Retry-After beyond it is not waited for, as in openai-python."""
AGAIN: dict[FailureKind, int] = {"server": 10, "rate_limited": 10, "malformed": 1, "connection": 1}
"""How often each kind may be tried again, before the attempts of the configuration end it. The kinds that are missing: never."""
ONCE = frozenset({408, 409, 425})
"""Statuses that say "again", and that would say the same the second time."""
ONLY_LAST: frozenset[FailureKind] = frozenset({"connection"})
"""Kinds that are tried again only where nobody else is left: another candidate is quicker than a dead line. A reset is no dead line."""


class RetryBudget:
    """Retries as a share of requests, so that a struggling endpoint does not get several times its traffic.

    A token bucket: every request adds SHARE of a token, up to MOST; a retry takes one. It begins full, so the first requests may retry.
    """

    def __init__(self, share: float, most: float = 10.0) -> None:
        self._share, self._most = share, most
        self._tokens = most if share else 0.0
        self._lock = threading.Lock()

    def request(self) -> None:
        """Note a request."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether a retry is allowed now; if so it is paid for."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


def wait_before_retry(
    failure: CloudFailure, tries: int, *, most_tries: int, left_s: float, others: bool, jitter: Callable[[], float] = random.random
) -> float | None:  # fmt: skip
    """Return how long to wait before asking an endpoint again, in seconds; None where it is not to be asked.

    TRIES were made, of MOST_TRIES that are allowed; LEFT_S is what is left of the deadline, and OTHERS whether another candidate could
    answer instead. A time that the endpoint asks for is kept or not waited for at all: it is longer than a back-off only where nobody
    else is left. JITTER gives numbers from 0 to 1.
    """
    again = 1 if failure.status in ONCE else AGAIN.get(failure.kind, 0)
    if (
        failure.committed
        or failure.should_retry is False
        or tries > again
        or tries >= most_tries
        or (others and failure.kind in ONLY_LAST and failure.reason != "reset")
    ):
        return None
    wait = jitter() * min(CAP_S, BASE_S * 2 ** (tries - 1))
    if failure.retry_after_s is not None:
        if failure.retry_after_s > (CAP_S if others else PATIENCE_S):
            return None
        wait = max(wait, failure.retry_after_s)
    return wait if wait < left_s else None
