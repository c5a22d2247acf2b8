"""A client that is nothing but a socket: what it sees is what is on the wire."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass

from edgeai.chaos.lab import Lab

PROMPT = "what is on the wire?"


@dataclass(frozen=True)
class Heard:
    """What came: the bytes, how it ended (`fin`, `rst`, `open` after the patience was over), and in how many seconds."""

    data: bytes
    ending: str
    took_s: float

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0].lower()

    @property
    def payload(self) -> bytes:
        """What follows the head, as it is on the wire."""
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of the body; the last is empty where the body ended as it should."""
        found, rest = [], self.payload
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            found.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return found

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks) if b"transfer-encoding: chunked" in self.head else self.payload

    @property
    def events(self) -> list[str]:
        """The values of the `data:` lines, of a stream whose lines end with LF."""
        return [
            line[5:].strip() for line in self.body.decode("utf-8", "replace").split("\n") if line.startswith("data:")
        ]

    @property
    def deltas(self) -> list[dict[str, object]]:
        """The deltas of all events that have one."""
        values = [json.loads(text) for text in self.events if text.startswith("{")]
        return [value["choices"][0]["delta"] for value in values if value.get("choices")]

    @property
    def text(self) -> str:
        return "".join(str(delta.get("content") or "") for delta in self.deltas)


def request(*, stream: bool = True, path: str = "/v1/chat/completions", prompt: str = PROMPT, more: str = "") -> bytes:
    body = json.dumps({"model": "lab", "stream": stream, "messages": [{"role": "user", "content": prompt}]}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: lab\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def hear(sock: socket.socket, patience_s: float = 1.0, most: int = 1 << 20, until: bytes = b"\0none") -> Heard:
    """Read until the other end closes or resets, PATIENCE_S are over, or MOST bytes or the bytes UNTIL have come."""
    data, began, ending = bytearray(), time.monotonic(), "open"
    while (left := began + patience_s - time.monotonic()) > 0 and len(data) < most and not data.endswith(until):
        sock.settimeout(left)
        try:
            part = sock.recv(1 << 16)
        except TimeoutError:
            break
        except ConnectionResetError:
            ending = "rst"
            break
        if not part:
            ending = "fin"
            break
        data += part
    return Heard(bytes(data), ending, time.monotonic() - began)


def ask(
    lab: Lab, *, stream: bool = True, patience_s: float = 1.0, most: int = 1 << 20, more: str = "Connection: close\r\n"
) -> Heard:
    """Connect to the lab's endpoint, ask, and hear."""
    with socket.create_connection(("127.0.0.1", lab.port), timeout=1) as sock:
        try:
            sock.sendall(request(stream=stream, more=more))
        except (ConnectionResetError, BrokenPipeError):
            return Heard(b"", "rst", 0.0)
        return hear(sock, patience_s, most)
