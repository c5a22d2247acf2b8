"""What is odd or wrong in the text of an answer: events that must be read all the same, events that are none, errors within a 200."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from edgeai.chaos import answers
from edgeai.chaos.wire import Behaviour, Exchange

__all__ = ["BEHAVIOURS"]

WORDS = 5
PAUSE_S = 0.003
"""Between parts that must reach the client in several reads."""
DEEP = 100_000
"""Brackets within brackets; Python's own JSON reader gives up at about a thousand with RecursionError."""
ERROR = {"message": "the model is overloaded", "type": "server_error", "code": 503}

Events = Callable[[Exchange], list[Any]]
"""The events of a stream: values as JSON, a str as it stands, bytes raw."""


def raw(events: Iterable[Any]) -> list[bytes]:
    """Return EVENTS as bytes."""
    return [value if isinstance(value, bytes) else answers.sse(value) for value in events]


def good(exchange: Exchange) -> list[Any]:
    """Return the events of a good answer with its end mark."""
    return [*answers.stream_events(exchange.prompt), "[DONE]"]


async def put_stream(exchange: Exchange, parts: Iterable[bytes], *, pause_s: float = 0.0) -> None:
    """Send PARTS as an answer's body, PAUSE_S between them."""
    await exchange.head()
    for part in parts:
        await exchange.put(part)
        if pause_s:
            await asyncio.sleep(pause_s)
    await exchange.end()


def in_bytes(change: Callable[[bytes], bytes], *, cut: int = 0, pause_s: float = 0.0) -> Behaviour:
    """Return a behaviour: the bytes of a good stream after CHANGE, in parts of CUT bytes (0: whole). A whole object stays as it is."""

    async def behave(exchange: Exchange) -> None:
        if not exchange.stream:
            await exchange.good()
            return
        body = change(b"".join(exchange.pieces()))
        size = cut or len(body)
        await put_stream(exchange, [body[at : at + size] for at in range(0, len(body), size)], pause_s=pause_s)

    return behave


async def split_characters(exchange: Exchange) -> None:
    """Cut every character that is not ASCII after its first byte."""
    if not exchange.stream:
        await exchange.good()
        return
    await put_stream(exchange, re.split(rb"(?<=[\xc2-\xf4])", b"".join(exchange.pieces())), pause_s=PAUSE_S)


def spread(body: bytes) -> bytes:
    """Write each event over several `data:` lines, cut where JSON allows a line feed."""
    return body.replace(b', "', b',\ndata: "')


def commented(body: bytes) -> bytes:
    """Put comments between and inside of events, as OpenRouter does while it waits."""
    return b": PROCESSING\n\n" + body.replace(b"data:", b": comment\ndata:")


def with_fields(body: bytes) -> bytes:
    """Give each event the other fields of the specification, and one that it does not know."""
    parts = body.split(b"data:")
    heads = (b"retry: 10\nevent: message\nid: %d\nlab: x\ndata:" % index for index in range(len(parts) - 1))
    return parts[0] + b"".join(head + part for head, part in zip(heads, parts[1:], strict=True))


def escaped(body: bytes) -> bytes:
    r"""Write what is not ASCII as \u escapes, pairs of surrogates included."""
    return json.dumps(body.decode())[1:-1].replace('\\"', '"').replace("\\n", "\n").encode()


def amid(*wrong: Any) -> Behaviour:
    """Return a behaviour: some words, then WRONG, then the rest. A whole object has WRONG in the middle of its bytes."""

    async def behave(exchange: Exchange) -> None:
        events = good(exchange)
        if exchange.stream:
            await put_stream(exchange, raw([*events[: WORDS + 1], *wrong, *events[WORDS + 1 :]]))
            return
        pieces = exchange.pieces()
        await put_stream(exchange, [*pieces[:WORDS], *raw(wrong), *pieces[WORDS:]])

    return behave


def events(make: Events, whole: Callable[[Exchange], Any] | None = None) -> Behaviour:
    """Return a behaviour: the events that MAKE gives, or the object of WHOLE; without WHOLE, a good one."""

    async def behave(exchange: Exchange) -> None:
        if exchange.stream:
            await put_stream(exchange, raw(make(exchange)))
        elif whole is None:
            await exchange.good()
        else:
            await exchange.reply(200, whole(exchange))

    return behave


def error_inside(error: Any, *, after: int = 0, name: str = "") -> Behaviour:
    """Return a behaviour: status 200, and in it ERROR after so many words; an object has nothing else."""

    async def behave(exchange: Exchange) -> None:
        body = {"error": error}
        if not exchange.stream:
            await exchange.reply(200, body)
            return
        head = f"event: {name}\n".encode() if name else b""
        first = good(exchange)[: after + 1] if after else []
        await put_stream(exchange, [*raw(first), head + answers.sse(body), answers.sse("[DONE]")])

    return behave


async def error_object(exchange: Exchange) -> None:
    """Answer 200 with an error as an object, whatever was asked for."""
    await exchange.reply(200, {"error": ERROR})


def empty(finish: str | None, content: str | None = "", *, counts: bool = True) -> Behaviour:
    """Return a behaviour: an answer without a word that ends for the reason FINISH."""

    def stream(exchange: Exchange) -> list[Any]:
        prompt = exchange.prompt
        end = [answers.event(prompt, {"content": content}), answers.event(prompt, finish=finish)]
        none = {**answers.event(prompt), "choices": [], "usage": _no_usage()}
        return [answers.event(prompt, {"role": "assistant"}), *end, *([none] if counts else []), "[DONE]"]

    def whole(exchange: Exchange) -> Any:
        return {**answers.completion(exchange.prompt, content=content, finish=finish), "usage": _no_usage()}

    return events(stream, whole)


def _no_usage() -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def tools(make: Callable[[str], list[Any]]) -> Behaviour:
    """Return a behaviour: the pieces of a call of a tool that MAKE gives; an object calls it as it should."""

    def whole(exchange: Exchange) -> Any:
        name, arguments = answers.TOOL
        call = {"id": "call_lab_1", "type": "function", "function": {"name": name, "arguments": arguments}}
        return answers.completion(exchange.prompt, content=None, tool_calls=[call], finish="tool_calls")

    def stream(exchange: Exchange) -> list[Any]:
        return [*make(exchange.prompt), *answers.done(exchange.prompt, "tool_calls"), "[DONE]"]

    return events(stream, whole)


def _call(prompt: str, **call: Any) -> dict[str, Any]:
    return answers.event(prompt, {"tool_calls": [call]})


def doubled_arguments(prompt: str) -> list[Any]:
    """Return a call whose whole arguments come once more after their parts."""
    return [*answers.tool_pieces(prompt), _call(prompt, index=0, function={"arguments": answers.TOOL[1]})]


def repeated_name(prompt: str) -> list[Any]:
    """Return a call whose every part has its id and name again."""
    named = {"index": 0, "id": "call_lab_1", "type": "function"}
    parts = answers.tool_pieces(prompt)
    texts = [part["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for part in parts]
    return [_call(prompt, **named, function={"name": answers.TOOL[0], "arguments": text}) for text in texts]


def index_gap(prompt: str) -> list[Any]:
    """Return a call with the index 3, without any before it."""
    found = answers.tool_pieces(prompt)
    for part in found:
        part["choices"][0]["delta"]["tool_calls"][0]["index"] = 3
    return found


def cut_arguments(prompt: str) -> list[Any]:
    """Return a call whose arguments lack their end, though the answer says that it is whole."""
    return list(answers.tool_pieces(prompt)[:-1])


def numbered(order: Callable[[list[int]], list[int]]) -> Events:
    """Return events with their numbers as `id:` fields (the specification's last event ID), in the order that ORDER makes of them."""

    def make(exchange: Exchange) -> list[Any]:
        found = [f"id: {index}\n".encode() + part for index, part in enumerate(raw(good(exchange)))]
        return [found[index] for index in order(list(range(len(found))))]

    return make


def twice(numbers: list[int]) -> list[int]:
    """Return NUMBERS with three of the middle said again, as after a reconnection that was not asked for."""
    return [*numbers[:6], *numbers[3:6], *numbers[6:]]


def swapped(numbers: list[int]) -> list[int]:
    """Return NUMBERS with two of the middle in the wrong order."""
    return [*numbers[:4], numbers[5], numbers[4], *numbers[6:]]


def repeated_role(exchange: Exchange) -> list[Any]:
    """Say the role in every delta."""
    found = good(exchange)
    for value in found[1:-3]:
        value["choices"][0]["delta"]["role"] = "assistant"
    return found


def reason_twice(exchange: Exchange) -> list[Any]:
    """Say reason and counts twice."""
    found = good(exchange)
    return [*found[:-1], *found[-3:]]


def text_after_reason(exchange: Exchange) -> list[Any]:
    """Say some words once more after the reason for the end."""
    found = good(exchange)
    return [*found[:-1], *found[2:5], found[-1]]


def whole_again(exchange: Exchange) -> list[Any]:
    """Say the whole stream twice, the second time with another id."""
    found = good(exchange)
    again = [{**value, "id": "chatcmpl-again"} for value in found[:-1]]
    return [*found[:-1], *again, found[-1]]


def message_at_end(exchange: Exchange) -> list[Any]:
    """Say the whole answer once more in a `message` beside the last delta, as some endpoints do."""
    found = good(exchange)
    found[-3]["choices"][0]["message"] = {"role": "assistant", "content": answers.cloud_text(exchange.prompt)}
    return found


def second_choice(exchange: Exchange) -> list[Any]:
    """Mix the words of a second choice, which nobody asked for, into the stream."""
    other = answers.event(exchange.prompt, {"content": " foreign"})
    other["choices"][0]["index"] = 1
    return [each for value in good(exchange) for each in (value, other)][:-1]


def other_answer(exchange: Exchange) -> list[Any]:
    """Change to the stream of another request, with its id, midway."""
    other = [*answers.stream_events(exchange.prompt + " of somebody else"), "[DONE]"]
    return [*good(exchange)[:6], *other[6:]]


def no_choices(exchange: Exchange) -> list[Any]:
    """Send chunks without any choice, the last with counts of nothing."""
    return [{**answers.event(exchange.prompt), "choices": [], "usage": _no_usage()}, "[DONE]"]


def same(body: bytes) -> bytes:
    """Return BODY as it is."""
    return body


BEHAVIOURS: dict[str, Behaviour] = {
    "crlf": in_bytes(lambda body: body.replace(b"\n", b"\r\n")),
    "cr-only": in_bytes(lambda body: body.replace(b"\n", b"\r")),
    "crlf-cut": in_bytes(lambda body: body.replace(b"\n", b"\r\n"), cut=17, pause_s=0.001),
    "comments": in_bytes(commented),
    "no-space": in_bytes(lambda body: body.replace(b"data: ", b"data:")),
    "many-lines": in_bytes(spread),
    "bom": in_bytes(lambda body: b"\xef\xbb\xbf" + body),
    "split-utf8": split_characters,
    "byte-chunks": in_bytes(same, cut=1),
    "one-segment": in_bytes(same),
    "other-fields": in_bytes(with_fields),
    "escapes": in_bytes(escaped),
    "blank-lines": in_bytes(lambda body: b"\n\n" + body.replace(b"\n\n", b"\n\n\n\n")),
    "no-last-line-end": in_bytes(lambda body: body.rstrip(b"\n")),
    "slow-pieces": in_bytes(same, cut=97, pause_s=PAUSE_S),
    "bad-json": amid('{"choices": [{"delta": {"content": " lost"}'),
    "not-json": amid("words that are no JSON"),
    "not-an-object": amid("17"),
    "bad-utf8": amid(b'data: {"choices": [{"index": 0, "delta": {"content": " \xff\xfe\x80"}}]}\n\n'),
    "lone-surrogate": amid('{"choices": [{"index": 0, "delta": {"content": " \\ud83d"}}]}'),
    "nul-bytes": amid(b"\x00\x00\x00\x00\n\ndata: \x00\n\n"),
    "deep-json": amid("[" * DEEP),
    "wrong-types": amid('{"choices": {"delta": "words"}, "usage": []}'),
    "null-choice": amid('{"choices": [null]}'),
    "number-content": amid('{"choices": [{"index": 0, "delta": {"content": 17}}]}'),
    "huge-number": amid('{"choices": [{"index": 1' + "0" * 5000 + "}]}"),
    "error-in-200": error_inside(ERROR),
    "error-object-in-200": error_object,
    "error-event": error_inside(ERROR, name="error"),
    "error-midway": error_inside(ERROR, after=WORDS),
    "error-as-text": error_inside("upstream gave up"),
    "error-429-in-200": error_inside({"message": "slow down", "code": "rate_limit_exceeded", "status": 429}),
    "error-401-in-200": error_inside({"message": "Incorrect API key provided", "code": "invalid_api_key", "type": "invalid_request_error"}),
    "empty-choices": events(no_choices, lambda exchange: {**answers.completion(exchange.prompt), "choices": [], "usage": _no_usage()}),
    "empty-content": empty("stop"),
    "null-content": empty("stop", None),
    "empty-no-reason": empty(None, counts=False),
    "empty-length": empty("length"),
    "empty-filter": empty("content_filter"),
    "repeated-role": events(repeated_role),
    "reason-twice": events(reason_twice),
    "text-after-reason": events(text_after_reason),
    "whole-again": events(whole_again),
    "message-at-end": events(message_at_end),
    "second-choice": events(second_choice),
    "other-answer": events(other_answer),
    "same-event-twice": events(numbered(twice)),
    "events-swapped": events(numbered(swapped)),
    "tool-split": tools(lambda prompt: list(answers.tool_pieces(prompt, 12))),
    "tool-doubled": tools(doubled_arguments),
    "tool-name-repeated": tools(repeated_name),
    "tool-index-gap": tools(index_gap),
    "tool-cut": tools(cut_arguments),
}  # fmt: skip
