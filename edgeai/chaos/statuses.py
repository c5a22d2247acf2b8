"""Answers that are none: statuses, pages of networks that want a login, limits with every form of `Retry-After`, redirects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

from edgeai.chaos.wire import Behaviour, Exchange

__all__ = ["BEHAVIOURS", "SERVER_ERRORS"]

SERVER_ERRORS = (500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
"""520 to 524 are Cloudflare's, 529 says that a service is overloaded."""
REDIRECTS = (301, 302, 303, 307, 308)
WAIT_S = 0.4
"""What an endpoint asks to wait where that fits a short deadline."""

PAGE = b"""<!DOCTYPE html><html><head><title>Welcome to the guest network</title></head>
<body><form action="/login"><input name="room"><input type="submit" value="Connect"></form></body></html>"""

MESSAGES: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "the request is not possible"),
    401: ("invalid_api_key", "Incorrect API key provided"),
    402: ("insufficient_balance", "the account has no balance"),
    403: ("permission_denied", "this key may not use this model"),
    404: ("model_not_found", "there is no such model"),
    429: ("rate_limit_exceeded", "too many requests"),
}


def error_body(status: int, code: str | None = None, message: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the body of an error as OpenAI's API has it."""
    usual = MESSAGES.get(status, ("server_error", "the server failed"))
    return {"error": {"message": message or usual[1], "type": code or usual[0], "code": code or usual[0], **more}}


def status(
    number: int,
    body: Any = None,
    headers: Callable[[], Iterable[tuple[str, str]]] = lambda: (),
    kind: str = "application/json",
) -> Behaviour:
    """Return a behaviour: an answer with the status NUMBER, a BODY (an error's), and HEADERS made when it is sent."""

    async def behave(exchange: Exchange) -> None:
        exchange.keep = True
        await exchange.reply(number, error_body(number) if body is None else body, headers(), kind=kind)

    return behave


def limited(headers: Callable[[], Iterable[tuple[str, str]]] = lambda: (), **more: Any) -> Behaviour:
    """Return a behaviour: 429 with HEADERS, and MORE in the error of its body."""
    return status(429, error_body(429, **more), headers)


def after(value: str, name: str = "Retry-After") -> Callable[[], Iterable[tuple[str, str]]]:
    """Return what makes the header NAME with VALUE."""
    return lambda: [(name, value)]


def date_in(seconds: float) -> Callable[[], Iterable[tuple[str, str]]]:
    """Return what makes a Retry-After with a date SECONDS from then, as HTTP writes dates; it has no parts of a second."""
    return lambda: [("Retry-After", formatdate(time.time() + seconds, usegmt=True))]


def redirect(number: int, where: str) -> Behaviour:
    """Return a behaviour: a redirect with the status NUMBER to the listener WHERE, or to the same one."""

    async def behave(exchange: Exchange) -> None:
        if where == "same":
            target = exchange.places["http"] + "/moved/chat/completions"
        elif where == "host":  # another name of this machine: another origin, where a key has no business
            target = exchange.places["other"].replace("127.0.0.1", "localhost") + "/chat/completions"
        elif where == "relative":
            target = "/v1/moved/chat/completions"
        else:
            target = exchange.places[where] + "/chat/completions"
        await exchange.reply(number, {"moved": True}, [("Location", target)])

    return behave


async def page_as_stream(exchange: Exchange) -> None:
    """Send the page of a login under the content type that was asked for."""
    await exchange.reply(200, PAGE, kind=exchange.kind)


async def wrong_type(exchange: Exchange) -> None:
    """Send a good answer under the content type of a text: its bytes are right."""
    await exchange.reply(200, b"".join(exchange.pieces()), kind="text/plain")


async def no_type(exchange: Exchange) -> None:
    """Send a good answer without a content type."""
    await exchange.reply(200, b"".join(exchange.pieces()), kind="")


QUOTA = error_body(
    429, "insufficient_quota", "You exceeded your current quota, please check your plan and billing details."
)
TOO_LONG = error_body(
    400,
    "context_length_exceeded",
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
)
LOGIN = [("Location", "/login")]

BEHAVIOURS: dict[str, Behaviour] = {
    **{f"status-{number}": status(number) for number in (400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 425, *SERVER_ERRORS)},
    "status-200-empty": status(200, b""), "status-204": status(204, b""), "status-206": status(206, b"{}"),
    "status-599": status(599), "status-799": status(799), "html-500": status(502, PAGE, kind="text/html"),
    "context-length": status(400, TOO_LONG), "quota": status(429, QUOTA),
    "503-retry-after": status(503, None, after(str(WAIT_S))),
    "html-page": status(200, PAGE, kind="text/html; charset=utf-8"), "html-as-answer": page_as_stream,
    "captive-511": status(511, PAGE, kind="text/html"), "captive-302": status(302, PAGE, lambda: LOGIN, kind="text/html"),
    "image": status(200, b"\x89PNG\r\n\x1a\n" + bytes(64), kind="image/png"), "wrong-type": wrong_type, "no-type": no_type,
    "json-list": status(200, ["no", "answer"]), "json-text": status(200, b'"no answer"'), "json-other": status(200, {"status": "ok"}),
    "429-bare": limited(), "429-int": limited(after("1")), "429-float": limited(after(str(WAIT_S))), "429-date": limited(date_in(1.5)),
    "429-ms": limited(after(str(int(WAIT_S * 1000)), "Retry-After-Ms")),
    "429-body": limited(details=[{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{WAIT_S}s"}]),
    "429-past": limited(date_in(-3600)), "429-negative": limited(after("-5")), "429-nan": limited(after("nan")),
    "429-infinite": limited(after("inf")), "429-1e9": limited(after("1e9")), "429-hour": limited(after("3600")),
    "429-far-date": limited(after("Fri, 31 Dec 9999 23:59:59 GMT")), "429-garbage": limited(after("soon, I hope")),
    "429-digits": limited(after("9" * 5000)), "429-date-garbage": limited(after("Mon, 99 Foo 2026 25:61:61 GMT")),
    **{f"redirect-{number}": redirect(number, "other") for number in REDIRECTS},
    "redirect-host": redirect(307, "host"), "redirect-tls": redirect(308, "tls-good"), "redirect-same": redirect(307, "same"),
    "redirect-relative": redirect(302, "relative"),
}  # fmt: skip
