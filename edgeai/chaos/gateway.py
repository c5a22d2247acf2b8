"""Any gateway that speaks OpenAI's API, as a subject, by its URL; its streams are read leniently, and what they lack is noted."""

from __future__ import annotations

import codecs
import json
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpcore2

from edgeai.chaos.answers import TOOL
from edgeai.chaos.faults import DEADLINE_S
from edgeai.chaos.subject import Outcome, Setting

__all__ = ["Gateway"]

MODEL = "lab"
GRACE_S = 0.5
"""How long after its deadline a gateway is still listened to, so that `too late` is seen and not guessed."""
MOST_BYTES = 48 << 20
OUTSIDE = "not applicable to a gateway from outside"
LINE_END = re.compile(r"\r\n|\r|\n")
ERRORS = (
    httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, httpcore2.UnsupportedProtocol, ValueError, OSError,
)  # fmt: skip


def mapping(value: Any) -> dict[str, Any]:
    """Return VALUE where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """Return VALUE where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def parsed(text: str | bytes) -> Any:
    """Return the JSON in TEXT. Raises ValueError for what is none, or too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON of too many levels") from error


@dataclass(slots=True)
class Reading:
    """What has been read of an answer so far."""

    began: float
    text: list[str] = field(default_factory=list)
    calls: dict[str, list[str]] = field(default_factory=dict)
    finish: str | None = None
    done: bool = False
    error: str | None = None
    first_token_s: float | None = None

    def take(self, value: Any, said_in: str) -> bool:
        """Take one event or object, whose text is SAID_IN `delta` or `message`; return whether it had text.

        What is not of the usual form is passed over, and so are other choices than the first.
        """
        error = mapping(value).get("error")
        if error:
            self.error = json.dumps(error, ensure_ascii=False)[:400]
        choices = map(mapping, sequence(mapping(value).get("choices")))
        choice = next((choice for choice in choices if choice.get("index", 0) == 0), {})
        self.finish = choice.get("finish_reason") or self.finish
        said = mapping(choice.get(said_in))
        for call in sequence(said.get("tool_calls")):
            function = mapping(mapping(call).get("function"))
            known = self.calls.setdefault(str(mapping(call).get("index", 0)), ["", ""])
            known[0] = function.get("name") or known[0]
            known[1] += function.get("arguments") or ""
        content = said.get("content")
        if not isinstance(content, str) or not content:
            return False
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began
        self.text.append(content)
        return True

    def outcome(self) -> Outcome:
        """Return what has been read as the outcome."""
        return Outcome(
            text="".join(self.text), finish_reason=self.finish, error=self.error, wall_s=time.monotonic() - self.began,
            interrupted=self.finish in ("interrupted", "error"), first_token_s=self.first_token_s,
            tool_calls=tuple((name, arguments) for name, arguments in self.calls.values()),
            missing=(*(() if self.finish else ("finish_reason",)), *(() if self.done else ("[DONE]",))),
        )  # fmt: skip


class Until:
    """When reading must end, whatever comes: timeouts of one read start anew with every byte, and then a drip holds a client for ever."""

    def __init__(self) -> None:
        self.at = 0.0

    def left(self) -> float:
        """Return how many seconds are left. Raises httpcore2.ReadTimeout where none are."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("no end of the answer long after its deadline")
        return left


class Bounded(httpcore2.NetworkStream):
    """A connection whose every step ends at the same time."""

    def __init__(self, stream: httpcore2.NetworkStream, until: Until) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Return what comes."""
        return self._stream.read(max_bytes, timeout=self._until.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send BUFFER."""
        self._stream.write(buffer, timeout=self._until.left())

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """Return the same with TLS."""
        return Bounded(self._stream.start_tls(ssl_context, server_hostname, timeout=self._until.left()), self._until)

    def get_extra_info(self, info: str) -> Any:
        """Return what the connection knows of itself."""
        return self._stream.get_extra_info(info)


class Backend(httpcore2.NetworkBackend):
    """Makes connections that end by UNTIL."""

    def __init__(self, until: Until) -> None:
        self._until = until
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to HOST."""
        stream = self._backend.connect_tcp(
            host, port, timeout=self._until.left(), local_address=local_address, socket_options=socket_options
        )
        return Bounded(stream, self._until)


class Gateway:
    """The gateway at URL (with its /v1), asked for MODEL with KEY. `fallback`: it answers with the lab's second endpoint where it must.

    Its endpoint cannot be moved from here, so faults of another address than the lab's port do not apply, nor those from within.
    """

    inside = False

    def __init__(self, url: str, *, key: str | None = None, model: str = MODEL, fallback: bool = False) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.fallback = fallback
        self._headers = [("Content-Type", "application/json"), ("Accept-Encoding", "identity")]
        if key:
            self._headers.append(("Authorization", f"Bearer {key}"))
        self._until = Until()
        self._pool = httpcore2.ConnectionPool(network_backend=Backend(self._until))

    def prepare(self, setting: Setting) -> str | None:
        """Return why SETTING cannot be had, None where it needs nothing of a gateway."""
        if setting.private or setting.patched or not setting.usual:
            return OUTSIDE
        return None if setting.hook is None or (setting.hook == "local-down" and not self.fallback) else OUTSIDE

    def ask(
        self,
        prompt: str,
        *,
        stream: bool,
        deadline_s: float = DEADLINE_S,
        leave_after: int | None = None,
        tools: bool = False,
    ) -> Outcome:
        """Ask, and read what comes until it ends, the caller leaves, or the deadline is long over."""
        body: dict[str, Any] = {
            "model": self.model,
            "stream": stream,
            "messages": [{"role": "user", "content": prompt}],
        }
        if tools:
            body["tools"] = [{"type": "function", "function": {"name": TOOL[0], "parameters": {"type": "object"}}}]
        reading = Reading(began=time.monotonic())
        self._until.at = reading.began + deadline_s + GRACE_S
        try:
            with self._pool.stream(
                "POST", f"{self.url}/chat/completions", headers=self._headers, content=json.dumps(body).encode()
            ) as response:
                self._read(reading, response, leave_after)
        except ERRORS as error:
            reading.error = f"{type(error).__name__}: {error}"
        return reading.outcome()

    def _read(self, reading: Reading, response: httpcore2.Response, leave_after: int | None) -> None:
        kinds = [value for name, value in response.headers if name.lower() == b"content-type"]
        parts = limited(response, self._until)
        if response.status != 200:
            reading.error = f"{response.status}: {b''.join(parts).decode('utf-8', 'replace')[:400]}"
        elif any(b"event-stream" in kind for kind in kinds):
            read_stream(reading, parts, leave_after)
        else:
            reading.take(parsed(b"".join(parts)), "message")
            reading.done = True

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


def limited(response: httpcore2.Response, until: Until) -> Iterator[bytes]:
    """Yield the parts of a body until UNTIL; one read may bring thousands. Raises ValueError for one without an end."""
    size = 0
    for part in response.iter_stream():
        until.left()
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"the answer did not end within {MOST_BYTES} bytes")
        yield part


def read_stream(reading: Reading, parts: Iterator[bytes], leave_after: int | None) -> None:
    """Read the events of PARTS into READING. A stream that ends early is not judged here, only read."""
    data: list[str] = []
    pieces = 0
    for line in lines_of(parts):
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        if line or not data:
            continue
        text, data = "\n".join(data), []
        if text.strip() == "[DONE]":
            reading.done = True
            return
        pieces += reading.take(parsed(text), "delta")
        if leave_after is not None and pieces >= leave_after:
            return


def lines_of(parts: Iterator[bytes]) -> Iterator[str]:
    """Yield the lines of a stream, whose ends may be LF, CR or CRLF (HTML standard, section 9.2.5); the last event ends with the stream."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    held = ""
    for part in parts:
        held += decoder.decode(part)
        keep = "\r" if held.endswith("\r") else ""  # the LF that belongs to it may be still to come
        *lines, held = LINE_END.split(held.removesuffix(keep))
        held += keep
        yield from lines
    yield from (*LINE_END.split(held), "")
