"""Encoding with feedback: what is promised of the error is what the bytes decode to, and it is less than without."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from converters.dequantize import decode
from converters.families import TensorPlan
from converters.feedback import DAMPING, Feedback, feedback_of
from converters.ggml_types import GGML_TYPES
from converters.quantize import (
    MOST_CHANGE,
    NUMBER,
    encode,
    encode_with_feedback,
    encoded_slabs,
    held_back,
    libggml,
)

F32 = npt.NDArray[np.float32]
ROWS, COLUMNS = 48, 512
KINDS = ("Q4_0", "IQ4_NL", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ3_XXS", "IQ4_XS")


@functools.cache
def moments(seed: int = 0, *, columns: int = COLUMNS, mixed: bool = True) -> F32:
    """Return the second moments of inputs whose columns move together, or of independent ones."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.standard_normal(columns))
    if not mixed:
        return np.diag(scales**2).astype(np.float32)
    inputs = rng.standard_normal((4 * columns, columns // 8)) @ rng.standard_normal((columns // 8, columns))
    inputs = (inputs / np.sqrt(columns // 8) + 0.3 * rng.standard_normal(inputs.shape)) * scales
    found: F32 = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return found


@functools.cache
def weights(seed: int = 1, rows: int = ROWS) -> F32:
    """Return random weights with rows of different sizes."""
    rng = np.random.default_rng(seed)
    found: F32 = (rng.standard_normal((rows, COLUMNS)) * np.exp(rng.standard_normal((rows, 1)))).astype(np.float32)
    return found


@functools.cache
def usual() -> Feedback:
    """Return the feedback of inputs whose columns move together."""
    return feedback_of(moments())


def loss(errors: F32, feedback: Feedback) -> float:
    """Return tr(E H Eᵀ) of ERRORS with the damped H that FEEDBACK is the factor of."""
    factor = feedback.factor.astype(np.float64)
    wide = errors.astype(np.float64)
    return float(np.trace(wide @ (factor @ factor.T) @ wide.T))


def decoded(data: memoryview, kind: str) -> F32:
    """Return the values that the rows in DATA stand for."""
    return decode(data, kind, COLUMNS).reshape(-1, COLUMNS)


def by_blocks(rows: F32, kind: str, feedback: Feedback) -> F32:
    """Return what ROWS are when each block is encoded by itself: the encoders look at what a whole row is like."""
    parts = [
        decode(encode(rows[:, first:last], kind, feedback.importance[:, first:last]), kind, last - first)
        for first, last in feedback.blocks(kind)
    ]
    return np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)


def of(rows: F32) -> TensorPlan:
    """Return a tensor with these ROWS."""

    class Fixed(TensorPlan):
        __slots__ = ()

        def rows(self, first: int, last: int) -> F32:
            return rows[first:last]

    return Fixed(name="blk.0.ffn_up.weight", shape=rows.shape, sources=())


def test_the_factor_is_upper_triangular_and_its_product_is_the_damped_second_moments() -> None:
    wanted = moments().astype(np.float64)
    factor = feedback_of(moments()).factor.astype(np.float64)
    assert not np.tril(factor, -1).any()
    wanted[np.diag_indices(COLUMNS)] += DAMPING * np.trace(wanted) / COLUMNS
    np.testing.assert_allclose(factor @ factor.T, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def test_columns_that_no_input_reached_have_a_factor_and_an_importance() -> None:
    dead = moments().copy()
    dead[:32], dead[:, :32] = 0, 0
    found = feedback_of(dead)
    assert np.isfinite(found.factor).all()
    assert (found.factor.diagonal() > 0).all()
    assert (found.importance > 0).all()


def test_second_moments_of_nothing_at_all_give_a_feedback_that_changes_nothing() -> None:
    found = feedback_of(np.zeros((COLUMNS, COLUMNS), np.float32))
    data, _ = encode_with_feedback(weights(), "Q4_0", found)
    np.testing.assert_array_equal(decoded(data, "Q4_0"), by_blocks(weights(), "Q4_0", found))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_to_be_left_is_the_trace_of_the_error_that_the_bytes_decode_to(kind: str) -> None:
    rows, feedback = weights(), usual()
    data, left = encode_with_feedback(rows, kind, feedback)
    errors = rows - decoded(data, kind)
    # where a change was held back the errors of earlier blocks remain; what is owed and not paid is not in `left`
    owed = errors @ feedback.factor
    np.testing.assert_allclose((owed.astype(np.float64) ** 2).sum(), loss(errors, feedback), rtol=1e-4)
    assert float((left.astype(np.float64) ** 2).sum()) == pytest.approx(loss(errors, feedback), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_makes_the_loss_smaller_where_columns_move_together(kind: str) -> None:
    rows, feedback = weights(), usual()
    with_it = loss(rows - decoded(encode_with_feedback(rows, kind, feedback)[0], kind), feedback)
    without = loss(rows - decoded(encode(rows, kind, feedback.importance), kind), feedback)
    assert with_it < 0.9 * without


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q4_K"])
def test_feedback_changes_nothing_where_columns_are_independent(kind: str) -> None:
    rows, feedback = weights(), feedback_of(moments(mixed=False))
    found = decoded(encode_with_feedback(rows, kind, feedback)[0], kind)
    np.testing.assert_array_equal(found, by_blocks(rows, kind, feedback))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_types_without_blocks_are_encoded_as_they_are(kind: str) -> None:
    data, _ = encode_with_feedback(weights(), kind, usual())
    assert bytes(data) == bytes(encode(weights(), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_valid_data_of_their_type(kind: str) -> None:
    data = np.frombuffer(encode_with_feedback(weights(), kind, usual())[0], np.uint8)
    item = GGML_TYPES[NUMBER[kind]]
    assert len(data) == ROWS * COLUMNS // item.block * item.size
    assert libggml().ggml_validate_row_data(NUMBER[kind], data.ctypes.data, len(data))


def test_the_bytes_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.quantize.SLAB_ITEMS", 16 * COLUMNS)
    tensor = of(weights(rows=96))
    one, four = (b"".join(encoded_slabs(tensor, "Q4_K", threads, feedback=usual())) for threads in (1, 4))
    assert one == four


def test_a_change_is_held_back_to_a_part_of_the_length_of_its_row() -> None:
    rng = np.random.default_rng(2)
    block = rng.standard_normal((64, 32)).astype(np.float32)
    change = (rng.standard_normal((64, 32)) * np.exp(2 * rng.standard_normal((64, 1)))).astype(np.float32)
    found, most = held_back(change, block), MOST_CHANGE * np.linalg.norm(block, axis=1)
    lengths = np.linalg.norm(change, axis=1)
    small = lengths <= most
    assert 0 < small.sum() < 64
    np.testing.assert_array_equal(found[small], change[small])
    np.testing.assert_allclose(np.linalg.norm(found[~small], axis=1), most[~small], rtol=1e-5)
    cosine = (found * change).sum(1) / np.linalg.norm(found, axis=1) / lengths
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_a_row_of_zeros_is_not_made_up_for() -> None:
    assert not held_back(np.ones((1, 32), np.float32), np.zeros((1, 32), np.float32)).any()


def test_blocks_cover_all_columns_once_and_are_whole_in_each_type() -> None:
    feedback = usual()

    def covered(kind: str) -> Iterator[int]:
        for first, last in feedback.blocks(kind):
            assert (last - first) % GGML_TYPES[NUMBER[kind]].block == 0
            yield from range(first, last)

    for kind in (*KINDS, "F16", "F32"):
        assert list(covered(kind)) == list(range(COLUMNS))
