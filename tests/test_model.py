"""The Python API: what a call leaves open comes from the model, then from the defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import edgeai
from edgeai.engines.fake import FakeEngine
from edgeai.errors import InvalidModel, ModelNotFound, UsageError
from edgeai.model import Model, file_sampling
from edgeai.types import GenerationConfig

ROOT = Path(__file__).parents[1]


def test_a_call_wins_over_the_catalogue_and_the_catalogue_over_the_file() -> None:
    engine = FakeEngine()
    engine.artifact = replace(engine.artifact, metadata={"general.sampling.temp": 0.5, "general.sampling.top_k": 7})
    model = Model(engine, sampling={"temperature": 0.2})
    assert model.config() == GenerationConfig(temperature=0.2, top_k=7)
    assert model.config(temperature=1.0, seed=3) == GenerationConfig(temperature=1.0, top_k=7, seed=3)


def test_impossible_sampling_in_a_file_is_as_good_as_none() -> None:
    engine = FakeEngine()
    metadata = {"general.sampling.temp": -1.0, "general.sampling.top_p": float("nan"), "general.sampling.min_p": "x"}
    assert file_sampling(replace(engine.artifact, metadata=metadata)) == {}


def test_impossible_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="top_p"):
        Model(FakeEngine()).complete("x", top_p=2)


def test_leaving_the_block_stops_the_work() -> None:
    engine = FakeEngine("one two three")
    with Model(engine).stream("x") as chunks:
        assert next(chunks).text == "one"
    assert engine.cancelled == 1


def test_a_stream_that_has_not_ended_is_no_completion() -> None:
    stream = Model(FakeEngine("one two")).stream("x")
    next(stream)
    with pytest.raises(ValueError, match="not ended"):
        stream.completion()


def test_loading_a_path_answers(tiny_gguf: Path) -> None:
    with edgeai.load(tiny_gguf, ctx=128, threads=1) as model:
        done = model.complete("The", max_tokens=3, seed=1)
    assert (done.usage.completion_tokens, done.plan["context"]) == (3, 128)


def test_loading_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ModelNotFound) as caught:
        edgeai.load("smolm2")
    assert "smollm2" in (caught.value.hint or "")


def test_loading_full_precision_weights_names_convert() -> None:
    with pytest.raises(InvalidModel) as caught:
        edgeai.load(ROOT / "models" / "tiny")
    assert "edgeai convert" in (caught.value.hint or "")
