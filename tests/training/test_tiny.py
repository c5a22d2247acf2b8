"""The committed model: what `edgeai train models/recipes/tiny.toml` makes, and what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from edgeai.training import data, step
from edgeai.training import recipe as recipes
from edgeai.training import tokenizer as bpe
from edgeai.training.baseline import bigram_loss
from edgeai.training.workspace import EXPORT_FILES

MODELS = Path(__file__).parents[2] / "models"
TINY = MODELS / "tiny"
MARGIN = 0.5
"""In nats per token, by which the model must beat the bigram: its perplexity is less than 0.61 times the bigram's."""


@pytest.fixture(scope="module")
def lineage() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((TINY / "edgeai.json").read_text(encoding="utf-8"))
    return loaded


def losses(model: Any, tokens: int | None = None) -> tuple[float, float]:
    """Return the loss of MODEL and of the bigram on (the first TOKENS of) what this Python's documentation holds out."""
    recipe = recipes.load(MODELS / "recipes" / "tiny.toml")
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    parts = data.split(data.read(recipe.data, recipe.folder), recipe.data.val_fraction, recipe.seed)
    train, val = (
        np.array([token for document in part for token in bpe.encode(tokenizer, document.text)]) for part in parts
    )
    val = val[:tokens]
    return step.evaluate(model, val, recipe.model.context), bigram_loss(train, val, tokenizer.get_vocab_size())


def test_model_beats_a_bigram_by_the_margin(lineage: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    loss, bigram = losses(model)
    assert loss < bigram - MARGIN
    recipe = recipes.load(MODELS / "recipes" / "tiny.toml")
    if data.sha256(data.read(recipe.data, recipe.folder)) == lineage["data"]["sha256"]:
        # The same Python's documentation as in training: then the losses are those that the model came with.
        assert loss == pytest.approx(lineage["eval_loss"], abs=1e-3)
        assert bigram == pytest.approx(lineage["baseline"]["bigram"], abs=1e-9)


def test_model_that_has_learned_nothing_would_not() -> None:
    """The mutation of the test above."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.nn.init.normal_(model.model.layers[1].mlp.down_proj.weight, std=0.05)
    loss, bigram = losses(model, 2000)
    assert loss > bigram - MARGIN


def test_folder_holds_the_model_files_alone_and_at_most_4_mb() -> None:
    files = [path for path in TINY.iterdir() if path.name != "run"]  # what a run of the command leaves; git ignores it
    assert {path.name for path in files} == set(EXPORT_FILES)
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_model_is_fp16_of_one_to_two_million_parameters(lineage: dict[str, Any]) -> None:
    with safe_open(TINY / "model.safetensors", framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        kinds = {file.get_slice(name).get_dtype() for name in shapes}
    assert kinds == {"F16"}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == lineage["params"]
    assert 1_000_000 <= lineage["params"] <= 2_000_000
    assert all(shape[-1] % 256 == 0 for shape in shapes.values())


def test_model_is_of_the_committed_recipe(lineage: dict[str, Any]) -> None:
    assert lineage["recipe_sha256"] == recipes.load(MODELS / "recipes" / "tiny.toml").sha256
