"""Every way in which the lab can answer, by name."""

from __future__ import annotations

from edgeai.chaos import connections, events, statuses
from edgeai.chaos.connections import CONNECTING, PORTS
from edgeai.chaos.wire import Behaviour, Exchange

__all__ = ["BEHAVIOURS", "CONNECTING", "PORTS"]


async def good(exchange: Exchange) -> None:
    """Answer as a good endpoint does."""
    await exchange.good()


BEHAVIOURS: dict[str, Behaviour] = {
    "good": good, **connections.BEHAVIOURS, **events.BEHAVIOURS, **statuses.BEHAVIOURS,
}  # fmt: skip
"""A behaviour answers one request. Those of CONNECTING also stand here, for requests on a connection that is there already."""
