"""One connection of the lab, close enough to the socket to break it in every way; and the exchange of one request over it."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from edgeai.chaos import answers

__all__ = ["Behaviour", "Exchange", "Left", "Seen", "Wire"]

MAX_HEAD = 1 << 20
"""A request's head is cut here: the lab is tried by gateways too."""
SENT_BY_RST = 0.03
"""Seconds between the last byte and a reset, so that the client reads what it was sent: a reset may overtake it."""


class Left(Exception):
    """The client has gone."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the lab saw of one request. Times are those of time.monotonic(); `sent_bytes` is what the kernel took of the answer.

    `listener` names where it came ("http", "other", "tls-good" …), `fault` what was served. What is no HTTP has no method and its bytes in
    `body`. `left_at`: when the client closed the connection, None where it did not, or the lab did so first.
    """

    listener: str
    at: float
    method: str = ""
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    fault: str = "good"
    sent_bytes: int = 0
    left_at: float | None = None
    ended_at: float | None = None
    reused: bool = False

    def header(self, name: str) -> str | None:
        """Return the header NAME, in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def key(self) -> str | None:
        """What came as a key, under any of the names that endpoints use."""
        found = (self.header(name) for name in ("authorization", "x-api-key", "api-key", "proxy-authorization"))
        return next((value for value in found if value), None)

    @property
    def open(self) -> bool:
        """Whether the exchange goes on: neither has the lab ended it nor the client left."""
        return self.ended_at is None and self.left_at is None

    @property
    def asked(self) -> Mapping[str, Any]:
        """The body as JSON, empty where it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        messages = self.asked.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else {}
        content = last.get("content", "") if isinstance(last, dict) else ""
        if isinstance(content, list):  # the parts of a message, as some clients write a text
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return str(content)


class Wire(asyncio.Protocol):
    """A connection that a client made; SERVE is run on it until it ends."""

    def __init__(self, serve: Callable[[Wire], Coroutine[Any, Any, None]], listener: str) -> None:
        self.listener = listener
        self.left_at: float | None = None
        self.closing = False
        self.held = False
        self.requests = 0
        self.sent_bytes = 0
        self._serve = serve
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        self.transport = cast(asyncio.Transport, transport)
        # A small buffer: `sent_bytes` then says what the kernel took, and a body without an end takes no memory here.
        self.transport.set_write_buffer_limits(high=1 << 16)
        self.task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        """Keep DATA until it is read."""
        self._buffer += data
        self._news.set()

    def eof_received(self) -> bool:
        """Note that the client has closed the connection."""
        self._leave()
        return False  # the transport closes itself: no client of HTTP sends half a connection's end and waits

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Note that the connection is no more."""
        self._leave()
        self._writable.set()

    def pause_writing(self) -> None:
        """Let `send` wait: the client does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    def _leave(self) -> None:
        if self.left_at is None and not self.closing:
            self.left_at = time.monotonic()
            self.task.cancel()
        self._news.set()

    async def _more(self) -> None:
        """Wait for bytes. Raises Left where none will come."""
        if self.left_at is not None or self.transport.is_closing():
            raise Left
        self._news.clear()
        await self._news.wait()

    async def read_until(self, mark: bytes, most: int = MAX_HEAD) -> bytes:
        """Return what comes up to and with MARK, or MOST bytes where it does not come."""
        while (at := self._buffer.find(mark)) < 0 and len(self._buffer) < most:
            await self._more()
        return self._take(most if at < 0 else at + len(mark))

    async def read_exactly(self, count: int) -> bytes:
        """Return COUNT bytes."""
        while len(self._buffer) < count:
            await self._more()
        return self._take(count)

    async def read_some(self) -> bytes:
        """Return what is there, and at least a byte."""
        while not self._buffer:
            await self._more()
        return self._take(len(self._buffer))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def send(self, data: bytes) -> None:
        """Send DATA, waiting while the client does not read. Raises Left where it has gone."""
        if self.transport.is_closing():
            if self.left_at is None and not self.closing:  # a write has failed, and connection_lost is still to come
                self.left_at = time.monotonic()
            raise Left
        self.transport.write(data)
        self.sent_bytes += len(data)
        await self._writable.wait()

    @property
    def taken_bytes(self) -> int:
        """How many of the bytes sent the kernel has taken."""
        return self.sent_bytes - self.transport.get_write_buffer_size()

    def close(self) -> None:
        """End the connection in order: what was sent still goes out, then FIN."""
        self.closing = True
        self.transport.close()

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.transport.write_eof()

    async def reset(self) -> None:
        """End the connection with RST: SO_LINGER with a time of 0 makes close() send it (socket(7))."""
        await asyncio.sleep(SENT_BY_RST)
        self.closing = True
        found = self.transport.get_extra_info("socket")
        if found is not None:
            # struct linger has two int, in Windows two u_short.
            linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def drop(self) -> None:
        """End the connection at once, and what is served on it."""
        self.closing = True
        self.task.cancel()
        self.transport.abort()


@dataclass(slots=True)
class Exchange:
    """One request and its answer over WIRE. `places` has the URLs of the lab's listeners; `keep` leaves the connection open after."""

    wire: Wire
    seen: Seen
    places: Mapping[str, str]
    rng: random.Random
    attempt: int = 1
    keep: bool = False
    chunked: bool = False
    signal: Callable[[str], None] = field(default=lambda _name: None)

    @property
    def prompt(self) -> str:
        """What was asked."""
        return self.seen.prompt

    @property
    def stream(self) -> bool:
        """Whether a stream was asked for."""
        return self.seen.asked.get("stream") is True

    def pieces(self) -> list[bytes]:
        """Return the body of a good answer in pieces: the events of the stream, or parts of the object."""
        if self.stream:
            return [*(answers.sse(value) for value in answers.stream_events(self.prompt)), answers.sse("[DONE]")]
        body = json.dumps(answers.completion(self.prompt), ensure_ascii=False).encode()
        size = -(-len(body) // 12)
        return [body[at : at + size] for at in range(0, len(body), size)]

    @property
    def kind(self) -> str:
        """The content type of a good answer."""
        return "text/event-stream; charset=utf-8" if self.stream else "application/json"

    async def head(
        self,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
        *,
        kind: str | None = None,
        length: int | None = None,
        chunked: bool = True,
    ) -> None:
        """Send the status line and headers; the body follows in chunks, or LENGTH bytes of it, or without either until the end."""
        self.chunked = chunked and length is None
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        if kind != "":
            lines.append(f"Content-Type: {kind or self.kind}")
        if length is not None:
            lines.append(f"Content-Length: {length}")
        elif self.chunked:
            lines.append("Transfer-Encoding: chunked")
        if not self.keep:
            lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in headers]
        await self.wire.send("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    async def put(self, *data: bytes) -> None:
        """Send each of DATA as a part of the body, framed as the head said."""
        for part in data:
            await self.wire.send(b"%x\r\n%b\r\n" % (len(part), part) if self.chunked and part else part)

    async def end(self) -> None:
        """Send what ends the body."""
        if self.chunked:
            await self.wire.send(b"0\r\n\r\n")

    async def reply(
        self, status: int, body: Any, headers: Iterable[tuple[str, str]] = (), *, kind: str = "application/json"
    ) -> None:
        """Send a whole answer with a length; BODY is bytes, or a value as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, headers, kind=kind, length=len(data))
        await self.put(data)

    async def good(self) -> None:
        """Send the answer that was asked for, and leave the connection open."""
        self.keep = True
        if self.stream:
            await self.head()
            await self.put(*self.pieces())
            await self.end()
        else:
            await self.reply(200, b"".join(self.pieces()))

    async def begin(self, count: int) -> None:
        """Send the head and the first pieces of a good answer: COUNT words of a stream, or about as much of an object."""
        await self.head()
        await self.put(*self.pieces()[: count + 1])

    async def hold(self) -> None:
        """Wait until the client has gone."""
        await asyncio.Event().wait()

    async def every(self, seconds: float, data: bytes) -> None:
        """Send DATA every SECONDS for as long as the client stays."""
        while True:
            await self.put(data)
            await asyncio.sleep(seconds)


Behaviour = Callable[[Exchange], Awaitable[None]]

REASONS = {
    200: "OK", 301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    409: "Conflict", 422: "Unprocessable Content", 425: "Too Early", 429: "Too Many Requests", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 511: "Network Authentication Required",
}  # fmt: skip
"""IANA's registry of HTTP status codes."""
