"""Nothing is sent to anybody but the endpoint, and the key is shown nowhere, under every fault."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from edgeai.engines.cloud import CloudEngine
from edgeai.errors import CloudFailure, EdgeAIError
from edgeai.types import GenerationConfig
from tests.engines.cloud.endpoints import ASK, KEY, endpoint
from tests.engines.cloud.server import DONE, END, GOOD, HEAD, Step, answer, delta, event, serve

ECHO = f'{{"error": {{"message": "bad key {KEY}", "code": "x {KEY}"}}}}'.encode()
FAULTS: dict[str, Sequence[Step]] = {
    "good": [GOOD],
    "401": [answer("401 x", ECHO)],
    "400": [answer("400 x", ECHO)],
    "500 with the key in its headers": [answer("500 x", ECHO, X_Echo=f"Bearer {KEY}")],
    "redirect": [answer("302 x", Location=f"http://127.0.0.9:9/?k={KEY}")],
    "redirect to a host of that name": [answer("302 x", Location=f"http://{KEY}.example/")],
    "error inside": [HEAD + event({"error": {"message": KEY, "code": 429}}) + END],
    "page": [answer("200 OK", f"<html>{KEY}".encode(), kind="text/html")],
    "content type": [answer("200 OK", b"x", kind=f"text/{KEY}")],
    "no JSON": [HEAD + event(f"{{{KEY}") + END],
    "status line": [f"HTTP/1.1 {KEY}\r\n\r\n".encode(), "fin"],
    "header": [f"HTTP/1.1 200 OK\r\n{KEY}\x00: {KEY}\r\n\r\n".encode(), "fin"],
    "chunk": [HEAD + f"{KEY}\r\n".encode(), "fin"],
    "model name": [
        HEAD + delta("a") + event({"model": KEY, "choices": [{"delta": {}, "finish_reason": KEY}]}) + DONE + END
    ],
    "cut": [HEAD + delta("a"), "fin"],
    "reset": [HEAD, "rst"],
    "silence": ["hang"],
    "no end": [HEAD + delta("a") + b"x" * 200_000, "hang"],
}


@pytest.fixture
def contacted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every address that a socket of this process was connected or sent to, and every name that was looked up."""
    found: list[Any] = []

    class Spy(socket.socket):
        def connect(self, address: Any) -> None:
            found.append(address[:2])
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            found.append(address[:2])
            return super().connect_ex(address)

        def sendto(self, *arguments: Any) -> int:
            found.append(arguments[-1])
            return super().sendto(*arguments)

    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        found.append((host, port))
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "socket", Spy)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_only_the_endpoint_is_contacted(fault: str, contacted: list[Any]) -> None:
    environment = {"HTTP_PROXY": "http://127.0.0.7:1", "OPENAI_BASE_URL": "http://127.0.0.8:1/v1"}
    with serve(FAULTS[fault]) as server, endpoint(server.url, environment=environment) as made:
        for _ in range(2):
            try_it(made)
        assert set(contacted) == {("127.0.0.1", server.port)}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_key_is_in_no_log_no_error_and_no_repr(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(FAULTS[fault]) as server, endpoint(server.url) as made:
        shown = [repr(made), repr(vars(made)), made.url, str(made.problem())]
        error = try_it(made, shown)
        assert any(KEY.encode() in request for request in server.requests)
    while error is not None:  # what it came from, too
        shown += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
        error = error.__cause__ or error.__context__
    shown += [record.getMessage() for record in caplog.records]
    shown += [caplog.text]
    assert caplog.records  # the HTTP library says something
    assert not [text for text in shown if KEY in text]


def try_it(made: Any, shown: list[str] | None = None) -> BaseException | None:
    attempt = made.attempt(ASK, GenerationConfig())
    try:
        for chunk in attempt:
            if shown is not None and chunk.finish_reason is not None:
                shown.append(repr(chunk))
    except CloudFailure as failure:
        return failure
    finally:
        if shown is not None:
            shown += [repr(attempt), repr(vars(attempt))]
    return None


def test_without_the_mask_the_log_of_the_http_library_would_show_the_key(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.engines.cloud.key._Masking.filter", lambda *_: True)
    caplog.set_level(logging.DEBUG)
    with serve(FAULTS["500 with the key in its headers"]) as server, endpoint(server.url) as made:
        try_it(made)
    assert KEY in caplog.text


def test_a_message_that_is_marked_private_opens_no_socket(contacted: list[Any]) -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        engine = CloudEngine([made])
        with pytest.raises(EdgeAIError, match="marked private"):
            engine.generate([*ASK, {"role": "user", "content": "x", "private": True}], GenerationConfig())
        assert contacted == []
        assert server.connections == 0
