"""The score tells a careful client from one with a single thing wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from edgeai.chaos.answers import LOCAL_ANSWER
from edgeai.chaos.faults import FAULTS, Fault, Variant
from edgeai.chaos.gateway import Gateway
from edgeai.chaos.lab import Lab
from edgeai.chaos.score import Card, Result, score, try_variant
from edgeai.chaos.subject import KEY, Outcome, RouterSubject, Setting
from tests.chaos.careful import Careful, Failed, careful

BY_NAME = {variant.name: (fault, variant) for fault in FAULTS for variant in fault.variants}
SLOW = (
    "slow-words", "drip-after-words", "words-then-comments", "million-chunks", "refused-often", "accept-silent", "never-answers",
    "drip-head", "informational-forever", "tls-hang", "head-then-silence", "429-date-once", "429-int-once", "late",
)  # fmt: skip
"""What takes a second or more; the whole is run by `edgeai chaos`."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


def tried(lab: Lab, subject: Any, name: str, deadline_s: float = 3.0) -> Result:
    fault, variant = BY_NAME[name]
    result = try_variant(subject, lab, fault, variant, variant.modes[0], deadline_s=deadline_s)
    subject.close()
    return result


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in SLOW])
def test_a_careful_client_passes(lab: Lab, name: str) -> None:
    result = tried(lab, careful(), name)
    assert result.ok, result
    assert result.applicable


class Doubling(Careful):
    """Shows a failed attempt's words, and then the next one's."""

    def end(self, local: str | None, why: str) -> Outcome:
        return replace(super().end(local, why), text=self.kept + " " + LOCAL_ANSWER)


class Trusting(Careful):
    """Takes the end of a connection for the end of an answer."""

    def attempt(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        try:
            return super().attempt(prompt, deadline, leave_after)
        except Failed:
            return Outcome(text=self.kept, finish_reason="stop")


class Stubborn(Careful):
    """Tries everything again, at once."""

    def wait(self, error: Failed, _attempt: int) -> float:
        error.again = True
        self.closed = False
        return 0.0


class Late(Careful):
    """Has the other answer, after its deadline."""

    def end(self, local: str | None, why: str) -> Outcome:
        time.sleep(1.3)
        return super().end(local, why)


class Blind(Careful):
    """Sends what was not cleared."""

    def routed(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        return self.attempts(prompt, deadline, leave_after)


class Telling(Careful):
    """Writes what it sends into a log."""

    def attempts(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        logging.getLogger("chatty").debug("sending Authorization: Bearer %s", KEY)
        return super().attempts(prompt, deadline, leave_after)


class Forgetting(Careful):
    """Has no other answer ready."""

    def end(self, _local: str | None, why: str) -> Outcome:
        return super().end(None, why)


class Silent(Careful):
    """Says nothing of what is less than was asked for."""

    def routed(self, prompt: str, deadline: float, leave_after: int | None) -> Outcome:
        return replace(super().routed(prompt, deadline, leave_after), notices=(), error=None)


class Unlocked(Careful):
    """Believes every certificate."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import ssl

        self.pool._ssl_context = ssl._create_unverified_context()  # noqa: S323


class Following:
    """httpx2 as it is: with the environment's proxies, redirects followed and every header sent along."""

    def __init__(self, setting: Setting) -> None:
        self.url = setting.base_url
        headers = {"Authorization": f"Bearer {KEY}", "X-Api-Key": KEY}
        self.client = httpx2.Client(follow_redirects=True, headers=headers, timeout=1)

    def close(self) -> None:
        self.client.close()

    def ask(self, prompt: str, **_options: Any) -> Outcome:
        body = {"model": "lab", "messages": [{"role": "user", "content": prompt}]}
        try:
            found = self.client.post(self.url + "/chat/completions", json=body)
            return Outcome(text=found.json()["choices"][0]["message"]["content"], finish_reason="stop")
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            return Outcome(error=repr(error))


class Holding(Careful):
    """Has an answer, and lets the endpoint go on."""

    def ask(self, prompt: str, **_options: Any) -> Outcome:
        import socket

        from tests.chaos.raw import request

        host, _, port = self.setting.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=1)
        self.sock.sendall(request(prompt=prompt))
        time.sleep(0.05)
        return Outcome(text=LOCAL_ANSWER, finish_reason="stop")

    def close(self) -> None:
        super().close()
        self.sock.close()


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        (Doubling, "rst-after-tokens", "foreign"),
        (Trusting, "eof-before-done", "partial"),
        (Trusting, "rst-after-tokens", "partial"),
        (Trusting, "error-midway", "partial"),
        (Stubborn, "status-400", "3 attempts, not 0 to 1"),
        (Stubborn, "status-401", "3 attempts, not 0 to 1"),
        (Stubborn, "429-hour", "3 attempts, not 0 to 1"),
        (Stubborn, "429-float-once", "came again after 0.00 s, not 0.4"),
        (Stubborn, "retry-storm", "36 attempts, not 0 to 12"),
        (Late, "429-1e9", "of 1.25"),
        (Blind, "detector-crash", "1 attempts, not 0 to 0"),
        (Blind, "local-oom-private", "answer"),
        (Telling, "status-503", "wrote the key: 'sending Authorization: Bearer …'"),
        (Forgetting, "refused", "error"),
        (Silent, "ledger-full", "said nothing of it"),
        (Silent, "both-refused", "the error does not name 'lab'"),
        (Unlocked, "tls-expired", "1 attempts, not 0 to 0"),
        (Unlocked, "tls-self-signed", "answer"),
        (Following, "redirect-307", "asked the other listener for '/v1/chat/completions' with a key"),
        (Following, "redirect-same", "asked the http listener for '/v1/moved/chat/completions' with a key"),
        (Following, "http-proxy", "asked the proxy listener"),
        (Following, "status-503-once", "error"),
        (Holding, "head-then-silence", "its connection was open 1 s after the end"),
    ],
)
def test_one_thing_wrong_is_found(lab: Lab, kind: Any, name: str, why: str) -> None:
    result = tried(lab, RouterSubject(kind), name)
    assert not result.ok
    assert any(why in found for found in result.why), result.why


def test_a_connection_to_another_machine_is_found(lab: Lab) -> None:
    class Leaking(Careful):
        def ask(self, prompt: str, **options: Any) -> Outcome:
            import socket

            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # connecting a datagram socket sends nothing
                sock.connect(("192.0.2.1", 9))
            return super().ask(prompt, **options)

    result = tried(lab, RouterSubject(Leaking), "crlf")
    assert result.why == ("connected to 192.0.2.1:9, which is not this machine",)


def test_a_fault_of_the_lab_itself_is_no_pass(lab: Lab) -> None:
    lab.problems.append(ValueError("a bug"))
    assert "the lab itself failed: ValueError('a bug')" in tried(lab, careful(), "crlf").why
    lab.problems.clear()


@pytest.mark.parametrize(
    "name", ["eof-before-done", "empty-content", "whole-again", "429-cools", "tool-doubled", "error-midway"]
)
def test_a_client_that_only_reads_passes_some_and_not_these(lab: Lab, name: str) -> None:
    result = tried(lab, Gateway(lab.url), name)
    assert result.ok == (name == "error-midway")


def test_what_a_gateway_cannot_be_brought_to_does_not_apply(lab: Lab) -> None:
    gateway = Gateway(lab.url)
    card = score(gateway, lab, [FAULTS[number - 1] for number in (1, 2, 24, 25, 28, 29, 30)])
    gateway.close()
    assert {result.number for result in card.results if result.applicable} == {2, 25, 28}
    assert (card.applicable, card.passed) == (3, 3)
    assert card.ok
    assert {row.name.split()[0] for row in card.report().rows} == {"2", "25", "28"}


def test_without_another_answer_an_error_stands_for_it(lab: Lab) -> None:
    gateway = Gateway(lab.url)
    assert tried(lab, gateway, "refused").expected == "error"


def test_a_card_counts_faults_and_not_variants() -> None:
    def result(number: int, **more: Any) -> Result:
        return Result(
            **{
                "number": number,
                "fault": "f",
                "variant": "v",
                "mode": "stream",
                "expected": "answer",
                "got": "answer",
                **more,
            }
        )

    card = Card((result(1), result(1, why=("late",)), result(2), result(2), result(3, applicable=False)))
    assert (card.passed, card.applicable, card.ok) == (1, 2, False)
    assert card.to_dict()["faults"] == 3
    assert not Card().ok
    assert not card.report().ok
    assert card.report().failed[0].value == "answer; late"


def test_results_follow_from_the_seed(lab: Lab) -> None:
    fault: Fault
    variant: Variant
    fault, variant = BY_NAME["eof-before-done"]
    texts = []
    for seed in (1, 1, 2):
        subject = RouterSubject(Trusting)
        texts.append(try_variant(subject, lab, fault, variant, "stream", seed=seed).why)
        subject.close()
    assert texts[0] == texts[1] != texts[2]
