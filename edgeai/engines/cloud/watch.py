"""The bounds of one attempt at its socket, what passed through it, and how it is stopped from another thread."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Literal

from edgeai.config import Timeouts
from edgeai.errors import CloudFailure

__all__ = ["HERE", "Watch"]

Phase = Literal["connect", "first", "stream", "rest"]


class Watch:
    """How long one attempt at HOST may wait, in time.monotonic; one thread waits, any may `abort`.

    `hard` bounds everything: the time of an attempt, the caller's DEADLINE, MAX_SECONDS of the request. `soft` bounds the phase: the
    connection, the first token, the pause between two pieces.
    """

    def __init__(
        self, host: str, timeouts: Timeouts, *, deadline: float | None = None, first_token_s: float | None = None,
        max_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.host = host
        self.timeouts = timeouts
        self.first_token_s = timeouts.first_token_s if first_token_s is None else first_token_s
        self._deadline = deadline
        self._max_seconds = max_seconds
        self.start()
        self.sent = 0
        self.received = 0
        self.remote: str | None = None
        self.aborted = False
        self.requests = 1
        self.repeats = True
        """How often the request was written, and whether it may be written again to a fresh connection."""
        self.reused = False
        """Whether the connection had served a request before; `stale` where it then ended before any byte of an answer."""
        self._received_before = 0
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self._window: tuple[float, int] | None = None
        self._waited = 0.0
        self._asked = 0.0

    def start(self) -> None:
        """Begin to count the time, from now."""
        self.started = now = time.monotonic()
        bounds = [(now + self.timeouts.total_s, "total")]
        if self._deadline is not None:
            bounds.append((self._deadline, "deadline"))
        if self._max_seconds is not None:
            bounds.append((now + self._max_seconds, "max_seconds"))
        self.hard, self.hard_reason = min(bounds)
        self.phase: Phase = "connect"
        self.soft = now + min(self.timeouts.connect_s, self.first_token_s)

    def left(self) -> float:
        """Return how long may still be waited. Raises CloudFailure where that is nothing, or after `abort`."""
        if self.aborted:
            raise self.stopped()
        self._asked = now = time.monotonic()
        found = (self.soft if self.soft < self.hard else self.hard) - now
        if found <= 0:
            raise self.late()
        return found

    def begin(self, *, reused: bool) -> None:
        """Note that the request is about to be written to a connection; the wait for the first token has begun with the attempt."""
        self.reused = reused
        self._received_before = self.received
        if self.phase == "connect":
            self.phase = "first"
            self.soft = self.started + self.first_token_s

    def again(self) -> None:
        """Note that another connection is made for the same request."""
        self.phase = "connect"
        self.soft = min(time.monotonic() + self.timeouts.connect_s, self.started + self.first_token_s)

    @property
    def stale(self) -> bool:
        """Whether the connection was an old one that has not given a byte."""
        return self.reused and self.received == self._received_before

    def moved(self) -> None:
        """Note that something of the answer has come: the next must come within the pause that is allowed."""
        now = time.monotonic()
        if self.phase != "rest":
            self.phase = "stream"
            self.soft = now + self.timeouts.stall_s
        if self._window is None:
            self._window = (self._waited, self.received)
        elif self._waited - self._window[0] >= self.timeouts.stall_s:
            self._check_speed(*self._window)

    def _check_speed(self, waited: float, received: int) -> None:
        """Raise CloudFailure where too little came since WAITED and RECEIVED; time in which the reader did other things does not count."""
        took = self._waited - waited
        speed, least = (self.received - received) / took, self.timeouts.least_bytes_s
        if speed < least:
            raise CloudFailure(
                f"{self.host} sent {speed:.1f} bytes a second over {took:.1f} s, less than {least:g}", kind="timeout",
                reason="slow", hint="lower timeouts.least_bytes_s, or ask another endpoint",
            )  # fmt: skip
        self._window = (self._waited, self.received)

    def only(self, seconds: float, phase: Phase = "rest") -> None:
        """Allow SECONDS from now for what is left, and no more than before."""
        self.soft = min(time.monotonic() + seconds, math.inf if self.phase == "stream" else self.soft)
        self.phase = phase

    def count_received(self, size: int) -> None:
        """Count SIZE bytes, which came after the wait that `left` allowed.

        Raises CloudFailure beyond the most that an answer may have, its headers and framing included.
        """
        self.received += size
        self._waited += time.monotonic() - self._asked
        if self.received > self.timeouts.max_bytes:
            raise CloudFailure(
                f"{self.host} sent more than {self.timeouts.max_bytes} bytes", kind="malformed", reason="size",
                hint="raise timeouts.max_bytes, or ask another endpoint",
            )  # fmt: skip

    def late(self) -> CloudFailure:
        """Return the failure of a wait that has used up its time."""
        if self.aborted:
            return self.stopped()
        if self.hard <= self.soft:
            said = {
                "total": f"the answer of {self.host} took longer than {self.timeouts.total_s:g} s",
                "deadline": f"{self.host} had not answered in full when the caller's time was over",
                "max_seconds": f"{self.host} had not answered in full within max_seconds",
            }[self.hard_reason]
            return CloudFailure(said, kind="timeout", reason=self.hard_reason, hint="allow more time")
        if self.phase == "connect":
            said = f"no connection to {self.host} within {self.soft - self.started:.3g} s"
            return CloudFailure(said, kind="connection", reason="connect-timeout", hint="is the network there?")
        if self.phase == "first":
            said = f"{self.host} gave nothing within {self.first_token_s:g} s"
            return CloudFailure(said, kind="timeout", reason="first-token", hint="raise timeouts.first_token_s")
        said = f"{self.host} stopped in the middle of its answer for {self.timeouts.stall_s:g} s"
        return CloudFailure(
            said, kind="timeout", reason="stall", hint="raise timeouts.stall_s, or ask another endpoint"
        )

    def broken(self, error: OSError) -> CloudFailure:
        """Return the failure of a socket that raised ERROR."""
        if self.aborted:
            return self.stopped()
        said = f"the connection to {self.host} broke off ({error.strerror or type(error).__name__})"
        return CloudFailure(said, kind="connection", reason="reset", hint="ask again")

    def stopped(self) -> CloudFailure:
        """Return the failure of what nobody wants any more."""
        return CloudFailure(f"the request to {self.host} was given up", kind="aborted", reason="aborted")

    def hold(self, sock: socket.socket) -> None:
        """Keep SOCK as the one that `abort` shuts down."""
        with self._lock:
            self._held = sock
            aborted = self.aborted
        if aborted:
            _shut(sock)

    def release(self, sock: socket.socket | None = None) -> None:
        """Forget SOCK, or whatever is held: from now on it may belong to another attempt."""
        with self._lock:
            if sock is None or self._held is sock:
                self._held = None

    def abort(self) -> None:
        """Make whatever waits, or will wait, raise CloudFailure of the kind `aborted`."""
        with self._lock:
            self.aborted = True
            if self._held is not None:
                _shut(self._held)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed, or was never connected
        # Not SSLSocket.shutdown, which takes the TLS state away from under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Here(threading.local):
    """The attempt for which this thread uses the pool of connections, which many attempts share."""

    watch: Watch | None = None


HERE = _Here()
