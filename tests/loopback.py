"""A file server on the loopback with the habits of real ones: ranges, redirects, cut connections, a hub's headers."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Loopback:
    """What is served, how, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etag: str = ""
    cut_after: list[int] = field(default_factory=list)
    """Per request, in order: close the connection after so many bytes of the body."""
    gate: threading.Event | None = None
    """When set, a GET sends half of its body and waits here."""
    halfway: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, Range."""

    def gets(self, path: str) -> list[str | None]:
        """The Range headers of the GET requests for PATH."""
        return [asked for method, name, asked in self.requests if (method, name) == ("GET", path)]


class Server(ThreadingHTTPServer):
    """Knows what to serve."""

    daemon_threads = True
    state: Loopback


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from the server's state."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        state, path = self.server.state, self.path.partition("?")[0]
        state.requests.append((self.command, path, self.headers.get("Range")))
        if path in state.redirects:
            self.reply(302, {"Location": state.redirects[path]}, b"", body=body)
            return
        content = state.files.get(path)
        if content is None:
            self.reply(404, {}, b"no", body=body)
            return
        etag = state.etag or f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": "a" * 40}
        start, end = self.asked_range(etag, len(content))
        part = (start, end) != (0, len(content))
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.reply(206 if part else 200, headers, content[start:end], body=body)

    def asked_range(self, etag: str, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", etag) == etag
        if not match or not self.server.state.ranges or not same:
            return 0, size
        return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size

    def reply(self, status: int, headers: dict[str, str], content: bytes, *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and status in (200, 206):
            self.send_body(content)
        elif body:
            self.wfile.write(content)

    def send_body(self, content: bytes) -> None:
        state = self.server.state
        if state.cut_after:
            self.wfile.write(content[: state.cut_after.pop(0)])
            self.close_connection = True
            return
        half = len(content) // 2 if state.gate else 0
        self.wfile.write(content[:half])
        if state.gate:
            self.wfile.flush()
            state.halfway.set()
            state.gate.wait(60)
        self.wfile.write(content[half:])

    def handle(self) -> None:
        with suppress(ConnectionError):  # a test has killed the client
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()


@contextmanager
def serve() -> Iterator[Loopback]:
    """Serve on a free port of the loopback until the block ends."""
    state = Loopback()
    server = Server(("127.0.0.1", 0), Handler)
    server.state = state
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        if state.gate:
            state.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
