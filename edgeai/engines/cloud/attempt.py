"""One attempt at an endpoint: an answer chunk by chunk, or the failure that it ended with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeai.config import Timeouts
from edgeai.engines.cloud.failures import from_response, quoted
from edgeai.engines.cloud.reply import DONE, Reply
from edgeai.engines.cloud.sse import EventReader
from edgeai.engines.cloud.watch import Watch
from edgeai.errors import CloudFailure, UsageError
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Served, Timings, Usage

if TYPE_CHECKING:
    import httpcore2

__all__ = ["Attempt", "Line"]

ERROR_BODY = 64 << 10
"""Bytes that are read of what an endpoint says when it does not answer, within ERROR_S."""
ERROR_S = 2.0
WHOLE_BODY = 4 << 20
"""Bytes of an answer that is no stream: JSON of that size is read within 0.2 s, in which nobody can look at the clock."""
AFTER_FINISH_S = 2.0
"""How long the end of the stream may be missing after a finish reason: what follows are counts."""
DRAIN_S = 0.01
"""How long the end of the body may be missing after [DONE]; beyond it the connection is not used again."""
CHARS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English text; only for endpoints that count nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What an attempt needs of its endpoint: `send` writes a body and returns the head of the answer, `note` hears how it ended."""

    name: str
    model: str
    host: str
    key_source: Callable[[], str]
    timeouts: Timeouts
    send: Callable[[bytes, Watch], httpcore2.Response]
    note: Callable[[CloudFailure | None], None]


class Attempt:
    """Iterate it once, in the thread that wants the answer; `abort` may come from any other.

    The chunks are text, whole calls of tools, and one end. Whatever goes wrong is a CloudFailure, `committed` where text or a call had been
    given before. `sent_bytes` and `received_bytes` are what passed through the socket, without TLS.
    """

    def __init__(
        self, line: Line, body: bytes, config: GenerationConfig, notices: tuple[Notice, ...] = (), *,
        deadline: float | None = None, first_token_s: float | None = None, repeats: bool = True,
    ) -> None:  # fmt: skip
        self._line = line
        self._body = body
        self._config = config
        self._notices = list(notices)
        self._watch = Watch(
            line.host, line.timeouts, deadline=deadline, first_token_s=first_token_s, max_seconds=config.max_seconds
        )
        self._watch.repeats = repeats
        self._begun = False
        self._pieces: Iterator[bytes] = iter(())
        self._last = 0.0
        self.committed = False
        self.ttft_s: float | None = None

    @property
    def requests(self) -> int:
        """How often the request was written: twice where its first connection had been closed."""
        return self._watch.requests

    @property
    def sent_bytes(self) -> int:
        """Bytes of requests written to the socket, headers included."""
        return self._watch.sent

    @property
    def received_bytes(self) -> int:
        """Bytes read from the socket, headers included."""
        return self._watch.received

    @property
    def remote(self) -> str | None:
        """The address that was connected to, of a proxy where there is one; None before."""
        return self._watch.remote

    def abort(self) -> None:
        """Make the attempt raise CloudFailure of the kind `aborted`, whatever it is doing."""
        self._watch.abort()

    def __iter__(self) -> Iterator[Chunk]:
        """Make the attempt. Raises UsageError the second time."""
        if self._begun:
            raise UsageError("an attempt is made once", hint="make another: endpoint.attempt(…)")
        self._begun = True
        return self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        self._watch.start()
        failure: CloudFailure | None = None
        try:
            yield from self._answer()
        except CloudFailure as error:
            failure = error
        except Exception as error:
            failure = self._translated(error)
            if failure is None:
                raise
        finally:
            self._watch.release()
        if failure is not None:
            failure.committed = self.committed
            self._line.note(failure)
            raise failure from None
        self._line.note(None)

    def _answer(self) -> Iterator[Chunk]:
        self._watch.left()
        response = self._line.send(self._body, self._watch)
        self._pieces = iter(response.stream)  # type: ignore[arg-type]
        clean = False
        try:
            reply = Reply(self._line.host, max_tokens=self._config.max_tokens)
            if self._is_stream(response):
                yield from self._streamed(reply)
            else:
                yield from self._whole(reply)
            clean = True
            yield from self._end(reply)
        finally:
            if clean:
                self._drain()
            self._pieces = iter(())
            response.close()

    def _is_stream(self, response: httpcore2.Response) -> bool:
        """Return whether events follow, not one piece of JSON. Raises CloudFailure for anything else."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status != 200:
            body = self._error_body()
            raise from_response(self._line.host, response.status, headers, body, key=self._line.key_source())
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            said = f"{self._line.host} compressed its answer, which was not asked for"
            raise CloudFailure(said, kind="malformed", reason="encoding", hint="ask another endpoint")
        if kind in ("text/event-stream", "application/json"):
            return kind == "text/event-stream"
        body = self._error_body()
        self._refuse_page(b"<html" if "html" in kind else body)
        shown = f"the content type {quoted(kind)!r}" if kind else "an answer without a content type"
        said = f"{self._line.host} sent {shown}, which is neither events nor JSON"
        raise CloudFailure(said, kind="malformed", reason="content-type", hint="is base_url that of an OpenAI API?")

    def _refuse_page(self, piece: bytes) -> None:
        """Raise CloudFailure, captive, where PIECE begins a page."""
        begin = piece[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not begin.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            return
        raise CloudFailure(
            f"a page came in place of an answer of {self._line.host}", kind="captive", status=200, reason="page",
            hint="log in to this network in a browser; or base_url is that of a site, not of its API",
        )  # fmt: skip

    def _error_body(self) -> bytes:
        """Return what comes of the body soon; the rest of it would tell no more."""
        self._watch.only(ERROR_S)
        body = b""
        try:
            for piece in self._pieces:
                body += piece
                if len(body) > ERROR_BODY:
                    break
        except Exception as error:
            if self._watch.aborted or (not isinstance(error, CloudFailure) and self._translated(error) is None):
                raise
        return body[:ERROR_BODY]

    def _streamed(self, reply: Reply) -> Iterator[Chunk]:
        watch, events = self._watch, EventReader()
        take, feed = reply.take, events.feed
        failure: CloudFailure | None = None
        opening = b""
        try:
            for piece in self._pieces:
                for data in feed(piece):
                    if (chunk := take(data)) is not None:
                        yield self._commit(chunk)
                        if watch.aborted:
                            watch.left()  # raises
                if reply.ended:
                    return
                if reply.moved:
                    reply.moved = False
                    watch.moved()
                elif not opening:
                    self._refuse_page(piece)
                if reply.finish is not None and watch.phase != "rest":
                    watch.only(AFTER_FINISH_S)
                opening = opening or piece[:ERROR_BODY]
        except CloudFailure as error:
            failure = error
        except Exception as error:
            failure = self._translated(error)
            if failure is None:
                raise
        self._judge_end(failure, reply, events, opening)

    def _judge_end(self, failure: CloudFailure | None, reply: Reply, events: EventReader, opening: bytes) -> None:
        """Raise FAILURE, unless the answer was whole before: it said why it ended, or the end mark lacks only its blank line.

        Without a failure, OPENING is what the body began with: it may be an error in JSON with no event around it.
        """
        if failure is None:
            reply.refuse_error(opening)
            reply.ended = events.rest.strip() == DONE
            return
        if failure.kind == "timeout" and failure.reason == "max_seconds" and self.committed:
            reply.finish, reply.ended = "timeout", True
            return
        lost = failure.kind in ("connection", "timeout") or failure.reason == "cut"
        if reply.finish is None or not lost or failure.reason in ("deadline", "total"):
            raise failure
        said = f"{self._line.host} broke off after the end of its answer: its counts may be missing"
        self._notices.append(Notice(code="cloud-end", message=said))

    def _whole(self, reply: Reply) -> Iterator[Chunk]:
        body = bytearray()
        for piece in self._pieces:
            body += piece
            if len(body) > WHOLE_BODY:
                said = f"{self._line.host} sent more than {WHOLE_BODY} bytes in one piece"
                raise CloudFailure(said, kind="malformed", reason="size", hint="ask another endpoint")
        self._refuse_page(bytes(body[:256]))
        chunk = reply.whole(bytes(body))
        self._notices.append(Notice(code="cloud-whole", message="the endpoint sent its answer in one piece, no stream"))
        if chunk is not None:
            yield self._commit(chunk)

    def _commit(self, chunk: Chunk) -> Chunk:
        """Return CHUNK, the first one with the notices."""
        self._last = time.monotonic()
        if self.committed:
            return chunk
        self.committed = True
        self.ttft_s = self._last - self._watch.started
        if self._notices:
            chunk = replace(chunk, notices=tuple(self._notices))
            self._notices.clear()
        return chunk

    def _end(self, reply: Reply) -> Iterator[Chunk]:
        calls = reply.close()
        if calls:
            yield self._commit(Chunk(tool_calls=calls))
        notices = [*self._notices, *reply.notices]
        usage = reply.usage
        if usage is None:
            prompt = math.ceil(len(self._body) / CHARS_PER_TOKEN)
            usage = Usage(prompt_tokens=prompt, completion_tokens=reply.pieces)
            notices.append(
                Notice(code="cloud-usage", message="the endpoint counted no tokens: the counts are estimates")
            )
        finish: FinishReason = reply.finish or "stop"
        line = self._line
        yield Chunk(
            finish_reason=finish, usage=usage, timings=self._timings(usage), notices=tuple(notices),
            served=Served(
                model=f"cloud/{line.model}", backend="cloud", device=line.host,
                plan={"endpoint": line.name, "model": reply.model, "remote": self.remote},
            ),
        )  # fmt: skip

    def _timings(self, usage: Usage) -> Timings:
        took = self._last - self._watch.started - (self.ttft_s or 0.0)
        tokens = usage.completion_tokens - 1
        return Timings(
            load_s=0.0, ttft_s=self.ttft_s, prompt_tok_s=None, gen_tok_s=tokens / took if took > 0 and tokens > 0 else None,
            total_s=time.monotonic() - self._watch.started,
        )  # fmt: skip

    def _drain(self) -> None:
        """Read the end of the body, which mostly is there already, so that the connection can be used again."""
        self._watch.only(DRAIN_S)
        try:
            for _ in self._pieces:
                if self._watch.received > self._watch.timeouts.max_bytes:
                    return
        except Exception as error:
            if not isinstance(error, CloudFailure) and self._translated(error) is None:
                raise

    def _translated(self, error: Exception) -> CloudFailure | None:
        """Return ERROR of the HTTP library as a failure; None for what is a bug."""
        import httpcore2

        host = self._line.host
        if self._watch.aborted:
            return self._watch.stopped()
        if isinstance(error, httpcore2.ProxyError):
            said = f"the proxy does not let requests through to {host}: {quoted(str(error))}"
            return CloudFailure(
                said, kind="connection", reason="proxy", hint="check HTTPS_PROXY, or name the host in NO_PROXY"
            )
        if isinstance(error, httpcore2.RemoteProtocolError):
            said = f"{host} broke off, or did not keep to HTTP ({quoted(str(error))})"
            return CloudFailure(said, kind="malformed", reason="cut", hint="ask again, or another endpoint")
        if isinstance(error, httpcore2.NetworkError):
            said = f"the connection to {host} broke off"
            return CloudFailure(said, kind="connection", reason="reset", hint="ask again")
        return None
