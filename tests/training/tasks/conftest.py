"""Small recipes and small data of a user's, made here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeai.training.tasks import recipe as recipes
from edgeai.training.tasks.recipe import TaskRecipe

TRAINING = """
[training]
steps = 20
batch_size = 16
micro_batch_size = 8
lr = 0.01
warmup_steps = 2
log_every = 5
eval_every = 10
checkpoint_every = 5
"""

RECIPES = {
    "cnn": """
seed = 3
[task]
architecture = "cnn"
[data]
source = "sklearn:digits"
height = 8
width = 8
channels = 1
shift = 1
flip = true
[model]
width = 4
stages = 2
dropout = 0.2
""",
    "mlp": """
seed = 3
[task]
architecture = "mlp"
[data]
source = "rows.csv"
target = "kind"
ignore = ["id"]
[model]
hidden_size = 8
layers = 1
dropout = 0.2
""",
    "regression": """
seed = 3
[task]
kind = "regression"
architecture = "mlp"
[data]
source = "sklearn:diabetes"
[model]
hidden_size = 8
layers = 1
""",
    "tcn": """
seed = 3
[task]
architecture = "tcn"
[data]
source = "sklearn:digits"
[model]
width = 4
blocks = 5
dropout = 0.1
""",
    "text-encoder": """
seed = 3
[task]
architecture = "text-encoder"
[data]
source = "texts.jsonl"
text = "text"
target = "label"
[tokenizer]
vocab_size = 280
[model]
hidden_size = 16
intermediate_size = 16
layers = 1
heads = 2
max_tokens = 24
""",
}

Write = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a difficult name, with files of a user's in it."""
    folder = tmp_path / "a recipe é 模型"
    folder.mkdir()
    draw = random.Random(5)
    rows = ["id,size,colour,kind"]
    for number in range(60):
        kind = number % 3
        rows.append(f"{number},{kind + draw.random():.3f},{draw.choice(['red', 'green'])},{'abc'[kind]}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ("the model reads", "a tumour grows", "7 < 8 <|eos|>")
    lines = [f'{{"text": "{words[n % 3]} {n} {draw.random()}", "label": "{n % 3}"}}' for n in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def write(home: Path) -> Write:
    """Write the small recipe of an architecture and return its path."""

    def write(name: str, replaced: Iterable[tuple[str, str]] = ()) -> Path:
        text = RECIPES[name] + TRAINING
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = home / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write: Write) -> Callable[..., TaskRecipe]:
    """Load the small recipe of an architecture, with overrides."""
    return lambda name, *overrides: recipes.load(write(name), overrides)


@pytest.fixture
def pictures(home: Path) -> Path:
    """A folder with two classes of pictures: bright and dark ones, of several sizes and kinds."""
    folder = home / "pictures"
    rng = np.random.default_rng(5)
    for label, low in (("dark", 0), ("bright", 150)):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            pixels: Any = rng.integers(low, low + 100, size=(10 + number, 12, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            if number % 4 == 1:
                image = image.convert("L")
            if number % 4 == 2:
                image = image.convert("RGBA")
            image.save(folder / label / f"{number} é.{'png' if number % 2 else 'bmp'}")
    return folder
