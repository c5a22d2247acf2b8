"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgeai.errors import FailureKind
from edgeai.routing.breaker import FIRST_S, IN_A_ROW, LONGEST_S, QUOTA_S, Breaker
from tests.routing.fakes import failed


class Clock:
    """A monotonic clock that stands still unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(IN_A_ROW):
        breaker.failed(failed("server"))
    return breaker, clock


def test_it_opens_after_failures_in_a_row_and_not_one_before() -> None:
    breaker = Breaker(Clock())
    for _ in range(IN_A_ROW - 1):
        breaker.failed(failed("server"))
    assert breaker.admit()
    breaker.failed(failed("server"))
    assert (breaker.state, breaker.admit()) == ("open", False)


def test_an_answer_between_them_begins_the_row_anew() -> None:
    breaker = Breaker(Clock())
    for _ in range(IN_A_ROW - 1):
        breaker.failed(failed("server"))
    breaker.succeeded()
    breaker.failed(failed("server"))
    assert breaker.state == "closed"


def test_it_opens_when_more_than_half_of_ten_fail_within_a_minute() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for index in range(9):
        breaker.failed(failed("server")) if index % 2 == 0 else breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed(failed("server"))
    assert breaker.state == "open"


def test_failures_older_than_a_minute_do_not_count() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for index in range(9):
        breaker.failed(failed("server")) if index % 2 == 0 else breaker.succeeded()
    clock.now += 61
    breaker.failed(failed("server"))
    assert breaker.state == "closed"


def test_after_its_time_one_probe_passes_and_the_others_wait() -> None:
    breaker, clock = opened()
    clock.now += FIRST_S - 0.001
    assert not breaker.admit()
    clock.now += 0.002
    assert breaker.state == "half_open"
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.state == "closed"


def test_only_one_of_many_threads_is_the_probe() -> None:
    breaker, clock = opened()
    clock.now += FIRST_S
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: breaker.admit(), range(64))) == 1


def test_a_probe_that_fails_doubles_the_wait_up_to_a_limit() -> None:
    breaker, clock = opened()
    waits = []
    for _ in range(8):
        waits.append(breaker.wait_s)
        clock.now += breaker.wait_s
        assert breaker.admit()
        breaker.failed(failed("timeout", None))
    assert waits == [30, 60, 120, 240, 480, LONGEST_S, LONGEST_S, LONGEST_S]


def test_a_probe_that_was_aborted_leaves_the_place_to_the_next() -> None:
    breaker, clock = opened()
    clock.now += FIRST_S
    assert breaker.admit()
    breaker.failed(failed("aborted", None))
    assert breaker.admit()


def test_a_rate_limit_keeps_it_shut_for_as_long_as_was_asked() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed(failed("rate_limited", 429, retry_after_s=17.0))
    assert breaker.wait_s == pytest.approx(17.0)
    clock.now += 17.0
    assert breaker.admit()


def test_refused_credentials_keep_it_shut_for_good_and_a_quota_for_a_day() -> None:
    clock = Clock()
    key, quota = Breaker(clock), Breaker(clock)
    key.failed(failed("credentials", 401))
    quota.failed(failed("quota", 429))
    assert key.wait_s == math.inf
    clock.now += QUOTA_S
    assert (key.admit(), quota.admit()) == (False, True)


@pytest.mark.parametrize("kind", ["refused", "context", "aborted"])
def test_what_is_the_request_s_fault_is_not_the_endpoint_s(kind: FailureKind) -> None:
    breaker = Breaker(Clock())
    for _ in range(20):
        breaker.failed(failed(kind, None))
    assert breaker.state == "closed"


def test_the_wall_clock_has_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    breaker, _ = opened()
    monkeypatch.setattr("time.time", lambda: 10**12)
    assert breaker.state == "open"
