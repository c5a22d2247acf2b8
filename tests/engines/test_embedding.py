"""The engine of embedding models, on a tiny random BERT with mean pooling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgeai.cli import cli
from edgeai.engines.base import Engine
from edgeai.engines.llamacpp import EmbeddingEngine
from edgeai.errors import ClosedError, ContextExceeded, UsageError
from edgeai.model import Model, open_engine
from edgeai.types import GenerationConfig
from tests.families import VARIANTS, libllama_vectors, make_variant, write_f32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("embedding é")
    return write_f32(make_variant(place / "m", VARIANTS["bert"]), place / "bert.gguf")


@pytest.fixture
def model(path: Path) -> Model:
    return Model(open_engine(path, threads=1))


def test_an_embedding_file_gets_the_engine_for_it(model: Model) -> None:
    assert isinstance(model.engine, EmbeddingEngine)
    assert isinstance(model.engine, Engine)


def test_vectors_are_those_of_the_library_and_of_length_one(model: Model, path: Path) -> None:
    texts = ["Hello world", "another text, rather longer than the first"]
    found = model.embed(texts)
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        expected = libllama_vectors(path, model.tokenize(text, add_special=True), pooled=True)[0]
        assert np.allclose(
            row, expected / np.linalg.norm(expected), atol=2e-3
        )  # the engine keeps keys and values in halves


def test_a_vector_does_not_depend_on_the_texts_before_it(model: Model) -> None:
    assert np.array_equal(model.embed(["a", "b c d", "a"])[2], model.embed(["a"])[0])


def test_no_texts_give_no_vectors(model: Model) -> None:
    assert model.embed([]).shape == (0, 64)


def test_a_text_longer_than_the_model_takes_is_refused_with_both_numbers(model: Model) -> None:
    with pytest.raises(ContextExceeded, match=r"\d+ tokens and the model takes 128"):
        model.embed(["word and " * 200])


def test_it_answers_no_questions(model: Model) -> None:
    for call in (lambda: model.engine.generate("Hi", GenerationConfig()), lambda: model.engine.score("Hi there")):
        with pytest.raises(UsageError, match="embedding model"):
            call()


def test_a_closed_one_says_so(model: Model) -> None:
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="closed"):
        model.embed(["a"])


def test_a_language_model_gives_no_vectors(tiny: Model) -> None:
    with pytest.raises(UsageError, match="not an embedding model"):
        tiny.embed(["a"])


def test_run_prints_the_vector_alone(path: Path, model: Model) -> None:
    result = CliRunner().invoke(cli, ["run", str(path), "Hello world", "--threads", "1"])
    assert result.exit_code == 0, result.output
    printed = np.array([float(part) for part in result.stdout.strip("[]\n").split(",")], np.float32)
    assert np.allclose(printed, model.embed(["Hello world"])[0], atol=1e-6)


def test_run_refuses_options_that_an_embedding_model_would_ignore(path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", str(path), "Hello", "--temp", "1"])
    assert result.exit_code == 2
    assert "--temp" in result.stderr
