"""edgeai's own router as a subject of the fault lab."""

from __future__ import annotations

from edgeai.chaos.lab import Lab
from edgeai.chaos.subject import RouterSubject

__all__ = ["subject"]


def subject(lab: Lab) -> RouterSubject:
    """Return the router, with the lab as its endpoint and a local engine that answers LOCAL_ANSWER."""
    raise NotImplementedError("there is no router to score yet")
