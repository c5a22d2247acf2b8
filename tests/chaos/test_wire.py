"""Each behaviour of the lab does on the wire what its name says, as a bare socket sees it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import pytest

from edgeai.chaos import answers
from edgeai.chaos.behaviours import BEHAVIOURS
from edgeai.chaos.lab import Lab
from edgeai.chaos.statuses import SERVER_ERRORS
from tests.chaos.raw import PROMPT, Heard, ask

TEXT = answers.cloud_text(PROMPT)
FIVE = " ".join(answers.cloud_words(PROMPT)[:5])
WHOLE = [json.dumps(value, ensure_ascii=False) for value in answers.stream_events(PROMPT)]
Check = Callable[[Heard], bool]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


def cut_after_words(heard: Heard) -> bool:
    """Five whole words came, and no end."""
    return (
        heard.status == 200
        and heard.data.count(b'"content": ') == 6
        and b"[DONE]" not in heard.data
        and b"stop" not in heard.data
    )


def says(*wanted: str) -> Check:
    return lambda heard: heard.status == 200 and all(text in heard.body.decode("utf-8", "replace") for text in wanted)


def amid(wrong: bytes) -> Check:
    """All good events are there, and WRONG after the fifth word."""
    return lambda heard: (
        wrong in heard.body.partition(FIVE.split()[-1].encode())[2]
        and heard.body.count(b'"finish_reason": "stop"') == 1
    )


def header(name: str, pattern: str) -> Check:
    return lambda heard: re.search(rf"\r\n{name}: {pattern}\r\n".encode(), heard.head + b"\r\n") is not None


def limited(name: str, pattern: str) -> Check:
    return lambda heard: heard.status == 429 and header(name, pattern)(heard) and b"rate_limit_exceeded" in heard.body


def dated(least: float, most: float) -> Check:
    def check(heard: Heard) -> bool:
        found = re.search(rb"retry-after: ([^\r]+)", heard.head + b"\r")
        assert found is not None
        import time

        return (
            heard.status == 429 and least <= parsedate_to_datetime(found[1].decode()).timestamp() - time.time() <= most
        )

    return check


def lines(heard: Heard) -> str:
    """The body with every line end as LF."""
    return heard.body.decode().replace("\r\n", "\n").replace("\r", "\n")


def good_but(change: Check) -> Check:
    """All events of a good answer can be found again, and CHANGE is true."""
    return lambda heard: [text for text in heard.events if text.startswith("{")] == WHOLE and change(heard)


def status(number: int) -> Check:
    return lambda heard: heard.status == number and b'"error"' in heard.body


def redirects(number: int, where: str) -> Check:
    return lambda heard: heard.status == number and header("location", where)(heard)


def ends(ending: str, data: bytes = b"") -> Check:
    return lambda heard: heard.ending == ending and heard.data == data


def numbers(heard: Heard) -> list[int]:
    return [int(found) for found in re.findall(rb"^id: (\d+)$", heard.body, re.MULTILINE)]


def arguments(heard: Heard) -> str:
    calls = [call for delta in heard.deltas for call in delta.get("tool_calls", [])]  # type: ignore[attr-defined]
    return "".join(call["function"].get("arguments", "") for call in calls)


def indexes(heard: Heard) -> set[int]:
    return {call["index"] for delta in heard.deltas for call in delta.get("tool_calls", [])}  # type: ignore[attr-defined]


def empty(reason: str | None) -> Check:
    return lambda heard: (
        heard.text == "" and (f'"finish_reason": "{reason}"' in heard.body.decode()) == (reason is not None)
    )


def several_lines(heard: Heard) -> bool:
    """The first event is written in more than two lines, which together are its JSON."""
    values = [line.removeprefix("data: ") for line in heard.body.decode().partition("\n\n")[0].split("\n")]
    return len(values) > 2 and json.loads("\n".join(values)) == json.loads(WHOLE[0])


def two_answers(heard: Heard) -> bool:
    """It begins as the right answer and ends as another, whose chunks have another id."""
    return (
        len(set(re.findall(rb'"id": "([^"]+)"', heard.body))) == 2
        and heard.text.startswith(FIVE)
        and heard.text != TEXT
    )


def tiny_chunks(heard: Heard) -> bool:
    return set(map(len, heard.chunks)) == {0, 1} and "".join(WHOLE[0]) in heard.body.decode()


def drips(least: int, most: int) -> Check:
    return lambda heard: heard.ending == "open" and least <= len(heard.payload or heard.data) <= most


TOOL = answers.TOOL[1]
STRICT = {"good": lambda heard: heard.text == TEXT and heard.events == [*WHOLE, "[DONE]"]}
CHECKS: dict[str, Check] = {
    **STRICT,
    "accept-silent": ends("open"), "rst-on-accept": ends("rst"),
    "close-on-accept": lambda heard: heard.data == b"" and heard.ending != "open",
    "never-answers": ends("open"), "rst-before-head": ends("rst"), "close-before-head": ends("fin"), "half-close": ends("fin"),
    "half-close-midway": lambda heard: cut_after_words(heard) and heard.ending == "fin",
    "rst-in-head": ends("rst", b"HTTP/1.1 200 OK\r\nContent-Type: text/ev"),
    "head-then-silence": lambda heard: heard.status == 200 and heard.payload == b"" and heard.ending == "open",
    "words-then-silence": lambda heard: cut_after_words(heard) and heard.ending == "open",
    "comments-forever": lambda heard: set(heard.chunks) == {b": ping\n\n"} and len(heard.chunks) >= 2 and heard.ending == "open",
    "words-then-comments": lambda heard: cut_after_words(heard) and heard.chunks[-1] == b": ping\n\n" and heard.ending == "open",
    "informational-forever": lambda heard: heard.data.count(b"HTTP/1.1 102 ") >= 2 and heard.data.count(b"HTTP/1.1 2") == 0,
    "drip-head": lambda heard: 1 <= len(heard.data) <= 4 and heard.ending == "open",
    "drip-body": lambda heard: 1 <= len(heard.payload) <= 4 and heard.ending == "open",
    "drip-after-words": lambda heard: cut_after_words(heard) and heard.ending == "open" and heard.data[-4:] != b"}\n\n",
    "slow-words": lambda heard: 2 <= len(heard.chunks) <= 3 and heard.ending == "open", "late": ends("open"),
    "eof-before-done": lambda heard: cut_after_words(heard) and heard.chunks[-1] == b"" and heard.ending == "fin",
    "eof-unframed": lambda heard: cut_after_words(heard) and b"transfer-encoding" not in heard.head and heard.ending == "fin",
    "eof-before-finish": lambda heard: heard.text == TEXT and b"[DONE]" not in heard.data and b"stop" not in heard.data,
    "no-done-mark": lambda heard: heard.text == TEXT and b"[DONE]" not in heard.data and b'"stop"' in heard.data,
    "eof-before-words": lambda heard: heard.text == "" and heard.chunks[-1] == b"" and len(heard.chunks) == 2,
    "rst-after-tokens": lambda heard: cut_after_words(heard) and heard.ending == "rst",
    "close-in-chunk": lambda heard: heard.data.endswith(b"400\r\ndata: {") and heard.ending == "fin",
    "bad-chunk-length": lambda heard: b"\r\nzz\r\ndata: {" in heard.data,
    "short-chunk-length": lambda heard: b"\r\n5\r\ndata: {" in heard.data,
    "short-body": lambda heard: int(re.findall(rb"content-length: (\d+)", heard.head)[0]) > len(heard.payload) and heard.ending == "fin",
    "not-http": lambda heard: heard.data.startswith(b"SSH-2.0-"),
    "huge-body": lambda heard: heard.data.count(b"flood") > 100_000 and b"data: " in heard.data,
    "huge-line": lambda heard: heard.payload.replace(b"flood ", b"").count(b"\n") < 100 and b"\n\n" not in heard.payload,
    "huge-space": lambda heard: heard.payload.count(b"\n" * 60_000) > 10,
    "huge-header": lambda heard: b"\r\n\r\n" not in heard.data and heard.data.count(b"\r\n") == 2 and len(heard.data) >= 1 << 20,
    "many-headers": lambda heard: b"\r\n\r\n" not in heard.data and heard.data.count(b"\r\nX-Flood-") > 10_000,
    "million-chunks": lambda heard: heard.payload.count(b"1\r\n:\r\n") > 100_000,
    "many-events": lambda heard: heard.payload.count(b'{"content": ""}') > 1000,
    "gzip-bomb": lambda heard: len(heard.payload) < 40_000 and len(gzip.decompress(heard.payload)) == 32 << 20,
    "gzip-good": lambda heard: gzip.decompress(heard.body).decode().count("data: ") == len(WHOLE) + 1,
    "gzip-broken": lambda heard: header("content-encoding", "gzip")(heard) and heard.body.startswith(b"data: "),
    "unknown-encoding": lambda heard: header("content-encoding", "x-lab")(heard) and zlib.decompress(heard.body).startswith(b"data: "),
    "unframed": lambda heard: b"transfer-encoding" not in heard.head and heard.text == TEXT and heard.ending == "fin",
    "chunk-extras": lambda heard: heard.payload.count(b';lab="x"\r\ndata: ') == len(WHOLE) + 1 and b"\r\n000\r\nX-Lab: " in heard.payload,
    "after-done": lambda heard: b": still here" in heard.body.partition(b"[DONE]")[2] and heard.ending == "open",
    "slow-good": lambda heard: heard.text == TEXT and heard.took_s >= 0.3,
    "crlf": lambda heard: heard.body.count(b"\r\n\r\n") == len(WHOLE) + 1 and heard.body.count(b"\n") == heard.body.count(b"\r\n"),
    "cr-only": lambda heard: heard.body.count(b"\r\r") == len(WHOLE) + 1 and b"\n" not in heard.body,
    "crlf-cut": lambda heard: any(chunk.endswith(b"\r") for chunk in heard.chunks[:-1]) and lines(heard).count("data: ") == len(WHOLE) + 1,
    "comments": good_but(lambda heard: heard.body.startswith(b": PROCESSING\n\n") and heard.body.count(b": comment\ndata") > 10),
    "no-space": good_but(lambda heard: b"data:{" in heard.body and b"data: " not in heard.body),
    "many-lines": several_lines,
    "bom": lambda heard: heard.body.startswith(b"\xef\xbb\xbfdata: "),
    "split-utf8": good_but(lambda heard: any(not decodes(chunk) for chunk in heard.chunks)),
    "byte-chunks": tiny_chunks,
    "one-segment": good_but(lambda heard: len(heard.chunks) == 2),
    "other-fields": good_but(lambda heard: numbers(heard) == list(range(len(WHOLE) + 1)) and b"retry: 10\nevent: message\n" in heard.body),
    "escapes": lambda heard: heard.body.isascii() and heard.text == TEXT,
    "blank-lines": good_but(lambda heard: heard.body.startswith(b"\n\n") and b"\n\n\n\n" in heard.body),
    "no-last-line-end": good_but(lambda heard: heard.body.endswith(b"[DONE]")),
    "slow-pieces": good_but(lambda heard: max(map(len, heard.chunks)) == 97),
    "bad-json": amid(b'data: {"choices": [{"delta": {"content": " lost"}\n\n'), "not-json": amid(b"data: words that are no JSON\n\n"),
    "not-an-object": amid(b"data: 17\n\n"), "bad-utf8": amid(b"\xff\xfe\x80"), "lone-surrogate": amid(b'" \\ud83d"'),
    "nul-bytes": amid(b"\x00\x00\x00\x00"), "deep-json": amid(b"[" * 100_000), "wrong-types": amid(b'"usage": []'),
    "null-choice": amid(b"[null]"), "number-content": amid(b'{"content": 17}'), "huge-number": amid(b"1" + b"0" * 5000),
    "error-in-200": lambda heard: says('data: {"error": {"message": "the model is overloaded"')(heard) and heard.text == "",
    "error-object-in-200": lambda heard: heard.status == 200 and json.loads(heard.body)["error"]["code"] == 503,
    "error-event": says("event: error\ndata: "), "error-as-text": says('{"error": "upstream gave up"}'),
    "error-midway": lambda heard: says('{"error": ')(heard) and heard.body.count(b'"content": ') == 6,
    "error-429-in-200": says("rate_limit_exceeded"), "error-401-in-200": says("invalid_api_key"),
    "empty-choices": says('"choices": []', '"completion_tokens": 0'), "empty-content": empty("stop"),
    "null-content": lambda heard: empty("stop")(heard) and b'"content": null' in heard.body, "empty-no-reason": empty(None),
    "empty-length": empty("length"), "empty-filter": empty("content_filter"),
    "repeated-role": lambda heard: heard.text == TEXT and heard.body.count(b'"role": "assistant"') > 10,
    "reason-twice": lambda heard: heard.text == TEXT and heard.body.count(b'"finish_reason": "stop"') == 2,
    "text-after-reason": lambda heard: heard.text.startswith(TEXT) and len(heard.text) > len(TEXT),
    "whole-again": lambda heard: heard.text == TEXT + TEXT and b"chatcmpl-again" in heard.body,
    "message-at-end": lambda heard: heard.text == TEXT and f'"message": {{"role": "assistant", "content": "{TEXT}"' in heard.body.decode(),
    "second-choice": lambda heard: heard.body.count(b'"index": 1') == len(WHOLE),
    "other-answer": two_answers,
    "same-event-twice": lambda heard: numbers(heard)[3:9] == [3, 4, 5, 3, 4, 5],
    "events-swapped": lambda heard: numbers(heard)[3:7] == [3, 5, 4, 6],
    "tool-split": lambda heard: arguments(heard) == TOOL and len(heard.deltas) > 8,
    "tool-doubled": lambda heard: arguments(heard) == TOOL * 2,
    "tool-name-repeated": lambda heard: arguments(heard) == TOOL and heard.body.count(b'"name": "weather"') == 4,
    "tool-index-gap": lambda heard: arguments(heard) == TOOL and indexes(heard) == {3},
    "tool-cut": lambda heard: TOOL.startswith(arguments(heard)) and arguments(heard) != TOOL and b'"tool_calls"' in heard.body,
    **{f"status-{number}": status(number) for number in (400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 425, 599, 799, *SERVER_ERRORS)},
    "status-200-empty": lambda heard: heard.status == 200 and heard.body == b"", "status-204": lambda heard: heard.status == 204,
    "status-206": lambda heard: heard.status == 206, "html-500": lambda heard: heard.status == 502 and b"<html>" in heard.body,
    "context-length": lambda heard: heard.status == 400 and b"context_length_exceeded" in heard.body,
    "quota": lambda heard: heard.status == 429 and b"insufficient_quota" in heard.body,
    "503-retry-after": lambda heard: heard.status == 503 and header("retry-after", r"0\.4")(heard),
    "html-page": lambda heard: says("<html>")(heard) and header("content-type", "text/html.*")(heard),
    "html-as-answer": lambda heard: says("<html>")(heard) and header("content-type", "text/event-stream.*")(heard),
    "captive-511": lambda heard: heard.status == 511 and b"<html>" in heard.body,
    "captive-302": redirects(302, "/login"), "image": lambda heard: heard.body.startswith(b"\x89PNG"),
    "wrong-type": lambda heard: heard.text == TEXT and header("content-type", "text/plain")(heard),
    "no-type": lambda heard: heard.text == TEXT and b"content-type" not in heard.head,
    "json-list": says('["no", "answer"]'), "json-text": says('"no answer"'), "json-other": says('{"status": "ok"}'),
    "429-bare": lambda heard: heard.status == 429 and b"retry-after" not in heard.head, "429-int": limited("retry-after", "1"),
    "429-float": limited("retry-after", r"0\.4"), "429-date": dated(-0.1, 1.6), "429-ms": limited("retry-after-ms", "400"),
    "429-body": lambda heard: heard.status == 429 and b'"retryDelay": "0.4s"' in heard.body and b"retry-after" not in heard.head,
    "429-past": dated(-3700, -3500), "429-negative": limited("retry-after", "-5"), "429-nan": limited("retry-after", "nan"),
    "429-infinite": limited("retry-after", "inf"), "429-1e9": limited("retry-after", "1e9"), "429-hour": limited("retry-after", "3600"),
    "429-far-date": limited("retry-after", "fri, 31 dec 9999 23:59:59 gmt"), "429-garbage": limited("retry-after", "soon.*"),
    "429-digits": limited("retry-after", "9{5000}"), "429-date-garbage": limited("retry-after", "mon, 99 foo.*"),
    **{f"redirect-{number}": redirects(number, r"http://127\.0\.0\.1:\d+/v1/chat/completions") for number in (301, 302, 303, 307, 308)},
    "redirect-host": redirects(307, r"http://localhost:\d+/v1/chat/completions"), "redirect-tls": redirects(308, "https://127.*"),
    "redirect-same": redirects(307, "http://127.*/v1/moved/chat/completions"),
    "redirect-relative": redirects(302, "/v1/moved/chat/completions"),
}  # fmt: skip

PATIENCE_S = {"slow-good": 1.0, "slow-words": 0.45, "drip-head": 0.25, "drip-body": 0.25, "split-utf8": 2.0}
BRIEF_S = 0.22
LONG = tuple(
    name
    for name in CHECKS
    if name.startswith(("huge", "many-h", "many-e", "million", "gzip", "deep", "byte", "slow-p", "crlf-cut"))
)


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_every_behaviour_is_checked_on_the_wire() -> None:
    assert set(CHECKS) == set(BEHAVIOURS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_behaviour_is_on_the_wire_what_it_says(lab: Lab, name: str) -> None:
    lab.set(name)
    heard = ask(lab, patience_s=PATIENCE_S.get(name, 2.0 if name in LONG else BRIEF_S))
    assert CHECKS[name](heard), heard.data[:2000]
    assert not lab.problems


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in STRICT and name not in ("slow-words", "late")])
def test_no_check_takes_a_good_answer_for_a_fault(name: str) -> None:
    body = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part)
        for part in (*map(answers.sse, answers.stream_events(PROMPT)), b"data: [DONE]\n\n")
    )
    good = Heard(
        b"HTTP/1.1 200 OK\r\nContent-Type: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n", "fin", 0.0
    )
    try:
        taken = CHECKS[name](good)
    except (AssertionError, OSError, ValueError, IndexError, zlib.error):
        return
    assert not taken


def test_whole_answers_are_one_object(lab: Lab) -> None:
    lab.set("good")
    found = json.loads(ask(lab, stream=False, patience_s=BRIEF_S).payload)
    assert found["choices"][0]["message"]["content"] == TEXT
    assert found["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["eof-before-done", "short-body", "eof-before-finish", "eof-unframed"])
def test_whole_answers_are_cut_too(lab: Lab, name: str) -> None:
    lab.set(name)
    heard = ask(lab, stream=False, patience_s=BRIEF_S)
    assert heard.body.startswith(b'{"id"')
    with pytest.raises(ValueError):
        json.loads(heard.body)
