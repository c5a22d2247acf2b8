"""The lab and who is scored, opened together: edgeai's own router, or a gateway that has the lab as its endpoint."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeai.chaos.gateway import Gateway
from edgeai.chaos.lab import CA_FILE, Lab
from edgeai.chaos.subject import Setting, Subject, kind_of
from edgeai.errors import NetworkError

__all__ = ["Target", "opened", "serving"]

WAIT_S = 30.0
STEP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A gateway at `url`, and the ports on which the lab must listen for it: its endpoint's, and of a second one where it falls back."""

    url: str
    listen: int
    second: int | None = None
    key: str | None = None
    model: str = "lab"


@contextlib.contextmanager
def opened(
    target: Target | None, notify: Callable[[str], None], *, wait_s: float = WAIT_S
) -> Iterator[tuple[Subject, Lab]]:
    """Open the lab and TARGET, or edgeai's router for None; NOTIFY is told how a gateway must be set up.

    Raises NetworkError where the gateway does not bring an answer from the lab within WAIT_S, UsageError for a port that is taken.
    """
    with Lab(target.listen if target else 0, (target.second or 0) if target else 0) as lab:
        subject: Subject
        if target is None:
            from edgeai.chaos import ours

            subject = ours.subject(lab)
        else:
            subject = Gateway(target.url, key=target.key, model=target.model, fallback=target.second is not None)
        with contextlib.closing(subject):
            if target is not None:
                notify(
                    f"the lab is {lab.url}: let this be the base URL of the gateway's endpoint, with any key and the model 'lab'"
                )
                if target.second is not None:
                    notify(f"its fallback is {lab.urls['second']}")
                _wait_for(subject, lab, target, wait_s)
            yield subject, lab


def _wait_for(subject: Subject, lab: Lab, target: Target, wait_s: float) -> None:
    """Wait until a good answer of the lab comes through the gateway."""
    subject.prepare(Setting(base_url=lab.url, ca_file=str(CA_FILE)))
    until, number = time.monotonic() + wait_s, 0
    while True:
        number += 1
        prompt = f"Is this the lab? {number}"
        outcome = subject.ask(prompt, stream=False, deadline_s=STEP_S)
        if kind_of(outcome, prompt) == "answer" and lab.attempts:
            return
        if time.monotonic() > until:
            raise NetworkError(
                f"no answer of the lab came through {target.url!r}: {outcome.error or outcome.text!r:.160}",
                hint=f"point the gateway's endpoint at {lab.url}, and name its model with `model={target.model}`",
            )
        time.sleep(STEP_S)


@contextlib.contextmanager
def serving(port: int, fault: str, *, seed: int = 0) -> Iterator[Lab]:
    """Serve FAULT on PORT while the block lasts. Raises UsageError for a fault that is none, or a port that is taken."""
    with Lab(port) as lab:
        lab.set(fault, seed=seed)
        yield lab
