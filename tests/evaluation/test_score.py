from __future__ import annotations

import numpy as np
import pytest

from edgeai.evaluation.comparison import Comparison, exact_rows
from edgeai.evaluation.prompts import Prompt
from edgeai.evaluation.score import compare, log_softmax

PROSE = Prompt(kind="text", ids=list(range(130)))


def logits(seed: int, positions: int = 130, vocab: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(positions, vocab)).astype(np.float32)


def test_equal_logits_agree_in_everything() -> None:
    found = compare(logits(1), logits(1))
    assert (found.nmse, found.mean_kl, found.top1, len(found.kl)) == (0.0, 0.0, 1.0, 130)


def test_kl_is_that_of_the_closed_form() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = float((p * np.log(p / q)).sum())
    assert compare(np.log(p), np.log(q)).mean_kl == pytest.approx(expected)


def test_kl_does_not_see_a_shift_and_nmse_does() -> None:
    found = compare(logits(1), logits(1) + 3)
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.nmse > 1


def test_nmse_is_relative_to_the_reference() -> None:
    assert compare(logits(1), logits(1) * 1.1).nmse == pytest.approx(0.01, rel=1e-4)


def test_first_choices_are_counted_by_position() -> None:
    reference = np.zeros((4, 3))
    reference[:, 0] = 1
    candidate = reference.copy()
    candidate[0] = [0, 2, 0]
    assert compare(reference, candidate).top1 == 0.75


def test_a_tie_that_rounding_breaks_is_no_difference() -> None:
    reference = np.array([[1.0, 1.0 - 1e-9, -1.0]])
    assert compare(reference, np.array([[1.0, 1.0 + 1e-9, -1.0]])).top1 == 1


def test_different_vocabularies_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(logits(1), logits(1, vocab=51))


def test_log_softmax_survives_large_logits() -> None:
    assert np.exp(log_softmax(np.array([[1e4, 1e4]]))).tolist() == [[0.5, 0.5]]


def test_one_position_where_a_router_is_at_a_tie_is_left_out_and_an_error_everywhere_is_not() -> None:
    reference = logits(1)
    one, everywhere = reference.copy(), reference + 0.01 * logits(2)
    one[7] += 0.3
    rows = [
        {row.name: row.ok for row in exact_rows(Comparison([PROSE], [compare(reference, candidate)]), experts=experts)}
        for candidate, experts in ((one, True), (one, False), (everywhere, True))
    ]
    assert [row["F32 logits against torch: NMSE"] for row in rows] == [True, False, False]
    assert all(rows[0].values())
