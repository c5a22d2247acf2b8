"""What left this machine, out of the ledger: which bytes, where to, of which request, and what placeholders stood for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Egress", "Sent", "egress_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Bytes of one request to one host. `replaced`: kinds of private text that placeholders stood for, with their counts."""

    seq: int
    time: str
    id: str
    host: str
    here: bool
    bytes: int
    model: str | None
    replaced: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Everything that was sent to an endpoint, oldest first. What went to an endpoint `here` did not leave by itself."""

    sent: tuple[Sent, ...] = ()

    @property
    def left_bytes(self) -> int:
        """How many bytes went to other machines."""
        return sum(item.bytes for item in self.sent if not item.here)

    @property
    def here_bytes(self) -> int:
        """How many went to endpoints on this machine; what listens there may pass them on."""
        return sum(item.bytes for item in self.sent if item.here)

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return bytes and requests of each host."""
        found: dict[str, dict[str, Any]] = {}
        for item in self.sent:
            host = found.setdefault(item.host, {"bytes": 0, "requests": 0, "here": item.here})
            host["bytes"] += item.bytes
            host["requests"] += 1
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "left_bytes": self.left_bytes, "here_bytes": self.here_bytes, "hosts": self.hosts(),
            "sent": [asdict(item) for item in self.sent],
        }  # fmt: skip


def egress_report(rows: Iterable[Mapping[str, Any]]) -> Egress:
    """Return what left in ROWS of the ledger."""
    return Egress(
        sent=tuple(
            Sent(
                seq=row["seq"], time=row["time"], id=row["id"], host=item["host"], here=item["here"], bytes=item["bytes"],
                model=_model(row, item["host"]), replaced=_replaced(row),
            )
            for row in rows
            for item in row["egress"]
        )
    )  # fmt: skip


def _model(row: Mapping[str, Any], host: str) -> str | None:
    return next((attempt.get("model") for attempt in row["attempts"] if attempt.get("remote") == host), None)


def _replaced(row: Mapping[str, Any]) -> dict[str, int]:
    if not row["facts"].get("redacted"):
        return {}
    return dict(Counter(rule["kind"] for rule in row["rules"] if rule.get("redactable")))
