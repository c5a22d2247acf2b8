"""What is private by its form: addresses, numbers with check digits, keys. Each pattern is linear, and no match is longer than bounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from edgeai.routing.privacy.contacts import find_emails
from edgeai.routing.privacy.finance import find_cards, find_ibans
from edgeai.routing.privacy.hits import Hit, mask, resolve
from edgeai.routing.privacy.identity import find_national_ids
from edgeai.routing.privacy.network import find_addresses, find_url_credentials
from edgeai.routing.privacy.phones import find_phones
from edgeai.routing.privacy.secrets import find_keys, find_private_keys, find_secrets
from edgeai.routing.privacy.tables import find_tables
from edgeai.routing.privacy.text import View, views
from edgeai.routing.request import Finding

__all__ = ["DETECTORS", "find_structured", "scan", "to_findings"]

DETECTORS: tuple[Callable[[View], Iterator[Hit]], ...] = (
    find_emails, find_phones, find_cards, find_ibans, find_national_ids, find_addresses, find_url_credentials, find_keys, find_secrets,
)  # fmt: skip
TAIL = re.compile(r"[\w\-.+/=~]*+")


def find_structured(text: str) -> list[Finding]:
    """Return what is private in TEXT by its form, in its order, without overlaps."""
    return to_findings(text, (hit for hits in scan(text) for hit in hits))


def scan(text: str) -> Iterator[list[Hit]]:
    """Yield what is found in each slice of TEXT, with places in TEXT, so that a caller can look at the clock in between."""
    if "PRIVATE KEY" in text or "PuTTY-User-Key" in text:
        yield list(find_private_keys(View(text, "", last=len(text))))  # longer than a slice
    tables = find_tables(text)
    for view in views(text, tables):
        found = []
        for detector in DETECTORS:
            for hit in detector(view):
                if view.first <= hit.start < view.last:
                    found.append(_placed(text, view, hit))
        yield found


def _placed(text: str, view: View, hit: Hit) -> Hit:
    start, end = view.place(hit.start, hit.end)
    if hit.end == len(view.text) and end < len(text):  # a long token that the slice cuts
        match = TAIL.match(text, end)
        end = match.end() if match else end
    return Hit(hit.kind, hit.id, start, end)


def to_findings(text: str, hits: Iterable[Hit]) -> list[Finding]:
    """Return HITS in TEXT as findings, without overlaps."""
    return [
        Finding(
            id=hit.id, kind=hit.kind, start=hit.start, end=hit.end, masked=mask(hit.kind, text[hit.start : hit.end])
        )
        for hit in resolve(hits)
    ]
