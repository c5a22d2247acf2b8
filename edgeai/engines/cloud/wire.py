"""The sockets under the HTTP library: every wait ends with its attempt, every byte is counted."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

from edgeai.engines.cloud.dial import connect, resolve
from edgeai.engines.cloud.tls import describe
from edgeai.engines.cloud.watch import HERE, Watch
from edgeai.errors import CloudFailure

__all__ = ["Backend", "Stream"]

PIECE = 256 << 10
"""Bytes that are written at once, between two looks at the clock."""


class Backend(httpcore2.NetworkBackend):
    """Connects for the attempt that this thread makes (HERE)."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:  # fmt: skip
        """Return a stream to HOST. The time for it is that of the attempt; the other options of the library are not used."""
        watch = _watch()
        sock = connect(resolve(host, port, watch), watch)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(sock, watch)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None  # noqa: ARG002
    ) -> httpcore2.NetworkStream:  # fmt: skip
        """Refuse: an endpoint has a host."""
        raise CloudFailure(f"{path!r} is no host", kind="refused", reason="address")


class Stream(httpcore2.NetworkStream):
    """A connected socket, plain or TLS. It belongs to the attempt that wrote to it last."""

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self._sock = sock
        self._watch = watch
        self._requests = 0
        self._writer: Watch | None = None
        watch.hold(sock)
        with contextlib.suppress(OSError):  # gone already: the first write says so
            watch.remote = _named(sock.getpeername())
        self._remote = watch.remote

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Return what has come, nothing at the end of the stream; raises CloudFailure when the attempt may wait no longer."""
        watch = self._watch
        try:
            self._sock.settimeout(watch.left())
            data = self._sock.recv(max_bytes)
        except TimeoutError:
            failure = watch.late()
        except OSError as error:
            failure = watch.broken(error)
        else:
            if watch.aborted:
                raise watch.stopped()
            watch.count_received(len(data))
            return data
        raise failure

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write all of BUFFER. A connection that broke is the library's WriteError: it then reads what the endpoint said before."""
        if not buffer:
            return
        watch = _watch()
        if watch is not self._writer:
            self._belong_to(watch, tunnel=buffer.startswith(b"CONNECT "))
        view = memoryview(buffer)
        failure: Exception | None = None
        while view and failure is None:
            try:
                self._sock.settimeout(watch.left())
                count = self._sock.send(view[:PIECE])
                watch.sent += count
                view = view[count:]
            except TimeoutError:
                failure = watch.late()
            except OSError:
                failure = watch.stopped() if watch.aborted else httpcore2.WriteError("the connection broke off")
        if failure is not None:
            raise failure

    def _belong_to(self, watch: Watch, *, tunnel: bool) -> None:
        self._watch = watch
        watch.remote = self._remote
        watch.hold(self._sock)
        if not tunnel:  # a proxy that is asked for a way is part of connecting
            self._writer = watch
            watch.begin(reused=self._requests > 0)
            self._requests += 1

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None  # noqa: ARG002
    ) -> httpcore2.NetworkStream:  # fmt: skip
        """Return the stream in TLS, its certificate verified; nothing is written in the clear before."""
        watch = _watch()
        handle = self._sock.dup()  # wrapping takes the socket's handle away, and `abort` needs one meanwhile
        try:
            watch.hold(handle)
            self._sock.settimeout(watch.left())
            sock = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
            return Stream(sock, watch)
        except TimeoutError:
            failure = watch.late()
        except OSError as error:
            reason, said, hint = describe(error, server_hostname or watch.host)
            failure = CloudFailure(said, kind="connection", reason=reason, hint=hint)
            failure = watch.stopped() if watch.aborted else failure
        finally:
            watch.release(handle)
            handle.close()
        self._sock.close()
        raise failure

    def get_extra_info(self, info: str) -> Any:
        """Return what the library asks of a stream: its TLS state, and whether bytes wait that nobody asked for."""
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        return is_readable(self._sock) if info == "is_readable" else None


def is_readable(sock: socket.socket) -> bool:
    """Whether a read of SOCK would return at once; of one that is closed, too."""
    handle = sock.fileno()
    if handle < 0:
        return True
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([handle], [], [], 0)[0])
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def _watch() -> Watch:
    watch = HERE.watch
    if watch is None:
        raise RuntimeError("a connection is used outside an attempt")
    return watch


def _named(peer: Any) -> str:
    host, port = peer[0], peer[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
