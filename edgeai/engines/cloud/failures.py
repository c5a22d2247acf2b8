"""What an endpoint said when it did not answer → how the attempt failed, and when another may be worth it."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from edgeai.engines.cloud.key import mask
from edgeai.errors import CloudFailure, FailureKind

__all__ = ["from_error", "from_response", "quoted", "retry_after_s"]

MOST_WAIT_S = 86_400.0
"""A wait that is asked for counts as a day at most."""
SHOWN = 200
"""Characters of an endpoint's own words in a message."""
MOST_CHARS = 20_000
"""Of what an endpoint says no more is looked at: it may be megabytes."""
KINDS: Mapping[int, FailureKind] = {
    401: "credentials", 402: "credentials", 403: "credentials", 408: "server", 409: "server", 425: "server", 429: "rate_limited",
    511: "captive",
}  # fmt: skip
"""Statuses whose kind is not that of their hundred. 511: Network Authentication Required, RFC 6585."""
CODES: Mapping[str, int] = {
    "invalid_api_key": 401, "authentication_error": 401, "unauthorized": 401, "api_key_invalid": 401, "unauthenticated": 401,
    "permission_error": 403, "permission_denied": 403, "forbidden": 403,
    "rate_limit_exceeded": 429, "rate_limit_error": 429, "rate_limited": 429, "too_many_requests": 429, "resource_exhausted": 429,
    "invalid_request_error": 400, "bad_request": 400, "badrequesterror": 400, "invalid_argument": 400, "not_found_error": 404,
    "not_found": 404, "model_not_found": 404, "notfounderror": 404,
    "server_error": 500, "api_error": 500, "internal_server_error": 500, "internal": 500, "overloaded_error": 529, "overloaded": 529,
    "unavailable": 503, "service_unavailable": 503, "timeout": 504, "deadline_exceeded": 504,
}  # fmt: skip
"""Words that stand for a status in errors inside an answer: those of OpenAI, Anthropic, vLLM and google.rpc.Code."""
QUOTA = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits", "insufficient_balance",
    "exceeded_current_quota_error", "quota_exhausted", "access_terminated",
}  # fmt: skip
QUOTA_TEXT = re.compile(
    r"insufficient (quota|credit|balance|funds)|exceeded your current quota|out of credits|billing", re.I
)
CONTEXT_TEXT = re.compile(
    r"context_length_exceeded|context (length|window|size)|maximum context|too many (input )?tokens|(prompt|input) is too long"
    r"|reduce the length|exceeds? the (available |maximum )?context|longer than the maximum model length",
    re.I,
)
DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"')
"""google.rpc.RetryInfo as JSON."""
NUMBER = re.compile(r"\+?\d{1,12}(\.\d{0,9})?([eE]\+?\d{1,2})?")
SAID: Mapping[FailureKind, tuple[str, str]] = {
    "refused": ("refused the request", "the same request would be refused again"),
    "context": ("says that the request is too long for its model", "shorten the conversation, or use a model with a longer context"),
    "credentials": ("does not accept the key", "check the key and what its account may use"),
    "quota": ("says that the account has run out", "see to the account's quota or payment"),
    "rate_limited": ("says that there were too many requests", "wait"),
    "server": ("failed", "ask again later"),
    "captive": ("did not answer: a page came in its place", "log in to this network in a browser"),
    "malformed": ("gave what is no answer", "ask another endpoint"),
}  # fmt: skip


def from_response(host: str, status: int, headers: Mapping[str, str], body: bytes, *, key: str = "") -> CloudFailure:
    """Return the failure that an answer of HOST with STATUS means; KEY says where the key is from. HEADERS have lower-case names."""
    if 300 <= status < 400:
        return _redirect(host, status, headers)
    error = _error_in(body)
    words, codes = _words_of(error) if error is not None else (body.decode("utf-8", "replace"), [])
    if error is None and "html" in headers.get("content-type", ""):
        words = ""  # a page says nothing in 200 characters
    kind = KINDS.get(status) or ("malformed" if status < 300 else "refused" if status < 500 else "server")
    kind = _closer(kind, status, words, codes)
    wait = retry_after_s(headers, body) if kind in ("rate_limited", "server", "quota") else None
    return _failure(
        host, kind, status=status, words=words, wait=wait, key=key,
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "").lower()),
    )  # fmt: skip


def from_error(host: str, error: Any, *, raw: bytes = b"") -> CloudFailure:
    """Return the failure that ERROR means, an error object inside an answer of status 200: what it says inside decides."""
    words, codes = _words_of(error)
    status = next((CODES[code] for code in codes if code in CODES), 0)
    status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), status)
    kind: FailureKind = KINDS.get(status) or ("refused" if 400 <= status < 500 else "server")
    kind = _closer(kind, status or 400, words, codes)
    wait = retry_after_s({}, raw) if kind in ("rate_limited", "server", "quota") else None
    return _failure(host, kind, status=status or None, words=words, wait=wait, reason="error-inside")


def _failure(
    host: str, kind: FailureKind, *, status: int | None, words: str, wait: float | None, key: str = "", reason: str = "",
    should_retry: bool | None = None,
) -> CloudFailure:  # fmt: skip
    said, hint = SAID[kind]
    if kind == "rate_limited" and wait is not None:
        hint = f"wait {wait:g} s, as it says"
    if kind == "credentials":
        hint = (
            f"check {key}, and what its account may use" if key else "give it a key: see `api_key` of the configuration"
        )
    number = f" ({status})" if status is not None else ""
    shown = quoted(words)
    return CloudFailure(
        f"{host} {said}{number}{shown and f': {shown}'}", kind=kind, status=status, retry_after_s=wait, hint=hint,
        reason=reason or f"status-{status}", should_retry=should_retry,
    )  # fmt: skip


def _closer(kind: FailureKind, status: int, words: str, codes: list[str]) -> FailureKind:
    """Return what KIND really is, by the words that came with it."""
    if QUOTA & set(codes):
        return "quota"
    if kind == "rate_limited" and QUOTA_TEXT.search(words) and "retryDelay" not in words:
        return "quota"
    if status in (400, 413, 422) and (CONTEXT_TEXT.search(words) or any(CONTEXT_TEXT.search(code) for code in codes)):
        return "context"
    if kind == "refused" and any(CODES.get(code) == 401 for code in codes):
        return "credentials"
    return kind


def _redirect(host: str, status: int, headers: Mapping[str, str]) -> CloudFailure:
    try:
        parts = urlsplit(headers.get("location", ""))
        port = f":{parts.port}" if parts.port else ""
        target = f"{parts.scheme}://{parts.hostname}{port}" if parts.hostname else "another path"
    except ValueError:
        target = "somewhere"
    return CloudFailure(
        f"{host} redirects ({status}) to {quoted(target)}, and redirects are not followed: the key and the prompt are for {host}",
        kind="refused", status=status, reason="redirect", hint="set base_url to where the endpoint really is",
    )  # fmt: skip


def _error_in(body: bytes) -> Any:
    """Return the error object of a BODY in JSON; the whole of another object, None where there is no object."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and found:  # Google wraps it
        found = found[0]
    if not isinstance(found, dict):
        return None
    return found.get("error") or found


def _words_of(error: Any) -> tuple[str, list[str]]:
    """Return what ERROR says for people, and its codes in lower case."""
    if not isinstance(error, dict):
        return str(error)[:MOST_CHARS], []
    words = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), "")
    codes = [
        str(error[name])[:SHOWN].lower()
        for name in ("code", "type", "status")
        if isinstance(error.get(name), str | int)
    ]
    return (words if isinstance(words, str) else json.dumps(words))[:MOST_CHARS], codes


def quoted(text: str) -> str:
    """Return an endpoint's TEXT as a message may show it: one line, short, no control characters, no key."""
    line = "".join(" " if character.isspace() else character for character in text[:MOST_CHARS])
    line = mask("".join(character for character in line if character.isprintable()))
    line = " ".join(line.split())
    if len(text) > MOST_CHARS and len(line) <= SHOWN:  # its end would show, which may be half of a key
        return "…"
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def retry_after_s(headers: Mapping[str, str], body: bytes = b"", *, now: float | None = None) -> float | None:
    """Return how long an endpoint asks to be left alone, 0 to a day; None where it says nothing or nonsense.

    `retry-after-ms`, then `Retry-After` in seconds or as a date of RFC 9110, then `retryDelay` in the BODY. A date that is past is 0;
    negative numbers, NaN and infinity are nonsense, and more than a day counts as one.
    """
    if (found := _number(headers.get("retry-after-ms"))) is not None:
        return min(found / 1000, MOST_WAIT_S)
    text = headers.get("retry-after", "").strip()
    if (found := _number(text)) is not None:
        return min(found, MOST_WAIT_S)
    if (found := _until(text, time.time() if now is None else now)) is not None:
        return min(found, MOST_WAIT_S)
    match = DELAY.search(body.decode("utf-8", "replace"))
    return min(float(match[1]), MOST_WAIT_S) if match else None


def _number(text: str | None) -> float | None:
    return float(text) if text and NUMBER.fullmatch(text.strip()) else None


def _until(text: str, now: float) -> float | None:
    """Return the seconds from NOW, wall-clock, to the date TEXT; None for what is no date. A date has no better clock than that."""
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
