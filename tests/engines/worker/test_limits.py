"""How long a child is waited for, and when it is started again: by ticks and an injected clock, without a child."""

from __future__ import annotations

from edgeai.engines.worker.limits import Backoff, Limits, Patience

LIMITS = Limits(tick_s=1.0, silence_s=5.0, start_s=8.0, stall_s=12.0, load_s=20.0)


def ticks_until(
    patience: Patience, *, answers: bool, heard: int = 1, progress: int = 0, steps: int = 0
) -> tuple[int, str]:
    for tick in range(1, 1000):
        heard, progress = heard + answers, progress + steps
        if lack := patience.tick(heard, progress):
            return tick, lack
    return 1000, ""


def test_a_silent_child_hangs_after_its_time() -> None:
    patience = Patience(LIMITS, loading=False)
    assert patience.tick(1, 0) is None
    assert ticks_until(patience, answers=False) == (5, "a sign of life for 5 s")


def test_a_child_that_starts_has_more_time_for_its_first_answer() -> None:
    assert ticks_until(Patience(LIMITS, loading=True), answers=False, heard=0) == (8, "a sign of life for 8 s")


def test_a_child_that_answers_and_does_nothing_hangs_later() -> None:
    patience = Patience(LIMITS, loading=False)
    assert patience.tick(1, 7) is None
    assert ticks_until(patience, answers=True, progress=7) == (12, "progress for 12 s")
    loading = Patience(LIMITS, loading=True)
    assert loading.tick(1, 7) is None
    assert ticks_until(loading, answers=True, progress=7) == (20, "progress for 20 s")


def test_a_child_at_work_never_hangs() -> None:
    assert ticks_until(Patience(LIMITS, loading=False), answers=True, steps=1) == (1000, "")


def test_late_answers_and_slow_progress_are_no_hang() -> None:
    patience = Patience(LIMITS, loading=False)
    for tick in range(200):
        assert patience.tick(1 + tick // 4, tick // 11) is None


# ---- back-off


def test_the_wait_doubles_up_to_a_limit_and_then_there_is_no_next_start() -> None:
    backoff = Backoff(Limits(delay_s=0.1, longest_delay_s=0.5, crashes=5, window_s=60), clock=lambda: 0.0)
    assert [backoff.crashed() for _ in range(6)] == [0.1, 0.2, 0.4, 0.5, 0.5, None]


def test_crashes_far_apart_never_end_it_and_wait_little() -> None:
    now = 0.0
    backoff = Backoff(Limits(), clock=lambda: now)
    for _ in range(50):
        assert backoff.crashed() == 0.1
        now += 61
