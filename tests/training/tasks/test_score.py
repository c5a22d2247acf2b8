from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from edgeai.training.tasks import score


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_interval_is_scipy_s(pair: tuple[int, int]) -> None:
    right, count = pair
    reference = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert score.wilson(right, count) == pytest.approx((reference.low, reference.high), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_macro_f1_is_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    said, classes = (np.array(column) for column in zip(*pairs, strict=True))
    reference = metrics.f1_score(classes, said, labels=[0, 1, 2, 3], average="macro", zero_division=0)
    assert score.macro_f1(said, classes, 4) == pytest.approx(reference)


def test_baseline_is_the_commonest_class_of_the_training_part() -> None:
    classes = np.array([0, 0, 0, 1])
    found = score.classification(np.eye(2)[classes], classes, np.array([1, 1, 0]))
    assert (found["accuracy"], found["baseline"]) == (1.0, 0.25)


def test_errors_of_a_regression_are_scikit_learn_s_in_the_unit_of_the_target() -> None:
    rng = np.random.default_rng(5)
    outputs, answers = rng.normal(size=(2, 50))
    target = {"name": "y", "mean": 100.0, "std": 7.0}
    found = score.regression(outputs, answers, target)
    there, said = answers * 7 + 100, outputs * 7 + 100
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(there, said))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(there, said))
    assert found["r2"] == pytest.approx(metrics.r2_score(there, said))
    assert found["baseline"] == pytest.approx(metrics.root_mean_squared_error(there, np.full(50, 100.0)))
