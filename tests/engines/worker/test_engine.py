"""An isolated model gives what the same model gives in this process, through the same interface."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgeai
from edgeai.engines.base import Engine
from edgeai.engines.worker.engine import WorkerEngine
from edgeai.errors import ClosedError, ContextExceeded, InvalidModel, ModelNotFound, NoChatTemplate, UsageError
from edgeai.model import Model, open_engine
from edgeai.types import GenerationConfig
from tests.families import VARIANTS, make_variant, write_f32
from tests.test_vetting import EPSILON, with_value


@pytest.fixture(scope="module")
def isolated(tiny_gguf: Path) -> Iterator[Model]:
    with edgeai.load(tiny_gguf, threads=1, isolated=True) as model:
        yield model


def test_it_is_an_engine_of_another_process(isolated: Model) -> None:
    engine = isolated.engine
    assert isinstance(engine, WorkerEngine)
    assert isinstance(engine, Engine)
    assert engine.pid not in {None, os.getpid()}


def test_answers_are_those_of_the_same_model_in_this_process(isolated: Model, tiny: Model) -> None:
    for options in ({"temperature": 0}, {"seed": 3}, {"seed": 3, "stop": ("the",)}):
        here, there = (model.complete("The for statement", max_tokens=24, **options) for model in (tiny, isolated))
        assert (there.text, there.finish_reason, there.usage) == (here.text, here.finish_reason, here.usage)


def test_everything_else_it_says_is_the_same(isolated: Model, tiny: Model) -> None:
    text = "def f(x): return 'é 🙂'"
    ids = tiny.tokenize(text, add_special=True)
    assert isolated.tokenize(text, add_special=True) == ids
    assert isolated.detokenize(np.array(ids)) == tiny.detokenize(ids)  # type: ignore[arg-type]
    assert isolated.score(text) == pytest.approx(tiny.score(text), abs=1e-5)
    first, second = (replace(model.plan, correction={}, memory_bytes=0, why=()) for model in (tiny, isolated))
    assert first == second  # what the first load really took corrects the estimate of the second
    assert isolated.artifact == tiny.artifact
    assert isolated.engine.backend == tiny.engine.backend


def test_a_stream_is_the_answer_in_pieces_and_its_end_says_how_long_loading_took(isolated: Model) -> None:
    with isolated.stream("The for statement", max_tokens=16, temperature=0) as stream:
        chunks = list(stream)
    assert len(chunks) > 4
    assert (
        "".join(chunk.text for chunk in chunks)
        == isolated.complete("The for statement", max_tokens=16, temperature=0).text
    )
    assert chunks[-1].timings is not None
    assert chunks[-1].timings.load_s == isolated.engine.load_s > 0


def test_what_is_refused_is_refused_in_the_same_words_and_at_the_same_place(isolated: Model, tiny: Model) -> None:
    long = " word" * (tiny.plan.context + 5)
    for kind, prompt in (
        (ContextExceeded, long),
        (NoChatTemplate, [{"role": "user", "content": "Hi"}]),
    ):
        said = []
        for model in (tiny, isolated):
            with pytest.raises(kind) as caught:
                model.engine.generate(prompt, GenerationConfig())  # type: ignore[arg-type]
            said.append((str(caught.value), caught.value.hint))
        assert said[0] == said[1]
    with pytest.raises(UsageError, match="not an embedding model"):
        isolated.embed(["x"])


def test_a_mistake_in_the_call_is_raised_and_the_child_goes_on(isolated: Model) -> None:
    with pytest.raises(TypeError):
        isolated.engine.generate(object(), GenerationConfig())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="-1"):
        isolated.detokenize([-1])
    assert isolated.tokenize("x")


def test_a_cancelled_stream_ends_as_cancelled(isolated: Model) -> None:
    stream = isolated.stream("The", max_tokens=10_000)
    next(stream)
    stream.cancel()
    assert stream.collect().finish_reason == "cancelled"


def test_leaving_streams_early_leaves_nothing_open(isolated: Model) -> None:
    for _ in range(20):
        with isolated.stream("The", max_tokens=10_000) as stream:
            next(stream)
    isolated.complete("The", max_tokens=1)
    engine = isolated.engine
    assert isinstance(engine, WorkerEngine)
    deadline = threading.Event()
    for _ in range(200):
        if not len(engine._supervisor._requests):
            break
        deadline.wait(0.05)
    assert not len(engine._supervisor._requests)


def test_many_threads_get_their_own_answers(isolated: Model) -> None:
    alone = [isolated.complete(f"The {number}", max_tokens=6, temperature=0).text for number in range(8)]
    wrong: list[str] = []

    def ask(number: int) -> None:
        for _ in range(4):
            if (text := isolated.complete(f"The {number}", max_tokens=6, temperature=0).text) != alone[number]:
                wrong.append(text)
            if isolated.detokenize(isolated.tokenize(f"word {number}")) != f"word {number}":
                wrong.append("tokens")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_prompt_saved_there_is_loaded_there_and_found_again(isolated: Model, tmp_path: Path) -> None:
    prompt = "The for statement is used to iterate over the elements of a sequence, such as a string or a list"
    count = isolated.save_prompt(prompt, tmp_path / "é prompt")
    assert isolated.load_prompt(tmp_path / "é prompt") == count
    done = isolated.complete(f"{prompt}, and more", max_tokens=2, temperature=0)
    assert done.usage.cached_tokens > count // 2


def test_the_child_says_what_it_is_doing(isolated: Model) -> None:
    engine = isolated.engine
    assert isinstance(engine, WorkerEngine)
    before = engine.stats()
    isolated.complete("The", max_tokens=2)
    assert engine.stats().requests == before.requests + 1


def test_a_listener_is_told_of_every_chunk(isolated: Model) -> None:
    stream = isolated.engine.generate("The", GenerationConfig(max_tokens=8, temperature=0))
    told = threading.Semaphore(0)
    stream.channel.listen(told.release)
    found = []
    while not stream.ended:
        chunk = stream.poll()
        if chunk is None:
            assert told.acquire(timeout=30)
        else:
            found.append(chunk)
    assert found[-1].finish_reason == "length"


def test_vectors_are_those_of_the_same_model_in_this_process(tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path / "m", VARIANTS["bert"]), tmp_path / "é bert.gguf")
    texts = ["Hello world", "another text", ""][:2]
    with Model(open_engine(path, threads=1)) as here, Model(open_engine(path, threads=1, isolated=True)) as there:
        found = there.embed(texts)
        assert np.array_equal(found, here.embed(texts))
        assert found.dtype == np.float32
        assert there.embed([]).shape == here.embed([]).shape
        with pytest.raises(UsageError, match="has no stats"):
            there.engine.stats()  # type: ignore[attr-defined]


def test_a_closed_one_says_so(tiny_gguf: Path) -> None:
    model = Model(open_engine(tiny_gguf, threads=1, isolated=True))
    running = model.engine.generate(" word" * 20, GenerationConfig(temperature=0))
    next(running)
    model.close()
    model.engine.close()
    assert list(running)[-1].finish_reason in {"cancelled", "length"}
    assert model.plan.context > 0
    for use in (model.complete, model.tokenize, model.score, model.engine.tokenize, model.engine.score):
        with pytest.raises(ClosedError, match="closed"):
            use("x")


@pytest.mark.parametrize("isolated", [False, True])
def test_what_cannot_be_loaded_is_the_same_error(tiny_gguf: Path, tmp_path: Path, isolated: bool) -> None:
    with pytest.raises(ModelNotFound):
        open_engine(tmp_path / "none.gguf", isolated=isolated)
    hostile = with_value(
        tiny_gguf, tmp_path / "hostile.gguf", EPSILON + b"\xac\xc5\x27\x37", EPSILON + b"\x00\x00\x80\xbf"
    )
    with pytest.raises(InvalidModel, match="kills the native library") as caught:
        open_engine(hostile, isolated=isolated)
    assert "ASSERT" in str(caught.value)
    assert caught.value.hint is not None
    assert "damaged" in caught.value.hint


def test_nothing_is_written_to_the_terminal(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with edgeai.load(tiny_gguf, threads=1, isolated=True) as model:
        model.complete("The", max_tokens=2)
    assert capfd.readouterr() == ("", "")


def test_a_frozen_application_is_not_started_a_second_time(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(UsageError, match="frozen"):
        edgeai.load(tiny_gguf, isolated=True)
