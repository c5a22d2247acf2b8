"""What the ledger keeps of a routed request: everything that decided it and everything that left, but none of its text.

Of prompt and answer there are digests only: BLAKE2b keyed with 32 random bytes of this machine, which are in a file of their own. Without
that key nobody can find out by guessing which short text a digest stands for, and two machines have different ones for the same text;
who has the ledger and the key can try guesses. Bodies are kept only where the user asked for that, in a table of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from edgeai.routing.request import Decision, Facts, State, Verdict
from edgeai.types import FinishReason, Prompt, Usage

__all__ = [
    "Body",
    "Entry",
    "body_text",
    "canonical",
    "digest",
    "egress_of",
    "is_here",
    "key_name",
    "plain",
    "row_of",
    "time_text",
]

ERROR_CHARS = 300
"""How much of an error is kept: endpoints like to quote what they were sent."""
SECRETS = re.compile(
    r"(?i)(?<=bearer )\S+|\b(?:sk|pk|rk|ghp|gho|xox[abp]|hf|AIza)[-_][\w-]{6,}|AIza[\w-]{20,}|\beyJ[\w-]{8,}\.[\w.-]+|(?<=://)[^/\s@]+(?=@)"
)
"""What looks like a key in an error. The cloud engine keeps its own keys out of errors; this is for what an endpoint says itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A routed request that has ended.

    `attempts` are as `attempts.Attempt.to_dict` has them: model, status, kind, error, ttft_s, wall_s, sent_bytes, received_bytes,
    remote ("host:port") and confidence. `config` is the configuration's sha256, of which 16 digits are kept. `error` is what the caller
    got instead of an answer. `prompt` and `answer` are only digested, unless the ledger keeps bodies; None where there is none.
    """

    id: str
    facts: Facts
    state: State
    decision: Decision
    verdict: Verdict | None = None
    attempts: tuple[Mapping[str, Any], ...] = ()
    answered_by: str | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    usage: Usage | None = None
    cost_usd: float = 0.0
    config: str = ""
    prompt: Prompt | None = field(default=None, repr=False)
    answer: str | None = field(default=None, repr=False)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The texts of a request, for the table of bodies: `prompt` as `body_text` gives it."""

    prompt: str | None
    answer: str | None


def row_of(entry: Entry, key: bytes | None) -> dict[str, Any]:
    """Return ENTRY as the JSON-ready values of a row, without its number; without a KEY it has no digests."""
    facts, decision, verdict = plain(entry.facts), entry.decision, entry.verdict
    egress = egress_of(entry.attempts)
    return {
        "kind": "request",
        "time": time_text(entry.time),
        "id": entry.id,
        "config": entry.config[:16],
        "policy": decision.policy,
        "placement": decision.placement,
        "reason": decision.reason,
        "rules": [plain(finding) for finding in verdict.findings] if verdict else [],
        "examined": {"tier": verdict.tier, "failed": scrub(verdict.failed)} if verdict else None,
        "facts": facts,
        "state": plain(entry.state),
        "decision": plain(decision.to_dict()),
        "attempts": [plain(dict(attempt) | {"error": scrub(attempt.get("error"))}) for attempt in entry.attempts],
        "answered_by": entry.answered_by,
        "finish_reason": entry.finish_reason,
        "error": scrub(entry.error),
        "usage": plain(entry.usage),
        "cost_usd": plain(float(entry.cost_usd)) or 0.0,
        "egress_bytes": sum(item["bytes"] for item in egress),
        "egress": egress,
        "digests": None
        if key is None
        else {
            "key": key_name(key),
            "prompt": digest(body_text(entry.prompt), key),
            "answer": digest(entry.answer, key),
        },
    }


def egress_of(attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how many bytes went where in ATTEMPTS: one {"host", "bytes", "here"} for each host:port.

    `here`: it is an address of this machine. What listens there may pass on what it gets, so its bytes are counted all the same.
    """
    totals: dict[str, int] = {}
    for attempt in attempts:
        if sent := int(attempt.get("sent_bytes") or 0):
            host = str(attempt.get("remote") or "unknown")
            totals[host] = totals.get(host, 0) + sent
    return [{"host": host, "bytes": total, "here": is_here(host)} for host, total in totals.items()]


def is_here(host: str) -> bool:
    """Whether HOST, "name:port", is a loopback address."""
    name = host.rpartition(":")[0].strip("[]") or host
    return name == "localhost" or name == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None


def body_text(prompt: Prompt | None) -> str | None:
    """Return PROMPT as one text: itself, or its messages as canonical JSON."""
    return prompt if prompt is None or isinstance(prompt, str) else canonical(plain(list(prompt)))


def digest(text: str | None, key: bytes) -> str | None:
    """Return the keyed BLAKE2b (RFC 7693) of TEXT, 32 hexadecimal digits; None of None."""
    if text is None:
        return None
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=key).hexdigest()


def key_name(key: bytes) -> str:
    """Return what tells KEY from others and gives nothing of it away, 8 hexadecimal digits."""
    return hashlib.blake2b(b"edgeai ledger key", digest_size=4, key=key).hexdigest()


def canonical(value: Any) -> str:
    """Return VALUE as the JSON text that is hashed: sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """Return VALUE with dataclasses and mappings as dicts, sequences as lists, and numbers that JSON does not have as None."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {spec.name: plain(getattr(value, spec.name)) for spec in fields(value)}
    return str(value)


def scrub(text: str | None) -> str | None:
    """Return the error TEXT as it may be kept: short, without control characters and without what looks like a key."""
    if text is None:
        return None
    clean = "".join(char if char.isprintable() else " " for char in text[: 4 * ERROR_CHARS])
    clean = SECRETS.sub("…", clean)
    return clean if len(clean) <= ERROR_CHARS else f"{clean[:ERROR_CHARS]}…"


def time_text(moment: datetime) -> str:
    """Return MOMENT in UTC as ISO 8601 with microseconds, which sorts as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
