"""A recipe so small that a whole run takes a moment, on text made here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from edgeai.training import recipe as recipes
from edgeai.training.recipe import Recipe

SENTENCE = "the model reads tokens and writes one after another until it is done with them all"
WORDS = SENTENCE.split()

MINI = """
seed = 3
[data]
source = "text.jsonl"
val_fraction = 0.2
[tokenizer]
pre = "gpt-2"
vocab_size = 290
[model]
hidden_size = 32
intermediate_size = 32
layers = 1
heads = 2
kv_heads = 1
context = 16
[training]
steps = 20
batch_size = 4
micro_batch_size = 2
lr = 0.01
warmup_steps = 2
checkpoint_every = 5
eval_every = 10
log_every = 5
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For models this small a second thread costs more than it gives, most of all where tests share the cores."""
    monkeypatch.setattr("edgeai.training.accelerator._cores", lambda: 1)


@pytest.fixture
def mini_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the small recipe, beside its text, in a folder with a difficult name."""
    monkeypatch.setenv("EDGEAI_HOME", str(tmp_path / "home"))
    folder = tmp_path / "a recipe é 模型"
    folder.mkdir()
    draw = random.Random(5)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=120)) + f" {number}."}) for number in range(10)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "mini.toml"
    path.write_text(MINI, encoding="utf-8")
    return path


@pytest.fixture
def mini(mini_file: Path) -> Recipe:
    """The small recipe."""
    return recipes.load(mini_file)
