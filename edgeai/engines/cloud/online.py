"""Whether the configured endpoints can be reached: known from what attempts met, else asked of those hosts and of nobody else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeai.config import Timeouts
from edgeai.engines.cloud.dial import connect, resolve
from edgeai.engines.cloud.endpoint import Endpoint
from edgeai.engines.cloud.watch import Watch
from edgeai.errors import CloudFailure
from edgeai.fetch import is_offline

__all__ = ["Network", "Online", "has_interface", "probe"]

Online = Literal["online", "degraded", "offline", "forced_offline"]
TTL_S = 10.0
"""How long what is known of a host counts."""
PROBE_S = 1.0
NEVER_SENT = {"offline", "no-key", "deadline", "max_seconds", "aborted"}
"""Reasons of failures that tell nothing of the network."""

Where = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Known:
    reached: bool
    at: float


def probe(where: Where) -> bool:
    """Whether a connection to WHERE, host and port, can be made within a second; nothing is sent over it."""
    watch = Watch(where[0], Timeouts(connect_s=PROBE_S, total_s=PROBE_S))
    try:
        connect(resolve(*where, watch), watch).close()
    except CloudFailure:
        return False
    return True


def has_interface() -> bool:
    """Whether a network interface beside the loopback is up; no packet is sent to find out."""
    import psutil

    return any(found.isup and not name.startswith("lo") for name, found in psutil.net_if_stats().items())


class Network:
    """The network as far as ENDPOINTS need it. Attempts at them are heard; CLOCK is in seconds and only goes on.

    `offline`: none of their hosts can be reached, or a page of a network that wants a login came in place of all of them. `degraded`: some
    of them. `forced_offline`: EDGEAI_OFFLINE is set.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic, ttl_s: float = TTL_S,
        ask: Callable[[Where], bool] = probe, interface: Callable[[], bool] = has_interface,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._hosts: dict[Where, bool] = {endpoint.reaches: endpoint.loopback for endpoint in endpoints}
        self._clock = clock
        self._ttl = ttl_s
        self._ask = ask
        self._interface = interface
        self._environment = os.environ if environment is None else environment
        self._known: dict[Where, _Known] = {}
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        for endpoint in endpoints:
            endpoint.listeners.append(self.hear)

    def hear(self, endpoint: Endpoint, failure: CloudFailure | None) -> None:
        """Note how an attempt at ENDPOINT ended."""
        if failure is not None and failure.reason in NEVER_SENT:
            return
        lost = failure is not None and (failure.kind in ("connection", "captive"))
        if lost and failure is not None and failure.reason == "reset" and failure.committed:
            lost = False  # it was there; what follows will tell
        self._note(endpoint.reaches, reached=not lost)

    def watch(self, endpoint: Endpoint) -> None:
        """Hear of attempts at ENDPOINT, too."""
        with self._lock:
            self._hosts[endpoint.reaches] = endpoint.loopback
        endpoint.listeners.append(self.hear)

    def known(self) -> Online:
        """Return the state by what is known, without asking anybody; hosts of which nothing is known count as reached."""
        if is_offline(self._environment):
            return "forced_offline"
        return self._judge()

    def state(self) -> Online:
        """Return the state; hosts that could not be reached are connected to again, once in TTL_S, for a second at most.

        One caller asks; others take what was known before meanwhile.
        """
        if is_offline(self._environment):
            return "forced_offline"
        if stale := self._stale():
            if not self._asking.acquire(blocking=False):
                return self._judge(old=True)
            try:
                up = all(self._hosts[where] for where in stale) or self._interface()
                for where in self._stale() if up else stale:
                    self._look_at(where, up=up)
            finally:
                self._asking.release()
        return self._judge()

    def _look_at(self, where: Where, *, up: bool) -> None:
        """Find out about WHERE: the next attempt tells of a host that did not fail, without a connection made for that alone."""
        if not up and not self._hosts[where]:
            self._note(where, reached=False)
        elif where in self._known and not self._known[where].reached:
            self._note(where, reached=self._ask(where))

    def _note(self, where: Where, *, reached: bool) -> None:
        with self._lock:
            self._known[where] = _Known(reached, self._clock())

    def _stale(self) -> list[Where]:
        now = self._clock()
        with self._lock:
            return [where for where in self._hosts if not self._fresh(where, now)]

    def _fresh(self, where: Where, now: float) -> bool:
        known = self._known.get(where)
        return known is not None and now - known.at < self._ttl

    def _judge(self, *, old: bool = False) -> Online:
        """Return the state by what is known; OLD knowledge counts too where it is being renewed."""
        now = self._clock()
        with self._lock:
            reached = [
                self._known[where].reached if where in self._known and (old or self._fresh(where, now)) else True
                for where in self._hosts
            ]
        if all(reached):  # nobody to reach is no fault of the network
            return "online"
        return "degraded" if any(reached) else "offline"
