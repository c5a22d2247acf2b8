"""The engine of embedding models, on a tiny random BERT with mean pooling."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from converters.header import read_header
from edgeai.cli import cli
from edgeai.engines.base import Engine
from edgeai.engines.llamacpp import EmbeddingEngine
from edgeai.engines.llamacpp.pooled import MAX_TEXTS, batches
from edgeai.errors import ClosedError, ContextExceeded, EngineCrashed, UsageError
from edgeai.model import Model, open_engine
from edgeai.types import GenerationConfig
from tests.families import VARIANTS, libllama_vectors, make_variant, write_f32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("embedding é")
    return write_f32(make_variant(place / "m", VARIANTS["bert"]), place / "bert.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with Model(open_engine(path, threads=1)) as found:
        yield found


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


TEXTS = ["a", "b c d", "some more words than before " * 3, "Hello world", "a"]


def test_a_vector_is_the_same_alone_and_in_a_batch(model: Model) -> None:
    together = model.embed(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        assert np.abs(row - model.embed([text])[0]).max() < 1e-5


def test_vectors_come_in_the_order_of_the_texts(model: Model) -> None:
    found = model.embed(["long " * 40, "short", "in the middle of both"] * 40)
    assert np.abs(found[:3] - found[-3:]).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_no_texts_give_no_vectors(model: Model) -> None:
    assert model.embed([]).shape == (0, 64)


def test_a_text_longer_than_the_model_takes_is_refused_with_its_place_and_both_numbers(model: Model) -> None:
    with pytest.raises(ContextExceeded, match=r"text 2 of 3 has \d+ tokens and the model takes 128"):
        model.embed(["a", "word and " * 200, "b"])


def test_one_string_is_not_taken_for_a_list_of_its_letters(model: Model) -> None:
    with pytest.raises(UsageError, match=r"one string, 'Hello'"):
        model.engine.embed("Hello")


def test_what_is_no_text_is_refused_with_its_place(model: Model) -> None:
    with pytest.raises(UsageError, match=r"item 2 of texts is None"):
        model.embed(["a", None])  # type: ignore[list-item]


def test_a_context_beyond_the_positions_of_the_model_is_refused_at_loading(path: Path) -> None:
    with pytest.raises(UsageError, match="positions for 128 tokens, and the context is 256"):
        open_engine(path, ctx=256)


def test_groups_hold_every_text_once_and_keep_their_limits() -> None:
    lengths = [5, 900, 1, 30, 30, 1, 2000, 7] + [3] * 200
    groups = list(batches(lengths, 100))
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    assert all(len(group) <= MAX_TEXTS for group in groups)
    assert all(len(group) == 1 or sum(lengths[at] for at in group) <= 100 for group in groups)


def busy(engine: EmbeddingEngine, texts: list[str]) -> Future[object]:
    """Start a long call in another thread, and return once its first batch runs."""
    pool = ThreadPoolExecutor(1)
    future: Future[object] = pool.submit(engine.embed, texts)
    pool.shutdown(wait=False)
    deadline = time.monotonic() + 20
    while engine._thread._current is None and time.monotonic() < deadline and not future.done():
        time.sleep(0.001)
    return future


MANY = [f"a text of some words, number {number}" for number in range(20_000)]


def test_a_short_call_does_not_wait_for_a_long_one(model: Model) -> None:
    long = busy(model.engine, MANY)  # type: ignore[arg-type]
    model.embed(["a"])
    assert not long.done()
    model.close()
    with pytest.raises(ClosedError):
        long.result(20)


def test_closing_ends_a_call_that_runs(model: Model) -> None:
    long = busy(model.engine, MANY)  # type: ignore[arg-type]
    model.close()
    with pytest.raises(ClosedError, match="closed"):
        long.result(20)


def test_ctrl_c_ends_the_call_and_the_engine_goes_on(model: Model) -> None:
    engine = model.engine
    assert isinstance(engine, EmbeddingEngine)

    def press() -> None:
        while engine._thread._current is None:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        model.embed(MANY)
    assert model.embed(["a"]).shape == (1, 64)


def test_a_forgotten_engine_ends_its_thread(path: Path) -> None:
    engine = open_engine(path, threads=1)
    assert isinstance(engine, EmbeddingEngine)
    thread = engine._thread._thread
    del engine
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_broken_model_gives_an_error_and_no_vector(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken.gguf"
    copy.write_bytes(path.read_bytes())
    place = next(tensor for tensor in read_header(copy).tensors if tensor.name == "token_embd_norm.bias")
    with copy.open("r+b") as file:
        file.seek(place.offset)
        file.write(np.full(1, np.nan, np.float32).tobytes())
    with Model(open_engine(copy, threads=1)) as broken, pytest.raises(EngineCrashed, match="not finite"):
        broken.embed(["a"])


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose file says that the vector of a text is that of its last token, as Qwen3-Embedding's does."""
    place = tmp_path_factory.mktemp("causal")
    return write_f32(
        make_variant(place / "m", VARIANTS["qwen3"]),
        place / "causal.gguf",
        lambda plan: replace(plan, keys={**plan.keys, "pooling_type": 3}),
    )


def test_a_causal_model_pools_its_last_token_like_torch(causal: Path) -> None:
    import torch
    from transformers import AutoModel

    reference = AutoModel.from_pretrained(causal.parent / "m", dtype=torch.float32).eval()
    with Model(open_engine(causal, threads=1)) as model:
        texts = ["Hello world", "a", "another text that is longer than the first " * 2]
        found = model.embed(texts)
        for row, text in zip(found, texts, strict=True):
            with torch.inference_mode():
                last = (
                    reference(torch.tensor([model.tokenize(text, add_special=True)])).last_hidden_state[0, -1].numpy()
                )
            assert np.allclose(row, last / np.linalg.norm(last), atol=2e-3)  # keys and values are kept in halves


def test_a_text_without_tokens_is_refused_with_its_place(model: Model) -> None:
    with pytest.raises(UsageError, match="text 2 of 2 is empty"):  # this vocabulary puts nothing around a text
        model.embed(["a", ""])


@pytest.mark.real
def test_vectors_of_a_real_model_are_those_of_sentence_transformers(minilm_path: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["", "Hello world", "The for statement is used to iterate over the elements of a sequence. " * 6, "a"]
    expected = SentenceTransformer(str(minilm_path), device="cpu").encode(texts, normalize_embeddings=True)
    with Model(open_engine(write_f32(minilm_path, tmp_path / "minilm.gguf"), threads=2)) as model:
        found = model.embed(texts)
    assert (found * expected).sum(axis=1).min() > 1 - 1e-5  # keys and values are kept in halves


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
