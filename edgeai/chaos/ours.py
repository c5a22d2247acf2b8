"""edgeai's own router as a subject of the fault lab: the one place that knows both."""

from __future__ import annotations

from edgeai.chaos.lab import Lab
from edgeai.chaos.subject import RouterSubject

__all__ = ["subject"]


def subject(lab: Lab) -> RouterSubject:
    """Return the router as a subject: made anew for each setting, with one endpoint of the name "lab" and the local engine of stand_in.py.

    What it is made with comes from the Setting (URL, key, CA, policy, hook) and from the constants of faults.py (timeouts, attempts,
    MAX_BYTES). An Asker never raises: what the router raises becomes Outcome.error, and StreamInterrupted also Outcome.text and
    `interrupted`. `wall_s` is measured around the whole call, and notices of the last chunk belong into Outcome.notices.
    """
    raise NotImplementedError("there is no router to score yet")
