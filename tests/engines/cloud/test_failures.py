"""What an endpoint says when it does not answer → the kind of the failure, and how long to wait."""

from __future__ import annotations

import email.utils
import json

import pytest

from edgeai.engines.cloud.failures import MOST_WAIT_S, from_error, from_response, quoted, retry_after_s
from edgeai.engines.cloud.key import Key

NOW = 1_800_000_000.0


def failure(status: int, message: str = "", code: str | int = "", **headers: str) -> str:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return from_response("h", status, {name.replace("_", "-"): value for name, value in headers.items()}, body).kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "refused"), (404, "refused"), (405, "refused"), (413, "refused"), (418, "refused"), (422, "refused"),
        (401, "credentials"), (402, "credentials"), (403, "credentials"),
        (408, "server"), (409, "server"), (425, "server"), (429, "rate_limited"),
        (500, "server"), (502, "server"), (503, "server"), (504, "server"), (520, "server"), (524, "server"), (529, "server"),
        (511, "captive"), (204, "malformed"), (206, "malformed"), (301, "refused"), (304, "refused"), (308, "refused"),
    ],
)  # fmt: skip
def test_the_status_decides_the_kind(status: int, kind: str) -> None:
    assert failure(status) == kind


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", "context_length_exceeded"),
        ("This model's maximum context length is 4096 tokens. However, you requested 5000", ""),
        ("the request exceeds the available context size", ""),
        ("prompt is too long: 200001 tokens > 200000 maximum", "invalid_request_error"),
    ],
)
def test_a_request_that_is_too_long_is_known_by_its_words(status: int, message: str, code: str) -> None:
    assert failure(status, message, code) == "context"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("You exceeded your current quota, please check your plan", "insufficient_quota"),
        ("Your billing is not active", ""),
    ],
)
def test_an_account_that_has_run_out_is_no_rate_limit(message: str, code: str) -> None:
    assert failure(429, message, code) == "quota"


def test_a_key_that_is_refused_with_400_is_still_a_matter_of_the_key() -> None:
    assert failure(400, "API key not valid", "invalid_api_key") == "credentials"


def test_a_redirect_names_the_host_and_nothing_of_the_rest() -> None:
    found = from_response("h", 307, {"location": "http://u:p@evil.example:81/x?token=t"}, b"")
    assert "http://evil.example:81," in found.message
    assert "token" not in found.message
    assert "u:p" not in found.message


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"code": 429, "message": "slow"}, "rate_limited", 429),
        ({"code": "rate_limit_exceeded"}, "rate_limited", 429),
        ({"code": "insufficient_quota"}, "quota", None),
        ({"code": 401}, "credentials", 401),
        ({"type": "overloaded_error", "message": "Overloaded"}, "server", 529),
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, "context", 400),
        ({"code": "400", "type": "BadRequestError"}, "refused", 400),
        ({"code": 502, "message": "upstream"}, "server", 502),
        ("something", "server", None),
        (17, "server", None),
    ],
)
def test_an_error_inside_an_answer_is_what_its_own_code_says(error: object, kind: str, status: int | None) -> None:
    found = from_error("h", error)
    assert found.kind == kind
    assert found.status == status


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, b"", 7.0),
        ({"retry-after": " 1.5 "}, b"", 1.5),
        ({"retry-after": "0"}, b"", 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, b"", 0.25),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, b"", 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, b"", 0.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, b"", 0.0),  # RFC 850, which RFC 9110 still has
        ({}, b'{"error": {"details": [{"retryDelay": "12s"}]}}', 12.0),
        ({}, b'{"error": {"details": [{"retryDelay" : "1.25s"}]}}', 1.25),
        ({"retry-after": "1000000000"}, b"", MOST_WAIT_S),
        ({"retry-after-ms": "99999999999"}, b"", MOST_WAIT_S),
        ({"retry-after": "-5"}, b"", None),
        ({"retry-after": "NaN"}, b"", None),
        ({"retry-after": "inf"}, b"", None),
        ({"retry-after": "1e9"}, b"", 86400.0),
        ({"retry-after": "soon"}, b"", None),
        ({"retry-after": "9" * 5000}, b"", None),
        ({"retry-after": ""}, b"", None),
        ({}, b'{"retryDelay": "-3s"}', None),
        ({}, b"", None),
    ],
)  # fmt: skip
def test_every_form_of_retry_after(headers: dict[str, str], body: bytes, seconds: float | None) -> None:
    assert retry_after_s(headers, body, now=NOW) == (None if seconds is None else pytest.approx(seconds))


def test_an_endpoint_may_say_that_trying_again_is_no_use() -> None:
    found = from_response("h", 503, {"x-should-retry": "false"}, b"")
    assert found.kind == "server"
    assert found.should_retry is False
    assert from_response("h", 503, {}, b"").should_retry is None


def test_words_of_an_endpoint_are_quoted_short_in_one_line_and_without_the_key() -> None:
    key = Key("sk-0123456789abcdef", origin="https://h", source="a test")
    shown = quoted("bad\x1b[31m\r\nkey sk-0123\x00456789abcdef " + "x" * 500)
    assert shown.startswith("bad[31m key [key] xxx")
    assert len(shown) == 200
    assert repr(key) == "Key(…)"


@pytest.mark.parametrize(
    "body", [b"[1]", b"[]", b'"x"', b"null", b"{", b"[" * 100_000, b'{"error": []}', b'{"detail": [{"msg": 1}]}']
)
def test_bodies_of_any_form_are_taken(body: bytes) -> None:
    assert from_response("h", 500, {}, body).kind == "server"
