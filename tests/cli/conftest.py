"""ONNX models of each kind, made once, for the verbs that take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.exporting import convert_onnx
from edgeai.training import train
from edgeai.training.tasks import recipe as recipes
from tests.families import VARIANTS, make_variant
from tests.training.tasks.conftest import RECIPES, TRAINING

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def onnx_tiny_for_verbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny as a folder for onnxruntime-genai in int4."""
    return convert_onnx(ROOT / "models" / "tiny", tmp_path_factory.mktemp("made é") / "tiny-onnx", "int4").path


@pytest.fixture(scope="session")
def onnx_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in `bert`, and beside it `bert-onnx` in f16: the path of the second."""
    place = tmp_path_factory.mktemp("embedder é")
    return convert_onnx(make_variant(place / "bert", VARIANTS["bert"]), place / "bert-onnx", "f16").path


@pytest.fixture(scope="session")
def onnx_classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trained classifiers of pictures (`cnn`) and texts (`text-encoder`), each with its file NAME.onnx, in int8."""
    place = tmp_path_factory.mktemp("classifiers é")
    words = ("the model reads", "a tumour grows", "seven is here")
    lines = [f'{{"text": "{words[number % 3]} {number}", "label": "{number % 3}"}}' for number in range(60)]
    (place / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, quant in (("cnn", "int8"), ("text-encoder", "int8-dynamic")):
        (place / f"{name}.toml").write_text(RECIPES[name] + TRAINING, encoding="utf-8")
        train(recipes.load(place / f"{name}.toml"), place / name)
        convert_onnx(place / name, None, quant)
    return place
