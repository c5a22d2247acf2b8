"""A server on the loopback that says, byte for byte, what a test has written down for it."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Step = bytes | float | str | Callable[[socket.socket], None]
"""Bytes are sent, a number is seconds of waiting; "rst" resets, "fin" ends, "hang" waits until the test is over."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """DATA as one chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """VALUE as an event, in a chunk of its own."""
    text = value if isinstance(value, str) else json.dumps(value)
    return chunked(b"data: " + text.encode() + b"\n\n")


def delta(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """A piece of an answer."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": content | more, "finish_reason": finish}
    return event({"id": "x", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice]})


def usage(prompt: int = 5, completion: int = 2) -> bytes:
    """The counts, as OpenAI sends them: without a choice."""
    return event({"id": "x", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = event("[DONE]")
GOOD = HEAD + delta("Hello") + delta(" there") + delta(finish="stop") + usage() + DONE + END
"""The answer `Hello there`."""


def answer(status: str, body: bytes = b"", kind: str = "application/json", **headers: str) -> bytes:
    """A whole response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Server:
    """What it was asked, and by how many connections."""

    port: int = 0
    scripts: list[Sequence[Step]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    plain: list[bytes] = field(default_factory=list)
    """What came where the TLS handshake failed."""
    over: threading.Event = field(default_factory=threading.Event)
    tls: ssl.SSLContext | None = None
    reads: bool = True

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def body(self, index: int = -1) -> Any:
        """The JSON of a request."""
        return json.loads(self.requests[index].partition(b"\r\n\r\n")[2])

    def head(self, index: int = -1) -> dict[str, str]:
        """The headers of a request."""
        lines = self.requests[index].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def serve(self, sock: socket.socket) -> None:
        self.connections += 1
        with suppress(OSError), sock:
            if self.tls is not None:
                try:
                    sock = self.tls.wrap_socket(sock, server_side=True)
                except (ssl.SSLError, OSError) as error:
                    self.plain.append(str(error).encode())
                    return
            while self.reads and self.scripts and self.read(sock):
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                if not self.play(sock, script):
                    return
            if not self.reads:
                self.over.wait(20)
            sock.close()

    def read(self, sock: socket.socket) -> bool:
        """Read one request."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += sock.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return True

    def play(self, sock: socket.socket, script: Sequence[Step]) -> bool:
        """Do what SCRIPT says; return whether the connection goes on."""
        for step in script:
            if isinstance(step, bytes):
                sock.sendall(step)
            elif step == "rst":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            elif step == "fin":
                return False
            elif step == "hang":
                self.over.wait(20)
                return False
            elif callable(step):
                step(sock)
            elif isinstance(step, float):
                self.over.wait(step)
        return True


@contextmanager
def serve(*scripts: Sequence[Step] | bytes, tls: ssl.SSLContext | None = None, reads: bool = True) -> Iterator[Server]:
    """Serve SCRIPTS, one a request, the last one for all that follow; without READS nothing is ever read."""
    state = Server(tls=tls, reads=reads)
    state.scripts = [[script] if isinstance(script, bytes) else script for script in scripts]
    listener = socket.create_server(("127.0.0.1", 0))
    state.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=state.serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield state
    finally:
        state.over.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether CONDITION becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return condition()
