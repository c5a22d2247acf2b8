from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from edgeai.errors import RecipeError
from edgeai.training.tasks import bundled
from edgeai.training.tasks.examples import Column, Examples, split


def made(classes: list[int], inputs: list[float] | None = None) -> Examples:
    numbers = np.array(inputs if inputs is not None else range(len(classes)), dtype=np.float64)
    labels = tuple(map(str, range(max(classes) + 1)))
    return Examples(source="made", columns=(Column("x", numbers),), classes=np.array(classes), labels=labels)


@given(st.lists(st.integers(5, 40), min_size=2, max_size=4), st.floats(0.05, 0.5), st.integers(0, 9))
def test_every_row_is_in_one_part_and_every_class_in_each(sizes: list[int], fraction: float, seed: int) -> None:
    classes = [label for label, size in enumerate(sizes) for _ in range(size)]
    examples = made(classes)
    parts = split(examples, test_fraction=fraction, val_fraction=0.1, seed=seed)
    together = np.concatenate([parts.train, parts.val, parts.test])
    assert sorted(together) == list(range(len(classes)))
    assert examples.classes is not None
    for label, size in enumerate(sizes):
        assert int((examples.classes[parts.test] == label).sum()) == max(round(size * fraction), 1)
        assert (examples.classes[parts.train] == label).any()


def test_shares_of_the_classes_are_those_of_scikit_learn() -> None:
    classes = [0] * 200 + [1] * 100 + [2] * 20
    parts = split(made(classes), test_fraction=0.25, val_fraction=0.1, seed=1)
    reference = StratifiedShuffleSplit(1, test_size=0.25, random_state=1)
    _, test = next(reference.split(np.zeros(len(classes)), classes))
    assert np.bincount(np.array(classes)[parts.test]).tolist() == np.bincount(np.array(classes)[test]).tolist()


def test_seed_decides_the_split_and_each_part_is_shuffled() -> None:
    examples = made([0, 1] * 100)
    first, again, other = (split(examples, test_fraction=0.2, val_fraction=0.1, seed=seed) for seed in (1, 1, 2))
    assert first.test.tolist() == again.test.tolist() != other.test.tolist()
    assert first.train.tolist() != sorted(first.train.tolist())


def test_equal_inputs_are_never_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.integers(0, 40, size=300).astype(float)  # each about seven times
    parts = split(made([int(x) % 2 for x in inputs], list(inputs)), test_fraction=0.3, val_fraction=0.1, seed=1)
    sides = [set(inputs[rows]) for rows in (parts.train, parts.val, parts.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


def test_targets_that_are_numbers_are_dealt_out_over_their_range() -> None:
    values = np.arange(200.0)[:, None]
    examples = Examples(source="made", columns=(Column("x", values[:, 0]),), values=values, targets=("y",))
    test = values[split(examples, test_fraction=0.2, val_fraction=0.1, seed=1).test, 0]
    assert np.histogram(test, bins=10, range=(0, 200))[0].tolist() == [4] * 10


@pytest.mark.parametrize(
    ("classes", "word"), [([0] * 20, "one class alone"), ([0] * 20 + [1] * 4, "4 different examples")]
)
def test_class_that_cannot_be_tested_is_an_error(classes: list[int], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        split(made(classes), test_fraction=0.2, val_fraction=0.1, seed=1)


def test_paragraphs_of_the_documentation_are_there_once_each() -> None:
    examples = bundled.topics()
    assert len({text.casefold() for text in examples.texts}) == len(examples.texts) > 1000
    assert min(np.bincount(examples.classes)) > 50


def test_digits_are_pictures_whose_brightest_pixel_is_white() -> None:
    examples = bundled.series("sklearn:digits")
    assert len(examples) == 1797
    assert examples.columns[-1].name == "pixel 63"
