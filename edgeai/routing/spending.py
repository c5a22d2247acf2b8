"""What requests have cost since a time: the sum in the ledger, and what this process has not written there yet."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Protocol

from edgeai.errors import EdgeAIError

__all__ = ["FRESH_S", "Costs", "Spending", "midnight"]

FRESH_S = 5.0
"""How old the sum of the ledger may be; what this process writes is added at once."""
KEPT_MINUTES = 2 * 24 * 60
"""How long this process remembers what it spent."""


class Costs(Protocol):
    """Where costs are written down (history.History)."""

    def cost_usd(self, since: datetime) -> float:
        """Return what requests have cost since SINCE. Raises EdgeAIError where it cannot be read."""


class Spending:
    """A sum that is cheap to ask for, from many threads."""

    def __init__(self, written: Costs) -> None:
        self._written = written
        self._lock = threading.Lock()
        self._own: dict[int, float] = {}
        """What this process spent, by the minute, for when nothing can be read."""
        self._waiting = 0.0
        self._sums: dict[datetime, tuple[float, float]] = {}
        """The sum of the ledger since a time, and when it was read."""

    def began(self, usd: float) -> None:
        """Count USD that is going to be written down."""
        if usd > 0:
            with self._lock:
                self._waiting += usd
                minute = int(time.time() // 60)
                if minute not in self._own:
                    self._own = {old: sum_ for old, sum_ in self._own.items() if old > minute - KEPT_MINUTES}
                self._own[minute] = self._own.get(minute, 0.0) + usd

    def settled(self, usd: float) -> None:
        """Note that USD of what began has been written down."""
        if usd > 0:
            with self._lock:
                self._waiting -= usd
                self._sums = {since: (total + usd, read) for since, (total, read) in self._sums.items()}

    def total(self, since: datetime | None = None) -> float:
        """Return the sum since SINCE, midnight of this day."""
        since = midnight() if since is None else since.astimezone()
        with self._lock:
            total, read = self._sums.get(since, (0.0, -FRESH_S))
        if time.monotonic() - read >= FRESH_S:
            total = self._read(since)
        with self._lock:
            own = sum(usd for minute, usd in self._own.items() if 60 * minute >= since.timestamp())
            return max(total + max(self._waiting, 0.0), own)

    def _read(self, since: datetime) -> float:
        try:
            total = self._written.cost_usd(since)
        except EdgeAIError:  # the writer says what is wrong with the ledger; what is known is what this process spent
            total = 0.0
        with self._lock:
            self._sums = {since: (total, time.monotonic())}
        return total


def midnight() -> datetime:
    """Return when this day began, in local time."""
    return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
