"""edgeai's own router in the fault lab: all thirty faults, random sequences of them, and routers with one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgeai.chaos.faults import FAULTS, Fault, chosen
from edgeai.chaos.fuzz import fuzz
from edgeai.chaos.opening import opened
from edgeai.chaos.score import Card, score
from edgeai.routing import conductor
from edgeai.routing.conductor import Broken, Conductor


def once(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Return FAULTS with each variant in one mode: the router asks endpoints for streams alone."""
    return tuple(
        replace(fault, variants=tuple(replace(item, modes=item.modes[:1]) for item in fault.variants))
        for fault in faults
    )


def scored(names: str | None = None) -> Card:
    with opened(None, lambda _: None) as (subject, lab):
        return score(subject, lab, once(chosen(names)))


@pytest.mark.slow
def test_all_thirty_faults_end_as_they_are_to_end() -> None:
    card = scored()
    wrong = [
        f"{found.number} {found.variant}: {found.got}: {'; '.join(found.why)}" for found in card.results if not found.ok
    ]
    assert wrong == []
    assert (card.passed, card.applicable, len(FAULTS)) == (30, 30, 30)


@pytest.mark.slow
def test_random_sequences_of_faults_lose_double_and_leak_nothing() -> None:
    with opened(None, lambda _: None) as (subject, lab):
        found = fuzz(subject, lab, 120, seed=11)
    assert [broken.why for broken in found.broken] == []
    assert found.ok
    assert found.reached > 60


def test_a_router_that_goes_on_with_somebody_else_after_text_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_one(self: Conductor, *_: Any) -> None:
        raise Broken

    monkeypatch.setattr(Conductor, "_break_off", next_one)
    assert not scored("9").ok


def test_a_router_that_retries_at_once_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, "wait_before_retry", lambda *_, **__: 0.0)
    assert not scored("14,15").ok


def test_a_router_that_lets_something_private_out_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai.routing.privacy.detector import Detector
    from edgeai.routing.request import Verdict

    monkeypatch.setattr(Detector, "examine", lambda *_: Verdict(placement="any"))
    assert not scored("29").ok
