from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgeai.errors import RecipeError
from edgeai.training import model as models
from edgeai.training import step
from edgeai.training import tokenizer as bpe
from edgeai.training.recipe import Recipe, TrainingSettings

COSINE = TrainingSettings(steps=110, batch_size=1, lr=1.0, min_lr=0.2, warmup_steps=10)
WSD = replace(COSINE, schedule="wsd", decay_steps=20)


@pytest.fixture
def model(mini: Recipe) -> Any:
    tokenizer = bpe.train(["some text"], pre="gpt-2", vocab_size=mini.tokenizer.vocab_size)
    return models.build(mini, tokenizer)


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("settings", "at", "rate"),
    [
        (COSINE, 0, 0.1), (COSINE, 9, 1.0), (COSINE, 10, 1.0), (COSINE, 60, 0.6), (COSINE, 110, 0.2),
        (COSINE, 999, 0.2), (COSINE, 35, 0.2 + 0.4 * (1 + math.cos(math.pi / 4))),
        (WSD, 4, 0.5), (WSD, 50, 1.0), (WSD, 90, 1.0), (WSD, 100, 0.6), (WSD, 110, 0.2), (WSD, 999, 0.2),
    ],
)  # fmt: skip
def test_learning_rate_is_the_formula_of_its_schedule(settings: TrainingSettings, at: int, rate: float) -> None:
    assert step.learning_rate(at, settings) == pytest.approx(rate)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_gradient_is_that_of_the_mean_loss_of_the_whole_batch(model: Any, micro: int) -> None:
    batch = torch.randint(290, (6, 17), generator=torch.Generator().manual_seed(1))
    reference = model(input_ids=batch, labels=batch).loss  # transformers shifts the labels itself
    reference.backward()
    wanted = gradients(model)
    model.zero_grad()
    loss = step.accumulate(model, batch, micro)  # micro 4 leaves a short last part
    assert loss == pytest.approx(reference.item(), rel=1e-5)
    for got, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_update_clips_and_returns_the_norm_before(model: Any, mini: Recipe) -> None:
    step.accumulate(model, torch.ones((1, 9), dtype=torch.long), 1)
    wanted = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients(model)))
    assert step.update(model, step.optimizer(model, mini.training), 0.0, 1.0) == pytest.approx(wanted, rel=1e-5)


def test_only_matrices_decay(model: Any, mini: Recipe) -> None:
    decayed, kept = step.optimizer(model, mini.training).param_groups
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("count", [2, 5, 9, 17, 30, 40])
def test_evaluation_is_the_mean_over_all_tokens_but_the_first(model: Any, count: int) -> None:
    tokens = np.random.default_rng(1).integers(290, size=count).astype(np.uint16)
    context, total = 8, 0.0
    for index in range(1, count):
        start = (index - 1) // context * context  # the window that predicts this token begins here
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens[start:index].astype(np.int64).tolist()])).logits[0, -1]
        total -= float(torch.log_softmax(logits, 0)[int(tokens[index])])
    assert step.evaluate(model, tokens, context, batch_size=2) == pytest.approx(total / (count - 1), rel=1e-5)


def test_weights_depend_on_the_seed_alone(mini: Recipe) -> None:
    tokenizer = bpe.train(["some text"], pre="gpt-2", vocab_size=290)

    def first(seed: int) -> torch.Tensor:
        return next(iter(models.build(replace(mini, seed=seed), tokenizer).parameters()))

    torch.manual_seed(11)
    before, state = first(1), torch.get_rng_state()
    assert torch.equal(before, first(1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(before, first(2))


def test_tokenizer_of_another_size_is_an_error(mini: Recipe) -> None:
    with pytest.raises(RecipeError, match="291 tokens and the recipe 290"):
        models.build(mini, bpe.train(["some text"], pre="gpt-2", vocab_size=291))
