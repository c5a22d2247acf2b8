"""How long a worker process may be silent, and how often it may crash."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff", "Limits", "Patience"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times in seconds. Only a child that has work is watched, by a ping every `tick_s`.

    `silence_s`: without an answer to a ping, after which the child hangs; `start_s`: the same until its first answer. `stall_s`: with
    answers but without progress: no token, no finished call and, on a CPU, no computing; `load_s`: the same while a model loads, which a
    slow disk may make long. `close_s`: for ending politely. After a crash the next start waits `delay_s`, then twice that and so on up to
    `longest_delay_s`; after more than `crashes` in `window_s` there is no next one.
    """

    tick_s: float = 1.0
    silence_s: float = 20.0
    start_s: float = 60.0
    stall_s: float = 120.0
    load_s: float = 600.0
    close_s: float = 5.0
    delay_s: float = 0.1
    longest_delay_s: float = 5.0
    crashes: int = 5
    window_s: float = 60.0


class Patience:
    """Counts for how long a child with work has given no sign of life, or made no progress.

    It counts ticks and does not read a clock: a machine that sleeps, or a terminal that stops both processes, must not make a hang.
    """

    def __init__(self, limits: Limits, *, loading: bool) -> None:
        self._limits, self._loading = limits, loading
        self._silent = self._still = 0
        self._heard = self._progress = 0

    def tick(self, heard: int, progress: int) -> str | None:
        """Return what the child lacks and for how long, in words, when it has been too long; None while there is hope.

        To be called once in every `tick_s` with the number of answers to pings so far and the progress in the last of them.
        """
        limits = self._limits
        if heard == self._heard:
            self._silent += 1
        else:  # only an answer says something about progress
            self._silent, self._still = 0, self._still + 1 if progress == self._progress else 0
        self._heard, self._progress = heard, progress
        for ticks, patience_s, what in (
            (self._silent, limits.silence_s if heard else limits.start_s, "a sign of life"),
            (self._still, limits.load_s if self._loading else limits.stall_s, "progress"),
        ):
            if ticks * limits.tick_s >= patience_s:
                return f"{what} for {patience_s:g} s"
        return None


class Backoff:
    """Says when to start again after a crash, or that there have been too many. `clock` is in seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._crashes: deque[float] = deque()

    def crashed(self) -> float | None:
        """Count a crash; return how many seconds to wait before the next start, None when it would be one too many."""
        now = self._clock()
        self._crashes.append(now)
        while self._crashes[0] <= now - self._limits.window_s:
            self._crashes.popleft()
        count = len(self._crashes)
        if count > self._limits.crashes:
            return None
        return float(min(self._limits.longest_delay_s, self._limits.delay_s * 2 ** (count - 1)))
