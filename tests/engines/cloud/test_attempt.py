"""Attempts over real sockets: what is sent, what is read, and what each fault is called."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from edgeai.config import CloudSettings, Timeouts
from edgeai.engines.cloud import Endpoint
from edgeai.errors import ClosedError, CloudFailure, UsageError
from edgeai.types import GenerationConfig, Usage
from tests.engines.cloud.endpoints import ASK, KEY, SHORT, ask, endpoint, failure_of, text_of
from tests.engines.cloud.server import DONE, END, GOOD, HEAD, Step, answer, chunked, delta, event, serve, usage


def failed(*script: Step, **options: Any) -> CloudFailure:
    with serve(script) as server, endpoint(server.url) as made:
        return failure_of(made, **options)


def test_an_answer_is_text_and_an_end_that_says_who_made_it() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        chunks = ask(made)
        assert [chunk.text for chunk in chunks] == ["Hello", " there", ""]
        end = chunks[-1]
        assert end.finish_reason == "stop"
        assert end.usage == Usage(prompt_tokens=5, completion_tokens=2)
        assert end.served is not None
        assert (end.served.model, end.served.backend, end.served.device) == (
            "cloud/m",
            "cloud",
            f"127.0.0.1:{server.port}",
        )
        assert end.served.plan["model"] == "m-1"


def test_the_request_has_the_key_and_asks_for_no_compression() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        ask(made)
        head = server.head()
        assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert head["authorization"] == f"Bearer {KEY}"
        assert head["accept-encoding"] == "identity"
        assert server.body()["messages"] == ASK
        assert "cookie" not in head


def test_what_is_sent_is_what_encode_says_or_what_it_was_given() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        ask(made)
        assert server.requests[0].partition(b"\r\n\r\n")[2] == made.encode(ASK, GenerationConfig())
        ask(made, body=b'{"redacted": 1}')
        assert server.body() == {"redacted": 1}


def test_bytes_are_counted_as_they_passed_the_socket() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        attempt = made.attempt(ASK, GenerationConfig())
        assert attempt.sent_bytes == 0
        list(attempt)
        assert attempt.sent_bytes == len(server.requests[0])
        assert attempt.received_bytes == len(GOOD)
        assert attempt.remote == f"127.0.0.1:{server.port}"
        assert attempt.ttft_s is not None


def test_nothing_is_sent_before_an_attempt_is_iterated_and_it_is_made_once() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        attempt = made.attempt(ASK, GenerationConfig())
        time.sleep(0.02)
        assert server.connections == 0
        list(attempt)
        with pytest.raises(UsageError, match="made once"):
            iter(attempt)


def test_connections_are_used_again_after_the_end_mark() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        for _ in range(3):
            assert text_of(ask(made)) == "Hello there"
        assert server.connections == 1


def test_the_reader_who_stops_at_the_end_gives_the_connection_back_too() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        for _ in range(2):
            for chunk in made.attempt(ASK, GenerationConfig()):
                if chunk.finish_reason is not None:
                    break
        assert server.connections == 1


def test_after_the_end_mark_nobody_waits_for_the_socket_to_close() -> None:
    with serve([HEAD + delta("a") + delta(finish="stop") + DONE, "hang"]) as server, endpoint(server.url) as made:
        begun = time.monotonic()
        assert text_of(ask(made)) == "a"
        assert time.monotonic() - begun < 0.2


def test_a_reader_who_goes_away_closes_the_connection() -> None:
    with serve([HEAD + delta("a"), "hang"], GOOD) as server, endpoint(server.url) as made:
        for _ in made.attempt(ASK, GenerationConfig()):
            break
        assert text_of(ask(made)) == "Hello there"
        assert server.connections == 2


def test_a_connection_that_was_closed_while_nobody_used_it_is_replaced() -> None:
    quiet = [GOOD, 0.05, "fin"]
    with serve(quiet, GOOD) as server, endpoint(server.url) as made:
        ask(made)
        time.sleep(0.15)
        assert text_of(ask(made)) == "Hello there"


def test_a_connection_that_ends_before_any_byte_is_replaced_once_and_only_an_old_one() -> None:
    with serve(GOOD, ["rst"], GOOD) as server, endpoint(server.url) as made:
        ask(made)
        assert text_of(ask(made)) == "Hello there"
        assert (server.connections, len(server.requests)) == (2, 3)
    with serve(["rst"], GOOD) as server, endpoint(server.url) as made:
        assert failure_of(made).reason == "reset"
        assert len(server.requests) == 1
    with serve(GOOD, ["rst"]) as server, endpoint(server.url) as made:
        ask(made)
        assert failure_of(made).reason == "reset"
        assert len(server.requests) == 3


def test_connections_are_made_anew_after_a_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        ask(made)
        real = time.time
        monkeypatch.setattr("edgeai.engines.cloud.endpoint.time.time", lambda: real() + 3600)
        ask(made)
        assert server.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        [HEAD + delta("a"), "fin"],
        [HEAD + delta("a") + END],
        [HEAD + delta("a") + b"zz\r\n", "fin"],
        [HEAD + chunked(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')[:-9], "fin"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + delta("a")[6:], "fin"],
        [HEAD + END],
        [HEAD + delta("a") + event("{") + DONE + END],
    ],
    ids=["eof", "end of body", "bad chunk", "half an event", "eof of a body without length", "nothing", "bad event"],
)
def test_an_answer_without_its_end_is_never_one(script: Sequence[Step]) -> None:
    assert failed(*script).kind == "malformed"


def test_a_reset_after_text_says_that_there_was_text() -> None:
    found = failed(HEAD + delta("a"), 0.05, "rst")
    assert (found.kind, found.reason, found.committed) == ("connection", "reset", True)
    assert not failed(HEAD, 0.02, "rst").committed


@pytest.mark.parametrize(
    "end", [[END], [DONE + END], [DONE, "fin"], [chunked(b"data: [DONE]") + END], [chunked(b"data:[DONE]\n") + END]]
)
def test_any_of_the_end_marks_ends_an_answer(end: Sequence[Step]) -> None:
    with serve([HEAD + delta("a") + delta(finish="stop"), *end]) as server, endpoint(server.url) as made:
        assert text_of(ask(made)) == "a"
    if end != [END]:
        with serve([HEAD + delta("a"), *end]) as server, endpoint(server.url) as made:
            assert text_of(ask(made)) == "a"


@pytest.mark.parametrize("cut", ["fin", "rst", "hang"])
def test_what_breaks_off_after_the_reason_of_its_end_is_whole_and_that_is_said(
    cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.engines.cloud.attempt.AFTER_FINISH_S", 0.05)
    with serve([HEAD + delta("a") + delta(finish="length"), 0.02, cut]) as server, endpoint(server.url) as made:
        end = ask(made)[-1]
        assert end.finish_reason == "length"
        assert [notice.code for notice in end.notices] == ["cloud-end", "cloud-usage"]


def test_calls_of_tools_come_once_whole_and_count_as_given() -> None:
    begin = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    pieces = delta(tool_calls=[begin]) + delta(tool_calls=[rest])
    with (
        serve(HEAD + pieces + delta(finish="tool_calls") + usage() + DONE + END) as server,
        endpoint(server.url) as made,
    ):
        attempt = made.attempt(ASK, GenerationConfig())
        calls, end = list(attempt)
        assert [(call.name, call.arguments) for call in calls.tool_calls] == [("f", '{"a": 1}')]
        assert end.finish_reason == "tool_calls"
        assert attempt.committed
    assert not failed(HEAD + pieces, "fin").committed  # half of a call is given to nobody


@pytest.mark.parametrize(
    ("response", "kind", "status"),
    [
        (answer("400 x", b'{"error": {"message": "no"}}'), "refused", 400),
        (answer("404 x", b"<html>"), "refused", 404),
        (answer("401 x"), "credentials", 401),
        (answer("429 x", Retry_After="3"), "rate_limited", 429),
        (answer("503 x"), "server", 503),
        (answer("302 x", Location="https://evil.example/"), "refused", 302),
        (answer("307 x", Location="/other"), "refused", 307),
        (answer("204 x"), "malformed", 204),
        (answer("200 OK", b"<!DOCTYPE html>", kind="text/html; charset=utf-8"), "captive", 200),
        (answer("200 OK", b"\n <HTML>", kind="text/event-stream"), "captive", 200),
        (answer("200 OK", b"<html>", kind="application/json"), "captive", 200),
        (answer("200 OK", b"hello", kind="text/plain"), "malformed", None),
        (answer("200 OK", b"", kind="application/json"), "malformed", None),
        (answer("200 OK", b"", kind="text/event-stream"), "malformed", None),
        (answer("200 OK", b'{"choices": []}'), "malformed", None),
        (answer("200 OK", b'{"error": {"code": 429}}'), "rate_limited", 429),
        (answer("200 OK", b'{"error": {"code": 429}}', kind="text/event-stream"), "rate_limited", 429),
        (answer("200 OK", b'{"error": {"code": 429}}\n\n', kind="text/event-stream"), "rate_limited", 429),
        (HEAD + event({"error": {"code": "insufficient_quota", "message": "x"}}) + END, "quota", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "malformed", None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "malformed", None),
        (b"HTTP/1.1 abc\r\n\r\n", "malformed", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, "malformed", None),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000, "malformed", None),
    ],
)  # fmt: skip
def test_what_is_no_answer_has_its_name(response: bytes, kind: str, status: int | None) -> None:
    found = failed(response, "fin")
    assert (found.kind, found.status) == (kind, status)
    assert not found.committed


def test_a_wait_that_is_asked_for_is_handed_on() -> None:
    found = failed(answer("429 x", b"{}", Retry_After="3", x_should_retry="false"))
    assert (found.retry_after_s, found.should_retry) == (3.0, False)


def test_a_compressed_answer_is_refused_unread() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    found = failed(answer("200 OK", bomb, Content_Encoding="gzip"))
    assert (found.kind, found.reason) == ("malformed", "encoding")


def test_an_answer_without_end_is_cut_at_its_most_bytes() -> None:
    few = Timeouts(max_bytes=50_000)
    for endless in (delta("x" * 1000) * 100, chunked(b"data: " + b"x" * 100_000), chunked(b": c\n") * 20_000):
        with serve([HEAD + endless, "hang"]) as server, endpoint(server.url, few) as made:
            attempt = made.attempt(ASK, GenerationConfig())
            with pytest.raises(CloudFailure, match="more than 50000 bytes"):
                list(attempt)
            assert attempt.received_bytes < 50_000 + 70_000


def test_an_endless_error_is_read_a_little() -> None:
    head = b"HTTP/1.1 500 x\r\nContent-Type: text/plain\r\n\r\n"
    begun = time.monotonic()
    assert failed(head + b"x" * 1_000_000, "hang").status == 500
    assert time.monotonic() - begun < 0.3


def test_an_answer_in_one_piece_is_taken_and_that_is_said() -> None:
    whole = {
        "choices": [{"message": {"content": "hey"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    with serve(answer("200 OK", json.dumps(whole).encode())) as server, endpoint(server.url) as made:
        text, end = ask(made)
        assert text.text == "hey"
        assert [notice.code for notice in text.notices] == ["cloud-whole"]
        assert end.usage == Usage(prompt_tokens=1, completion_tokens=1)
    with serve([answer("200 OK", json.dumps(whole).encode())[:-5], "fin"]) as server, endpoint(server.url) as made:
        assert failure_of(made).kind == "malformed"


def test_informational_answers_are_passed_over() -> None:
    with serve(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + GOOD) as server, endpoint(server.url) as made:
        assert text_of(ask(made)) == "Hello there"


def test_offline_means_that_no_socket_is_opened() -> None:
    with serve(GOOD) as server, endpoint(server.url, environment={"EDGEAI_OFFLINE": "1"}) as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", "offline")
        assert server.connections == 0


def test_a_missing_key_is_known_before_any_socket() -> None:
    with serve(GOOD) as server, endpoint(server.url, key=None, api_key="env:NOT_THERE") as made:
        assert made.problem() == "the variable NOT_THERE is not set"
        assert failure_of(made).kind == "credentials"
        assert server.connections == 0


def test_without_a_key_no_header_is_sent() -> None:
    with serve(GOOD) as server, endpoint(server.url, key=None) as made:
        assert made.problem() is None
        ask(made)
        assert "authorization" not in server.head()


def test_a_port_where_nobody_listens_is_a_refused_connection() -> None:
    with serve(GOOD) as server:
        port = server.port
    with endpoint(f"http://127.0.0.1:{port}/v1") as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", "refused")


def test_a_closed_endpoint_says_so() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        ask(made)
        made.close()
        with pytest.raises(ClosedError):
            ask(made)


def test_many_threads_share_an_endpoint_without_mixing_answers() -> None:
    import concurrent.futures

    def tell(sock: Any) -> None:
        sock.sendall(HEAD + b"".join(delta(f"{number} ") for number in range(50)) + delta(finish="stop") + DONE + END)

    with serve([tell]) as server, endpoint(server.url, Timeouts()) as made:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda _: text_of(ask(made)), range(40)))
        assert set(texts) == {"".join(f"{number} " for number in range(50))}
        assert server.connections <= 40


def test_attempts_that_take_turns_in_one_thread_keep_their_bytes_apart() -> None:
    with (
        serve([HEAD + delta("a"), 0.05, delta("b"), delta(finish="stop") + DONE + END]) as server,
        endpoint(server.url) as made,
    ):
        both = [made.attempt(ASK, GenerationConfig()) for _ in range(2)]
        pairs = list(zip(*both, strict=True))
        assert [(one.text, two.text) for one, two in pairs] == [("a", "a"), ("b", "b"), ("", "")]
        assert both[0].sent_bytes == both[1].sent_bytes == len(server.requests[0])


def test_a_ca_file_that_is_none_shows_when_the_endpoint_is_made() -> None:
    settings = CloudSettings(name="t", base_url="https://h", model="m", ca_file="/nowhere.pem")
    with pytest.raises(UsageError, match=r"ca_file '/nowhere\.pem' cannot be used"):
        Endpoint(settings, SHORT, environment={})
