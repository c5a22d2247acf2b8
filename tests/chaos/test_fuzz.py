"""Random sequences of faults: a careful client holds, and one with a single thing wrong does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from edgeai.chaos import fuzz as fuzzing
from edgeai.chaos.behaviours import BEHAVIOURS, PORTS
from edgeai.chaos.fuzz import EXPECTED, QUICK, SLOW, fuzz, sequence
from edgeai.chaos.lab import Lab
from edgeai.chaos.subject import Outcome, RouterSubject
from tests.chaos.careful import Careful, careful


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only faults that take no time."""
    monkeypatch.setattr(fuzzing, "SLOW_SHARE", 0.0)


def test_a_careful_client_holds(lab: Lab, quick: None) -> None:
    subject, done = careful(), []
    found = fuzz(subject, lab, 60, seed=5, progress=done.append)
    subject.close()
    assert found.ok, found.broken
    assert done == list(range(1, 61))
    assert found.requests == 60
    assert 40 <= found.reached <= found.attempts
    assert {"answer", "fallback"} <= set(found.kinds)
    assert found.to_dict()["ok"]


class Doubling(Careful):
    def ask(self, prompt: str, **options: Any) -> Outcome:
        found = super().ask(prompt, **options)
        return replace(found, text=found.text + found.text[-8:])


class Losing(Careful):
    def ask(self, prompt: str, **options: Any) -> Outcome:
        found = super().ask(prompt, **options)
        return replace(found, text=found.text[:-1])


class Slow(Careful):
    def ask(self, prompt: str, **options: Any) -> Outcome:
        return replace(super().ask(prompt, **options), wall_s=3.3)


@pytest.mark.parametrize(("kind", "why"), [(Doubling, "text"), (Losing, "text"), (Slow, "took 3.30 s")])
def test_one_thing_wrong_is_found(lab: Lab, quick: None, kind: type[Careful], why: str) -> None:
    subject = careful(kind)
    found = fuzz(subject, lab, 5)
    subject.close()
    assert not found.ok
    assert all(each.why.startswith(why) for each in found.broken)
    assert [each.number for each in found.broken] == [0, 1, 2, 3, 4]


def test_sockets_that_are_kept_are_found(lab: Lab, quick: None) -> None:
    kept: list[socket.socket] = []

    class Keeping(Careful):
        def ask(self, prompt: str, **options: Any) -> Outcome:
            kept.append(socket.socket())
            return super().ask(prompt, **options)

    subject = RouterSubject(Keeping)
    found = fuzz(subject, lab, 30)
    subject.close()
    for each in kept:
        each.close()
    assert [row.name for row in found.report().failed] == ["more files"]


def test_sequences_follow_from_seed_and_number() -> None:
    assert sequence(1, 7) == sequence(1, 7)
    found = [sequence(1, number) for number in range(2000)]
    assert len(set(found)) > 500
    met = {name for faults, _, _ in found for name in faults}
    assert met >= set(QUICK)
    assert len(met & set(SLOW)) > len(SLOW) / 2
    assert max(len(faults) for faults, _, _ in found) == 3
    assert any(leave for _, _, leave in found)
    assert 0.6 < sum(stream for _, stream, _ in found) / 2000 < 0.8


def test_what_is_random_is_served_and_expected() -> None:
    assert set(QUICK) <= set(BEHAVIOURS) - set(PORTS)
    assert set(SLOW) <= set(EXPECTED)
