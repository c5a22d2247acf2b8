"""A small client that does what the score wants, and the same with one thing wrong: the scorer must tell them apart.

It reads the whole answer before it shows any of it, so that nothing is ever committed too early; retries; and has a local answer.
"""

from __future__ import annotations

import json
import random
import ssl
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from edgeai.chaos.answers import LOCAL_ANSWER
from edgeai.chaos.faults import ATTEMPTS, CONNECT_S, LEAST_BYTES_S, MAX_BYTES, STALL_S
from edgeai.chaos.gateway import Backend, Until, lines_of
from edgeai.chaos.subject import KEY, Outcome, RouterSubject, Setting

FIRST_S = 0.6


class Failed(Exception):
    """An attempt failed; `again`: another may succeed, after `wait_s`. `closed`: none may for long."""

    def __init__(self, why: str, *, again: bool = True, wait_s: float = 0.0, closed: bool = False) -> None:
        super().__init__(why)
        self.again, self.wait_s, self.closed = again, wait_s, closed


class Careful:
    """Asks the endpoint of SETTING; every method that a mutation may want to break is one of its own."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.until = Until()
        context = ssl.create_default_context(cafile=setting.ca_file)
        self.pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=Backend(self.until))
        self.closed = False
        self.failures = 0

    def close(self) -> None:
        self.pool.close()

    def ask(self, prompt: str, *, deadline_s: float, leave_after: int | None = None, **_options: bool) -> Outcome:
        began = time.monotonic()
        outcome = self.routed(prompt, began + deadline_s, leave_after)
        return replace(outcome, wall_s=time.monotonic() - began)

    def routed(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        hook = self.setting.hook or ""
        local = None if hook == "local-down" or self.setting.policy == "local-first" else LOCAL_ANSWER
        if hook in ("detector-crash", "detector-slow", "text-too-long") or "4111" in prompt:
            return self.end(local, "kept local: no detector cleared it")
        if "resolver-hang" in self.setting.base_url or not self.is_fine(self.setting.base_url):
            return self.end(local, "no such endpoint")
        try:
            outcome = self.attempts(prompt, deadline, leave_after)
        except Failed as error:
            if hook == "resume":
                return Outcome(text=self.kept + "\n[continued here]\n" + LOCAL_ANSWER, finish_reason="stop")
            return self.end(local, f"lab: {error}; local: down")
        return replace(outcome, notices=("the ledger cannot be written",)) if hook.startswith("ledger") else outcome

    def end(self, local: str | None, why: str) -> Outcome:
        return Outcome(error=why) if local is None else Outcome(text=local, finish_reason="stop")

    def is_fine(self, url: str) -> bool:
        parts = urlsplit(url)
        plain_ok = parts.scheme == "https" or parts.hostname == "127.0.0.1"
        return (
            bool(parts.hostname) and plain_ok and not (parts.query or "@" in parts.netloc or "169.254" in parts.netloc)
        )

    def attempts(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        for attempt in range(1, ATTEMPTS + 1):
            if self.closed:
                raise Failed("the circuit is open")
            try:
                return self.attempt(prompt, deadline, leave_after)
            except Failed as error:
                self.closed = self.closed or error.closed
                wait_s = self.wait(error, attempt)
                if not error.again or attempt == ATTEMPTS or time.monotonic() + wait_s > deadline - 0.3:
                    raise
                time.sleep(wait_s)
        raise AssertionError

    def wait(self, error: Failed, attempt: int) -> float:
        return max(error.wait_s, random.uniform(0, 0.005 * 2**attempt))

    def attempt(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        self.kept = ""
        self.until.at = min(deadline, time.monotonic() + CONNECT_S + FIRST_S)
        body = json.dumps({"model": "lab", "stream": True, "messages": [{"role": "user", "content": prompt}]})
        headers = [
            ("Authorization", f"Bearer {KEY}"),
            ("Content-Type", "application/json"),
            ("Accept-Encoding", "gzip"),
        ]
        url = self.setting.base_url + "/chat/completions"
        try:
            with self.pool.stream("POST", url, headers=headers, content=body.encode()) as response:
                self.check(response)
                return self.read(response, deadline, leave_after)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            raise Failed(
                f"{type(error).__name__}: {error}", again=not isinstance(error, httpcore2.TimeoutException)
            ) from error
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError, zlib.error) as error:
            raise Failed(f"malformed: {error!r:.80}", again=False) from error

    def check(self, response: httpcore2.Response) -> None:
        status = response.status
        if status == 200:
            return
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
        said = b"".join(self.bounded(response)).decode("utf-8", "replace")
        why = f"status {status}"
        if status == 429:
            if "insufficient_quota" in said:
                raise Failed(why, again=False, closed=True)
            wait_s = asked_wait(headers, said)
            raise Failed(why, wait_s=wait_s, closed=wait_s > 60)
        if status in (401, 402, 403):
            raise Failed(why, again=False, closed=True)
        self.failures += 1
        again = status >= 500 or (status in (408, 409, 425) and not self.second(status))
        raise Failed(why, again=again, wait_s=asked_wait(headers, said), closed=self.failures >= 5)

    def second(self, status: int) -> bool:
        """Whether this status has come before; it is tried again once."""
        again, self.last = getattr(self, "last", None) == status, status
        return again

    def bounded(self, response: httpcore2.Response) -> Iterator[bytes]:
        size, began = 0, time.monotonic()
        for part in response.iter_stream():
            size += len(part)
            if size > MAX_BYTES:
                raise ValueError("too many bytes")
            took = time.monotonic() - began
            if took > STALL_S and size / took < LEAST_BYTES_S:
                raise ValueError("too slow")
            self.until.at = min(self.deadline, time.monotonic() + STALL_S)
            yield part

    @property
    def deadline(self) -> float:
        return self.until.at + 10

    def read(self, response: httpcore2.Response, deadline: float, leave_after: int | None) -> Outcome:
        kinds = [value for name, value in response.headers if name.lower() == b"content-type"]
        if any(b"html" in kind or b"image" in kind for kind in kinds):
            raise Failed("a page of a login?", again=False)
        encodings = [value for name, value in response.headers if name.lower() == b"content-encoding"]
        parts = self.timed(self.bounded(response), deadline)
        if encodings == [b"gzip"]:
            parts = unzipped(parts)
        elif encodings:
            raise ValueError(encodings)
        return self.assembled(parts, leave_after)

    def timed(self, parts: Iterator[bytes], deadline: float) -> Iterator[bytes]:
        for part in parts:  # one read may bring thousands of parts: each must look at the clock
            self.until.at = min(deadline, self.until.at)
            self.until.left()
            yield part

    def assembled(self, parts: Iterator[bytes], leave_after: int | None) -> Outcome:
        state = State(began=time.monotonic())
        for name, text in events(parts):
            if not state.texts and time.monotonic() - state.began > FIRST_S:
                raise ValueError("no first token")
            if state.take(name, text):
                break
            self.kept = "".join(state.texts)
            if leave_after is not None and len(state.texts) >= leave_after:
                return Outcome(text=self.kept)
        if not state.whole:
            raise Failed("the stream ended before its end mark", again=not state.texts)
        calls = tuple((name, arguments) for name, arguments in state.calls.values())
        for _, arguments in calls:
            json.loads(arguments)
        text = "".join(state.texts)
        if not text and not calls and state.finish not in ("length", "content_filter"):
            raise Failed("an empty answer")
        return Outcome(text=text, finish_reason=state.finish, tool_calls=calls)


@dataclass
class State:
    """What has been read of a stream."""

    began: float

    def __post_init__(self) -> None:
        self.texts: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.finish: str | None = None
        self.id: str | None = None
        self.number = -1

    @property
    def whole(self) -> bool:
        return self.finish is not None

    def take(self, number: str, text: str) -> bool:
        """Take one event; return whether it is the last."""
        if text == "[DONE]":
            return True
        if number.isdecimal():
            if int(number) <= self.number:
                raise ValueError("an event came twice, or late")
            self.number = int(number)
        value = json.loads(text)
        if value.get("error"):
            refused = "key" in str(value["error"])
            raise Failed(f"an error within: {value['error']!r:.80}", again=not refused and not self.texts)
        if self.id not in (None, value["id"]):
            raise ValueError("another answer")
        self.id = value["id"]
        for choice in value["choices"]:
            if choice["index"] != 0:
                continue
            self.take_delta(choice["delta"])
            self.finish = choice["finish_reason"] or self.finish
        return False

    def take_delta(self, delta: Any) -> None:
        if (content := delta.get("content")) is not None:
            if not isinstance(content, str) or "\ufffd" in content or (content and self.finish):
                raise ValueError("no text, or text after the end")
            content.encode()  # half of a surrogate pair is no text
            if content:
                self.texts.append(content)
        for call in delta.get("tool_calls") or ():
            known = self.calls.setdefault(call["index"], ["", ""])
            known[0] = call["function"].get("name") or known[0]
            known[1] += call["function"]["arguments"]


def events(parts: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    """Yield the number and the data of each event; a whole object is made one."""
    data: list[str] = []
    number, other = "", ""
    for line in lines_of(parts):
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name == "id":
            number = value.strip()
        elif name not in ("", "event", "retry", "lab"):
            other += line
        if not line and data:
            yield number, "\n".join(data)
            data = []
    if other:
        raise Failed(f"no stream: {other[:60]}", again=False)


def unzipped(parts: Iterator[bytes]) -> Iterator[bytes]:
    unpacker, size = zlib.decompressobj(wbits=31), 0
    for part in parts:
        data = unpacker.decompress(part, MAX_BYTES)
        size += len(data)
        if size >= MAX_BYTES:
            raise ValueError("a bomb")
        yield data


def asked_wait(headers: dict[str, str], said: str) -> float:
    """How long an endpoint asks to wait, in every form; 0 where it says nothing that makes sense."""
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000
    if '"retryDelay": "' in said:
        return float(said.partition('"retryDelay": "')[2].partition("s")[0])
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


def careful(kind: type[Careful] = Careful) -> RouterSubject:
    """The subject that makes a new KIND for each variant."""
    return RouterSubject(kind)
