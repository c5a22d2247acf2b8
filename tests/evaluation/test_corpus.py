"""The windows of text that files are compared on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.tokenizer import Vocabulary, read_vocabulary, source_tokenizer
from edgeai.errors import UsageError
from edgeai.evaluation import corpus
from edgeai.evaluation.prompts import window_tokens

TINY = Path(__file__).parents[2] / "models" / "tiny"


@pytest.fixture(scope="module")
def model() -> tuple[ModelPlan, Vocabulary]:
    checkpoint = open_checkpoint(TINY)
    plan = plan_model(checkpoint)
    return plan, read_vocabulary(checkpoint, plan.vocab_size)


def test_few_tokens_of_the_bundled_text_are_from_all_over_it(model: tuple[ModelPlan, Vocabulary]) -> None:
    plan, vocabulary = model
    size, before = window_tokens(plan) - len(vocabulary.before), len(vocabulary.before)
    ids = source_tokenizer(vocabulary.spec).encode(corpus.default_text(), add_special_tokens=False).ids
    found = corpus.windows(plan, vocabulary, tokens=4 * size + 5)
    assert len(found) == 4
    assert found[0][before:] == ids[:size]
    assert found[-1][before:] == ids[-size:]
    starts = [next(at for at in range(len(ids)) if ids[at : at + size] == window[before:]) for window in found]
    steps = [last - first for first, last in itertools.pairwise(starts)]
    assert max(steps) - min(steps) <= 1
    assert min(steps) > size


def test_more_tokens_than_the_bundled_text_has_are_all_of_it(model: tuple[ModelPlan, Vocabulary]) -> None:
    plan, vocabulary = model
    ids = source_tokenizer(vocabulary.spec).encode(corpus.default_text(), add_special_tokens=False).ids
    found = corpus.windows(plan, vocabulary, tokens=1 << 20)
    assert [token for window in found for token in window[len(vocabulary.before) :]][: len(ids) - 64] == ids[:-64]


def test_a_text_that_is_given_is_read_from_its_beginning(model: tuple[ModelPlan, Vocabulary]) -> None:
    plan, vocabulary = model
    text = corpus.default_text(scripts=False)
    ids = source_tokenizer(vocabulary.spec).encode(text, add_special_tokens=False).ids
    found = corpus.windows(plan, vocabulary, text, 600)
    assert [token for window in found for token in window[len(vocabulary.before) :]] == ids[:600]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"words\0words", "NUL bytes, the first after 5 characters"), (b" \n", "is empty"), (b"\xff", "not UTF-8 text")],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text é.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        corpus.read_text(path)
