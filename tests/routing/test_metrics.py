"""Figures of a confidence, against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.routing.metrics import accuracy_at, aurc, auroc, calibration_error, estimate, risk_coverage

pairs = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=40).filter(
    lambda found: len({right for _, right in found}) == 2
)


def arrays(found: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in found]), np.array([float(right) for _, right in found])


@given(pairs)
def test_auroc_is_that_of_scikit_learn_also_with_ties(found: list[tuple[float, bool]]) -> None:
    from sklearn.metrics import roc_auc_score

    score, right = arrays(found)
    assert auroc(score, right) == pytest.approx(roc_auc_score(right, score))


def test_auroc_of_one_kind_alone_is_not_defined() -> None:
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.ones(2)))


def test_a_calibration_error_is_the_distance_in_each_bin_by_its_size() -> None:
    probability = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    right = np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    assert calibration_error(probability, right) == pytest.approx((2 * 0.45 + (0.05 + 0.05 + 0.0)) / 5)


@given(pairs)
def test_a_probability_that_is_the_share_of_each_group_has_no_error(found: list[tuple[float, bool]]) -> None:
    score, right = arrays(found)
    exact = np.array([right[score == value].mean() for value in score])
    assert calibration_error(exact, right, bins=1000) == pytest.approx(0.0, abs=1e-9)


def test_risk_is_the_share_of_wrong_answers_among_the_surest() -> None:
    assert risk_coverage(np.array([0.9, 0.1, 0.5]), np.array([1.0, 0.0, 0.0])) == pytest.approx([0, 1 / 2, 2 / 3])


@given(pairs)
def test_no_order_beats_the_oracle_and_ties_alone_are_chance(found: list[tuple[float, bool]]) -> None:
    score, right = arrays(found)
    assert aurc(right, right) <= aurc(score, right) + 1e-12
    assert aurc(np.zeros(len(right)), right) == pytest.approx(1 - right.mean())


def test_the_least_sure_are_answered_by_the_stronger_model() -> None:
    score, weak, strong = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    assert [accuracy_at(share, score, weak, strong) for share in (0, 0.25, 0.5, 0.75, 1)] == [0.5, 0.75, 0.75, 0.5, 0.5]


@given(pairs, st.floats(0, 1))
def test_equal_scores_hand_on_at_random(found: list[tuple[float, bool]], share: float) -> None:
    _, weak = arrays(found)
    strong = np.ones(len(weak))
    count = round(share * len(weak)) / len(weak)
    expected = (1 - count) * weak.mean() + count
    assert accuracy_at(share, np.zeros(len(weak)), weak, strong) == pytest.approx(expected)


def test_figures_do_not_depend_on_the_order_of_the_data() -> None:
    draw = np.random.default_rng(0)
    score, right = draw.integers(0, 4, 50) / 4, (draw.random(50) < 0.5).astype(float)
    order = draw.permutation(50)
    assert aurc(score, right) == pytest.approx(aurc(score[order], right[order]))
    assert accuracy_at(0.3, score, right, 1 - right) == pytest.approx(
        accuracy_at(0.3, score[order], right[order], 1 - right[order])
    )


def test_an_interval_of_a_share_is_that_of_the_binomial() -> None:
    right = np.array([1.0] * 120 + [0.0] * 80)
    found = estimate(lambda y: float(y.mean()), right)
    error = 1.96 * (0.6 * 0.4 / 200) ** 0.5
    assert found.value == 0.6
    assert found.low == pytest.approx(0.6 - error, abs=0.01)
    assert found.high == pytest.approx(0.6 + error, abs=0.01)
