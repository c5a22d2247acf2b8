"""What the scorer does to this process and sees of it while it asks: connections that leave the machine, logs, clocks, names, proxies."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from edgeai.chaos.lab import Lab

__all__ = ["Logs", "connections", "patched"]

DAY_S = 86400.0
HANG_S = 10.0
"""The longest that a resolver without an answer keeps its thread."""

_outside: list[str] | None = None
_hooked = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _outside is None or event not in ("socket.connect", "socket.sendto"):
        return
    address = arguments[1]
    if not isinstance(address, tuple):
        return  # a socket in the file system
    host = str(address[0])
    try:
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        _outside.append(f"{host}:{address[1]}")


@contextlib.contextmanager
def connections() -> Iterator[list[str]]:
    """Collect every address outside of this machine that this process connects to (Python's audit events), while the block lasts."""
    global _outside, _hooked
    if not _hooked:
        sys.addaudithook(_note)
        _hooked = True
    found: list[str] = []
    _outside = found
    try:
        yield found
    finally:
        _outside = None


class Logs(logging.Handler):
    """Keeps the text of every record of every logger, while the `with` block lasts."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._level = logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of RECORD."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> Logs:
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._level)


@contextlib.contextmanager
def patched(patch: str | None, lab: Lab) -> Iterator[None]:
    """Do what PATCH (faults.Patch) says to this process while the block lasts; None is nothing."""
    if patch is None:
        yield
    elif patch.startswith("clock"):
        with _moved_clock(lab, DAY_S if patch == "clock-forward" else -DAY_S):
            yield
    elif patch == "resolver-hang":
        with _hanging_resolver():
            yield
    else:
        place = f"http://127.0.0.1:{lab.ports['plain']}" if patch == "dead-proxy" else lab.urls["proxy"]
        names = ("ALL_PROXY",) if patch == "all-proxy" else ("HTTP_PROXY", "HTTPS_PROXY")
        wanted = {key: place for name in names for key in (name, name.lower())}
        with mock.patch.dict(os.environ, wanted):
            for name in ("NO_PROXY", "no_proxy"):
                os.environ.pop(name, None)
            yield


@contextlib.contextmanager
def _moved_clock(lab: Lab, seconds: float) -> Iterator[None]:
    """Let the wall clock jump once some text of an answer is out. time.monotonic() stays, as it does in a kernel whose time is set."""
    moved = threading.Event()
    lab.tell("words", moved.set)
    real = time.time

    def now() -> float:
        return real() + (seconds if moved.is_set() else 0.0)

    with mock.patch("time.time", now):
        yield


@contextlib.contextmanager
def _hanging_resolver() -> Iterator[None]:
    """Let names under resolver-hang.invalid be looked up until the block ends."""
    real, over = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if "resolver-hang" in (host.decode() if isinstance(host, bytes) else str(host)):
            over.wait(HANG_S)
        return real(host, *arguments, **options)

    with mock.patch("socket.getaddrinfo", look_up):
        try:
            yield
        finally:
            over.set()
