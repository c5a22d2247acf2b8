"""Log-probabilities of texts: against torch, of texts longer than a slab and than the context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgeai.engines.llamacpp import scoring
from edgeai.engines.llamacpp.scoring import log_probabilities
from edgeai.engines.windows import Window, windows
from edgeai.errors import EngineCrashed, UsageError
from edgeai.model import Model, open_engine
from tests.conftest import ROOT

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TEXT = "The for statement is used to iterate over the elements of a sequence (such as a string, tuple or list). " * 8


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[Model]:
    with Model(open_engine(tiny_gguf, threads=1, ctx=64)) as found:
        yield found


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32).eval()


def torch_scores(reference: LlamaForCausalLM, ids: list[int]) -> list[float]:
    """Return the log-probability of each of IDS after the first."""
    import torch

    with torch.inference_mode():
        rows = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found: list[float] = rows[range(len(rows)), ids[1:]].tolist()
    return found


def test_a_text_in_several_slabs_is_scored_as_torch_does(
    model: Model, reference: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 1)  # slabs of 8 tokens
    ids = model.tokenize(TEXT)[:60]
    assert model.score(ids) == pytest.approx(torch_scores(reference, ids), abs=1e-2)  # the KV cache is f16


def test_a_text_longer_than_the_context_is_scored_in_windows_as_torch_does(
    model: Model, reference: LlamaForCausalLM
) -> None:
    ids = model.tokenize(TEXT)[:150]
    expected: list[float] = []
    for window in windows(len(ids), 64):
        part = ids[window.start : window.end]
        if window.start and ids[0] == model.artifact.bos:
            part[0] = ids[0]
        expected += torch_scores(reference, part)[window.first - window.start - 1 :]
    assert len(expected) == len(ids) - 1
    assert model.score(ids) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    ("count", "size"), [(1, 8), (2, 8), (8, 8), (9, 8), (12, 8), (13, 8), (1000, 64), (7, 2), (5, 3)]
)
def test_windows_score_every_token_once_with_half_a_window_before_it(count: int, size: int) -> None:
    scored: list[int] = []
    for window in windows(count, size):
        assert window.end - window.start <= size
        assert window.first - window.start >= min(window.first, size // 2)
        scored += range(window.first, window.end)
    assert scored == list(range(1, count))


def test_a_text_that_fits_is_one_window() -> None:
    assert list(windows(8, 8)) == [Window(0, 8, 1)]


def test_log_probabilities_of_equal_logits_are_those_of_a_fair_die() -> None:
    found = log_probabilities(np.full((40, 6), 1e4, np.float32), [3] * 40)
    assert found == pytest.approx([-math.log(6)] * 40, abs=1e-12)


def test_what_is_no_number_is_an_error() -> None:
    with pytest.raises(EngineCrashed, match="not finite"):
        log_probabilities(np.full((1, 6), np.nan, np.float32), [3])


def test_one_token_has_nothing_after_it(model: Model) -> None:
    assert model.score([5]) == []


def test_no_tokens_and_unknown_tokens_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="empty"):
        model.score([])
    with pytest.raises(UsageError, match="token id 999999"):
        model.score([1, 999_999])


def test_answers_are_the_same_after_a_score(model: Model) -> None:
    before = model.complete("The for statement", max_tokens=12, temperature=0).text
    model.score(TEXT)
    assert model.complete("The for statement", max_tokens=12, temperature=0).text == before
