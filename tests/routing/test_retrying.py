"""Whether and when an endpoint is asked again."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.errors import FailureKind
from edgeai.routing.retrying import BASE_S, CAP_S, RetryBudget, wait_before_retry
from tests.routing.fakes import failed

NEVER = ["refused", "context", "credentials", "quota", "timeout", "captive", "aborted"]


def wait(
    kind: FailureKind,
    tries: int = 1,
    *,
    status: int | None = 500,
    left_s: float = 300.0,
    others: bool = False,
    **more: float,
) -> float | None:
    return wait_before_retry(
        failed(kind, status, **more), tries, most_tries=10, left_s=left_s, others=others, jitter=lambda: 1.0
    )


@pytest.mark.parametrize("kind", NEVER)
def test_what_would_fail_again_is_not_tried_again(kind: FailureKind) -> None:
    assert wait(kind) is None


def test_every_kind_of_failure_is_decided() -> None:
    assert {kind for kind in get_args(FailureKind) if wait(kind) is None} == set(NEVER)


def test_the_back_off_doubles_up_to_its_cap_with_full_jitter() -> None:
    assert [wait("server", tries) for tries in range(1, 6)] == [0.4, 0.8, 1.6, 3.2, 4.0]
    low = wait_before_retry(failed(), 3, most_tries=10, left_s=9, others=False, jitter=lambda: 0.0)
    assert low == 0.0


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_wait_is_never_longer_than_the_back_off(tries: int, jitter: float) -> None:
    found = wait_before_retry(failed(), tries, most_tries=10, left_s=300, others=False, jitter=lambda: jitter)
    assert found is not None
    assert 0 <= found <= min(CAP_S, BASE_S * 2 ** (tries - 1))


@pytest.mark.parametrize("status", [408, 409, 425])
def test_statuses_that_say_again_are_tried_again_once(status: int) -> None:
    assert wait("server", 1, status=status) is not None
    assert wait("server", 2, status=status) is None


def test_a_time_that_was_asked_for_is_waited_or_not_tried_at_all() -> None:
    assert wait("rate_limited", retry_after_s=7.0) == 7.0
    assert wait("rate_limited", retry_after_s=7.0, left_s=6.9) is None
    assert wait("rate_limited", retry_after_s=7.0, others=True) is None
    assert wait("rate_limited", retry_after_s=2.0, others=True) == 2.0
    assert wait("rate_limited", retry_after_s=500.0, left_s=1000.0) is None
    assert wait("rate_limited", retry_after_s=0.0) == 0.4  # zero is no reason to storm


def test_a_dead_line_is_tried_again_only_where_nobody_else_is_left() -> None:
    assert wait("connection", others=True) is None
    assert wait("connection") is not None


def test_after_text_was_given_nothing_is_tried_again() -> None:
    assert wait_before_retry(failed(committed=True), 1, most_tries=9, left_s=99, others=False) is None


def test_retries_are_a_share_of_the_requests() -> None:
    budget = RetryBudget(0.2, most=10.0)
    for _ in range(10):
        assert budget.take()
    made = 0
    for _ in range(1000):
        budget.request()
        made += budget.take()
    assert made == pytest.approx(200, abs=2)


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0.0)
    budget.request()
    assert not budget.take()
