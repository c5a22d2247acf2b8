"""What an endpoint answered, event by event: text at once, calls of tools and the end when they are whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from edgeai.engines.cloud.calls import Calls, is_whole
from edgeai.engines.cloud.failures import from_error, quoted
from edgeai.errors import CloudFailure
from edgeai.types import Chunk, FinishReason, Notice, TokenLogprob, ToolCall, Usage

__all__ = ["DONE", "Reply"]

DONE = "[DONE]"
FINISHES: Mapping[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "model_length": "length",
    "tool_calls": "tool_calls", "function_call": "tool_calls", "tool_use": "tool_calls",
    "content_filter": "content_filter", "safety": "content_filter",
}  # fmt: skip
"""What endpoints say → what it means; the first of each line is OpenAI's."""
TINY = 4
"""With so few tokens allowed, an empty answer may be all that there is."""
MOST_TOKENS = 10**12
NO_ID = -1
"""Stands for the id of a token: endpoints give texts only."""


class Reply:
    """An answer of HOST as it grows. `moved`: something of it has come since it was last set false. `ended`: the end mark has come."""

    def __init__(self, host: str, *, max_tokens: int | None = None) -> None:
        self._host = host
        self._max_tokens = max_tokens
        self._calls = Calls()
        self._high = ""
        self._id: str | None = None
        self._same_id = 0
        self._wrote = False
        self._before = ""
        self._repeats = 0
        self.pieces = 0
        self.moved = False
        self.ended = False
        self.finish: FinishReason | None = None
        self.usage: Usage | None = None
        self.model: str | None = None
        self.notices: list[Notice] = []

    def take(self, data: str) -> Chunk | None:
        """Take the DATA of an event and return the text in it. Raises CloudFailure for an error in it, and for what is no answer."""
        if data[:6] == DONE:
            self.ended = True
            return None
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if type(event) is not dict:
            raise self._malformed(f"an event that is no JSON object: {quoted(data[:80])}", "json")
        if event.get("error") or event.get("object") == "error":
            raise from_error(self._host, event.get("error") or event, raw=data.encode("utf-8", "replace"))
        self._repeats += data == self._before
        self._before = data
        if (usage := event.get("usage")) is not None:
            self._count(usage)
        choices = event.get("choices")
        if not choices:
            return None
        if type(choices) is not list or type(choices[0]) is not dict:
            raise self._malformed("choices that are none", "json")
        if self.model is None and type(model := event.get("model")) is str:
            self.model = quoted(model)
        if event.get("id") != self._id:
            self._check_stream(event)
        else:
            self._same_id += 1
        return self._choice(choices[0])

    def whole(self, body: bytes) -> Chunk | None:
        """Take an answer that came in one piece of JSON and return the text in it. Raises CloudFailure as `take` does."""
        try:
            data = body.decode("utf-8")
        except UnicodeDecodeError:
            raise self._malformed("JSON that is no UTF-8", "json") from None
        chunk = self.take(data)
        if self._wrote or self._calls:
            self.finish = self.finish or "stop"
        self.ended = True
        return chunk

    def _choice(self, choice: dict[str, Any]) -> Chunk | None:
        if choice.get("index"):
            return None  # one answer was asked for; whatever else this is, it is not that
        delta = choice.get("delta")
        if delta is None:
            delta = choice.get("message") or {}
        if type(delta) is not dict:
            raise self._malformed("a delta that is none", "json")
        text = delta.get("content") or delta.get("refusal") or ""
        if type(text) is not str:
            text = self._joined(text)
        if text:
            if self.finish is not None:
                raise self._malformed("text after the end of its answer", "order")
            text = text if text.isascii() and not self._high else self._paired(text)
            self.moved = True
        if delta.get("tool_calls"):
            self._calls.add(delta["tool_calls"])
            self.moved = True
        elif delta.get("reasoning_content") or delta.get("reasoning"):
            self.moved = True  # it thinks: that is no answer yet, and no silence
        finish = choice.get("finish_reason")
        if finish:
            self._finish(finish)
        if not text:
            return None
        self._wrote = True
        self.pieces += 1
        logprobs = choice.get("logprobs")
        return Chunk(text=text) if logprobs is None else Chunk(text=text, logprobs=_logprobs(logprobs))

    def _finish(self, finish: Any) -> None:
        if finish == "error":
            raise from_error(self._host, "the endpoint ended its answer with an error")
        found = FINISHES.get(finish.lower()) if isinstance(finish, str) else None
        if found is None:
            said = f"the endpoint ended its answer for an unknown reason: {quoted(str(finish))}"
            self.notices.append(Notice(code="cloud-finish", message=said))
        self.finish = self.finish or found or "stop"

    def _joined(self, parts: Any) -> str:
        """Return the text of content that is a list of parts, as some endpoints send it."""
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise self._malformed("content that is no text", "json")
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))

    def _paired(self, text: str) -> str:
        """Return TEXT with whole surrogate pairs: a half at its end waits for the other. Raises CloudFailure for one without another."""
        text, self._high = self._high + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._high = text[:-1], text[-1]
        try:
            text.encode()
        except UnicodeEncodeError:
            try:
                text = text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise self._malformed("half of a character", "encoding") from None
        return text

    def _check_stream(self, event: dict[str, Any]) -> None:
        """Raise CloudFailure where EVENT is of another answer: its id differs from that of the pieces before, which all had one.

        Endpoints that give every piece an id of its own say nothing by it.
        """
        id_ = event.get("id")
        if type(id_) is not str or not id_:
            return
        if self._id is None:
            self._id = id_
        elif id_ == self._id:
            self._same_id += 1
        elif self._same_id:
            raise self._malformed("a piece of another answer", "order")

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        counts: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0]
        if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
            self.usage = Usage(prompt_tokens=counts[0], completion_tokens=counts[1], cached_tokens=counts[2])

    def close(self) -> tuple[ToolCall, ...]:
        """Return the calls of tools, all of which have come. Raises CloudFailure where the end has not come, or nothing came before it."""
        if not self.ended and self.finish is None:
            raise self._malformed("an answer that ended before its end mark", "cut")
        if self._high:
            raise self._malformed("half of a character", "encoding")
        calls = self._whole_calls()
        if not (self._wrote or calls) and not self._may_be_empty():
            raise self._malformed("an empty answer", "empty")
        if calls and self.finish in (None, "stop"):
            self.finish = "tool_calls"
        self.finish = self.finish or "stop"
        self._tell_doubles()
        return calls

    def refuse_error(self, data: bytes) -> None:
        """Raise CloudFailure where DATA, which is no event, is an error in JSON."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict) and found.get("error"):
            raise from_error(self._host, found["error"], raw=data)

    def _tell_doubles(self) -> None:
        """Note where pieces came twice: as many of them repeat the one before as there are more than tokens were counted.

        A repeat alone tells nothing: words are said twice. The end of an answer may count as a token.
        """
        more = self.pieces - self.usage.completion_tokens if self.usage is not None else 0
        if more > 0 and more in (self._repeats, self._repeats - 1):
            said = (
                f"the endpoint counted {self.pieces - more} tokens and sent {self.pieces} pieces: text is there twice"
            )
            self.notices.append(Notice(code="cloud-doubled", message=said))

    def _whole_calls(self) -> tuple[ToolCall, ...]:
        """Return the calls; of an answer that was cut only those whose arguments are whole."""
        if self.finish == "timeout":
            return ()
        calls = self._calls.whole()
        if self.finish not in ("length", "content_filter"):
            if not all(is_whole(call.arguments) for call in calls):
                raise self._malformed("a call of a tool whose arguments are no JSON object", "tool-calls")
            return calls
        whole = tuple(call for call in calls if is_whole(call.arguments))
        if len(whole) < len(calls):
            said = "the answer was cut within the call of a tool: that call is left out"
            self.notices.append(Notice(code="cloud-call-cut", message=said))
        return whole

    def _may_be_empty(self) -> bool:
        if self.finish in ("length", "content_filter", "timeout"):
            return True
        if self._max_tokens is not None and self._max_tokens <= TINY and self.finish is not None:
            return True
        return self.finish == "stop" and self.usage is not None and self.usage.completion_tokens > 0

    def _malformed(self, what: str, reason: str) -> CloudFailure:
        hint = "ask again, or another endpoint"
        return CloudFailure(f"{self._host} sent {what}", kind="malformed", reason=reason, hint=hint)


def _logprobs(found: Any) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities that a choice carries; what is no number is left out."""
    tokens = found.get("content") if isinstance(found, dict) else None
    made = []
    for token in tokens if isinstance(tokens, list) else ():
        if not _is_token(token):
            continue
        others = token.get("top_logprobs")
        top = [(NO_ID, other["token"], float(other["logprob"])) for other in others or () if _is_token(other)]
        made.append(TokenLogprob(id=NO_ID, text=token["token"], logprob=float(token["logprob"]), top=tuple(top)))
    return tuple(made)


def _is_token(token: Any) -> bool:
    if not isinstance(token, dict) or not isinstance(token.get("token"), str):
        return False
    number: Any = token.get("logprob")
    return type(number) in (int, float) and not math.isnan(number)
