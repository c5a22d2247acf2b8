"""What a detector gives, and how much of it may be shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Hit", "mask", "resolve"]

RANK = ("private_key", "jwt", "url_credentials", "api_key", "card", "iban", "national_id", "email", "ip", "phone")
"""Which kind is believed where two are found in the same characters: the one with the stronger evidence first."""
MOST_CLUSTER = 64
"""So many hits that overlap in a chain are resolved together; a longer chain is in hostile texts only."""


class Hit(NamedTuple):
    """A `kind` of private text ("card") by the rule `id` ("privacy.card") from `start` to `end`."""

    kind: str
    id: str
    start: int
    end: int


def resolve(hits: Iterable[Hit]) -> list[Hit]:
    """Return HITS in the order of the text without overlaps: the longest stays, among equals the one with stronger evidence."""
    kept: list[Hit] = []
    cluster: list[Hit] = []
    reach = -1
    for hit in sorted(set(hits), key=lambda hit: hit.start):
        if hit.start >= reach or len(cluster) >= MOST_CLUSTER:
            kept += _best(cluster, kept[-1].end if kept else 0)
            cluster = []
        cluster.append(hit)
        reach = max(reach, hit.end)
    return kept + _best(cluster, kept[-1].end if kept else 0)


def _best(cluster: list[Hit], begin: int) -> list[Hit]:
    """Return those of CLUSTER that stay; all of them start at BEGIN or later."""
    kept: list[Hit] = []
    for hit in sorted(cluster, key=lambda hit: (hit.start - hit.end, RANK.index(hit.kind), hit.id)):
        if hit.start >= begin and all(hit.end <= other.start or hit.start >= other.end for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start)


def mask(kind: str, value: str) -> str:
    """Return a form of VALUE that may be logged: a few of its characters at most, and none of a secret but its public prefix."""
    if kind == "card":
        digits = "".join(filter(str.isdigit, value))
        return f"{digits[:4]}…{digits[-4:]}"
    if kind == "email":
        plain = unicodedata.normalize("NFKC", value).replace(" ", ".")
        last = plain.rpartition("@")[2].rpartition(".")
        return f"{plain[:1]}…@….{last[2][:8]}" if last[1] else f"{plain[:1]}…@…"
    if kind in ("iban", "phone"):
        return f"{value[:2]}…{value[-2:]}"
    if kind == "national_id":
        return f"…{value[-2:]}"
    if kind == "ip":
        return f"{value[: 1 + max(value.find('.'), value.find(':'))][:5]}…"
    if kind == "url_credentials":
        return f"{value.partition('://')[0][:12]}://…@…"
    if kind == "private_key":
        return "-----BEGIN …"
    return f"{value[:3]}…" if kind == "jwt" or value[:3] in ("sk-", "ghp", "AKI", "pk_", "xox") else "…"
