"""Intervals against closed forms, tables, and what they promise: to hold the true value 95 times in a hundred."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeai.evaluation.comparison import blocks_of
from edgeai.evaluation.intervals import (
    mean_interval,
    quantile_interval,
    share_interval,
    spearman_interval,
    t_quantile,
)

T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 19: 2.093, 30: 2.042, 120: 1.980}
"""Any textbook."""


@pytest.mark.parametrize("freedom", T_TABLE)
def test_t_is_that_of_the_table(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(T_TABLE[freedom], rel=2e-3)


def test_with_equal_blocks_the_interval_is_that_of_the_block_means() -> None:
    values = np.random.default_rng(1).normal(size=80)
    means = values.reshape(8, 10).mean(1)
    half = t_quantile(7) * means.std(ddof=1) / math.sqrt(8)
    found = mean_interval(values, np.repeat(np.arange(8), 10))
    assert (found.value, found.low, found.high) == pytest.approx(
        (means.mean(), means.mean() - half, means.mean() + half)
    )


def test_with_blocks_of_one_it_is_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0])
    half = 4.3027 * values.std(ddof=1) / math.sqrt(3)
    assert mean_interval(values, np.arange(3)).high == pytest.approx(values.mean() + half, rel=1e-4)


def test_one_block_says_nothing() -> None:
    found = mean_interval(np.ones(9), np.zeros(9, np.int64))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_correlated_positions_make_the_interval_wider() -> None:
    draw = np.random.default_rng(2)
    correlated = np.repeat(draw.normal(size=20), 64)
    blocks = np.repeat(np.arange(20), 64)
    alone = mean_interval(correlated, np.arange(len(correlated)))
    together = mean_interval(correlated, blocks)
    assert (together.high - together.low) > 6 * (alone.high - alone.low)


def test_the_interval_of_a_mean_holds_it_in_95_of_100_draws() -> None:
    draw = np.random.default_rng(3)
    blocks = np.repeat(np.arange(16), 8)
    held = 0
    for _ in range(1000):
        values = np.repeat(draw.exponential(size=16), 8) * draw.uniform(0.5, 1.5, 128)  # mean 1, neighbours alike
        found = mean_interval(values, blocks)
        held += found.low <= 1 <= found.high
    assert 880 <= held <= 975  # an exponential is skewed, so a little less than 950


def test_a_share_of_independent_positions_has_wilsons_interval() -> None:
    hits = np.array([1.0] * 81 + [0.0] * 19)
    found = share_interval(np.random.default_rng(1).permutation(hits), np.repeat(np.arange(50), 2))
    assert found.value == 0.81
    assert found.low <= 0.7222 + 1e-3  # Wilson, 81 of 100: 0.7222 to 0.8749
    assert found.high >= 0.8749 - 1e-3
    assert found.high - found.low < 0.2


def test_a_share_of_one_has_an_interval_too() -> None:
    found = share_interval(np.ones(100), np.repeat(np.arange(10), 10))
    assert (found.low, found.high) == pytest.approx((100 / (100 + 1.96**2), 1.0), abs=1e-4)


def test_a_quantile_is_numpys_and_its_interval_is_around_it_and_the_same_every_time() -> None:
    values = np.random.default_rng(4).exponential(size=640)
    blocks = np.repeat(np.arange(10), 64)
    found = quantile_interval(values, blocks, 0.99)
    assert found.value == np.quantile(values, 0.99)
    assert found.low < found.value < found.high
    assert found == quantile_interval(values, blocks, 0.99)


def test_rank_correlation_is_one_for_any_rising_function_and_less_for_noise() -> None:
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(20, 8))
    table = vectors @ vectors.T
    assert spearman_interval(table, np.tanh(table)).value == pytest.approx(1, abs=1e-12)
    noisy = table + draw.normal(size=table.shape) * 2
    found = spearman_interval(table, noisy)
    assert found.low < found.value < found.high <= 1
    assert found.value < 0.95


def test_rank_correlation_without_ties_is_that_of_the_closed_form() -> None:
    left, right = np.zeros((3, 3)), np.zeros((3, 3))
    places = np.triu_indices(3, 1)
    left[places], right[places] = [1, 2, 3], [2, 1, 3]
    assert spearman_interval(left, right).value == pytest.approx(1 - 6 * 2 / (3 * 8))


def test_blocks_stay_within_windows_and_there_are_eight_at_least() -> None:
    blocks = blocks_of([512, 512, 100])
    assert [int((blocks == item).sum()) for item in np.unique(blocks)] == [64] * 16 + [100]
    assert len(np.unique(blocks_of([40]))) == 8
