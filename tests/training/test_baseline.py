from __future__ import annotations

import math

import numpy as np
import pytest

from edgeai.training.baseline import bigram_loss

TRAIN = np.array([0, 1, 0, 1, 0, 2, 1], dtype=np.uint16)


def test_probabilities_are_those_of_witten_and_bell() -> None:
    # After 0 came 1 twice and 2 once: n = 3, k = 2. The add-one unigram of 1 is (3 + 1) / (7 + 4).
    expected = (2 + 2 * 4 / 11) / (3 + 2)
    assert bigram_loss(TRAIN, np.array([0, 1]), 4) == pytest.approx(-math.log(expected))


@pytest.mark.parametrize("before", range(4))
def test_probabilities_after_any_token_sum_to_one(before: int) -> None:
    total = sum(math.exp(-bigram_loss(TRAIN, np.array([before, after]), 4)) for after in range(4))
    assert total == pytest.approx(1.0)


def test_loss_is_the_mean_over_all_tokens_but_the_first() -> None:
    single = [bigram_loss(TRAIN, np.array(pair), 4) for pair in ([0, 1], [1, 3], [3, 0])]
    assert bigram_loss(TRAIN, np.array([0, 1, 3, 0]), 4) == pytest.approx(sum(single) / 3)


def test_bigram_beats_a_unigram_where_neighbours_tell() -> None:
    train = np.tile(np.arange(10), 50)
    assert bigram_loss(train, train[:100], 10) < 0.2 < math.log(10)
