"""From a name to a connected socket, within the time of an attempt and not a moment longer."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from edgeai.engines.cloud.address import is_address, is_forbidden, is_loopback
from edgeai.engines.cloud.watch import Watch
from edgeai.errors import CloudFailure

__all__ = ["connect", "resolve"]

Found = tuple[int, tuple[Any, ...]]
"""Family of an address, and the address as sockets have it."""
SLICE_S = 0.025
"""How often a wait looks whether it is still wanted."""
NEXT_S = 0.25
"""After so long without a connection the next address is tried beside it (RFC 8305, section 8, Connection Attempt Delay)."""
IN_PROGRESS = {errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK)}


@dataclass
class _Lookup:
    """One question to the resolver, which cannot be stopped; all who ask the same wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    found: list[Found] = field(default_factory=list)
    error: OSError | None = None


_lookups: dict[tuple[str, int], _Lookup] = {}
_lock = threading.Lock()


def resolve(host: str, port: int, watch: Watch) -> list[Found]:
    """Return the addresses of HOST, families in turn as RFC 8305 has them; raises CloudFailure, at WATCH's end at the latest.

    A name of this machine gives loopback addresses only, and no name gives an address that no endpoint has.
    """
    lookup = _ask(host, port)
    while not lookup.done.wait(min(SLICE_S, watch.left())):
        pass
    if lookup.error is not None:
        raise CloudFailure(
            f"the name {host!r} cannot be resolved ({lookup.error.strerror or lookup.error})", kind="connection",
            reason="resolve", hint="is the network there, and base_url right?",
        )  # fmt: skip
    found = [item for item in lookup.found if not is_forbidden(item[1][0])]
    if is_loopback(host):
        found = [item for item in found if is_loopback(item[1][0])]
    if not found:
        said = f"the name {host!r} leads to no address that an endpoint may have"
        raise CloudFailure(said, kind="refused", reason="address", hint="check base_url and the resolver")
    return _in_turn(found)


def _ask(host: str, port: int) -> _Lookup:
    """Return the question of HOST, which another thread asks; an address is none, and costs no thread."""
    if is_address(host):
        lookup = _Lookup()
        _look_up(host, port, lookup)
        return lookup
    with _lock:
        found = _lookups.get((host, port))
        if found is None:
            found = _lookups[host, port] = _Lookup()
            threading.Thread(target=_look_up, args=(host, port, found), daemon=True, name="edgeai-resolve").start()
    return found


def _look_up(host: str, port: int, lookup: _Lookup) -> None:
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if (family, address) not in lookup.found:
                lookup.found.append((family, address))
    except OSError as error:
        lookup.error = error
    except UnicodeError:  # a label that is too long for DNS
        lookup.error = OSError("not a name")
    finally:
        with _lock:
            _lookups.pop((host, port), None)
        lookup.done.set()


def _in_turn(found: list[Found]) -> list[Found]:
    """Return FOUND with the families alternating, the first one's first."""
    first = [item for item in found if item[0] == found[0][0]]
    other = [item for item in found if item[0] != found[0][0]]
    turns: list[Found] = []
    while first or other:
        turns += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return turns


def connect(found: list[Found], watch: Watch) -> socket.socket:
    """Return a socket that is connected to the first of the addresses FOUND that answers; raises CloudFailure."""
    waiting, last = list(found), OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    pending: list[socket.socket] = []
    with selectors.DefaultSelector() as selector:
        try:
            next_at = 0.0
            while waiting or pending:
                if waiting and (not pending or time.monotonic() >= next_at):
                    family, address = waiting.pop(0)
                    last = _start(family, address, selector, pending) or last
                    next_at = time.monotonic() + NEXT_S
                for key, _ in selector.select(min(SLICE_S, watch.left())) if pending else ():
                    sock: socket.socket = key.fileobj  # type: ignore[assignment]
                    selector.unregister(sock)
                    pending.remove(sock)
                    if (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) == 0:
                        return sock
                    sock.close()
                    last = OSError(code, os.strerror(code))
                    next_at = 0.0
        finally:
            for sock in pending:
                with contextlib.suppress(KeyError):
                    selector.unregister(sock)
                sock.close()
    raise _unreachable(last, watch)


def _start(
    family: int, address: tuple[Any, ...], selector: selectors.BaseSelector, pending: list[socket.socket]
) -> OSError | None:
    """Begin to connect to ADDRESS; return why that cannot be."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return error
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code != 0 and code not in IN_PROGRESS:
        sock.close()
        return OSError(code, os.strerror(code))
    pending.append(sock)
    selector.register(sock, selectors.EVENT_WRITE)
    return None


def _unreachable(error: OSError, watch: Watch) -> CloudFailure:
    if error.errno == errno.ECONNREFUSED:
        said = f"nothing listens at {watch.host} (connection refused)"
        return CloudFailure(said, kind="connection", reason="refused", hint="is the endpoint running?")
    said = f"{watch.host} cannot be reached ({error.strerror or error})"
    return CloudFailure(said, kind="connection", reason="unreachable", hint="is the network there?")
