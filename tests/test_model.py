"""The Python API: what a call leaves open comes from the model, then from the defaults."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeai
from edgeai.engines.fake import FakeEngine
from edgeai.errors import ClosedError, IncompleteOutput, InvalidModel, ModelNotFound, UsageError
from edgeai.model import Model, file_sampling
from edgeai.types import Constraint, FinishReason, GenerationConfig, Notice, TokenLogprob
from tests.puppet import Puppet

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


def test_an_option_that_there_is_not_is_a_usage_error_that_suggests_one() -> None:
    with pytest.raises(UsageError, match="'max_token'") as caught:
        Model(FakeEngine()).complete("x", max_token=3)
    assert caught.value.hint == "did you mean 'max_tokens'?"


def test_an_option_of_loading_that_there_is_not_is_a_usage_error_that_suggests_one() -> None:
    with pytest.raises(UsageError, match="'contxt'") as caught:
        edgeai.load("smollm2", contxt=3)
    assert caught.value.hint == "did you mean 'ctx'?"
    with pytest.raises(UsageError) as caught:
        edgeai.load("smollm2", xyz=3)
    assert "options are ctx" in (caught.value.hint or "")


def test_draft_and_adapters_are_found_as_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    opened: dict[str, object] = {}

    def open_engine(_: Path, **options: object) -> FakeEngine:
        opened.update(options)
        return FakeEngine()

    monkeypatch.setattr("edgeai.model.open_engine", open_engine)
    edgeai.load("a.gguf", draft="a.gguf", adapters={"style": "a.gguf"})
    assert opened == {"draft": Path("a.gguf"), "adapters": {"style": Path("a.gguf")}}
    for options in ({"draft": "smolm2"}, {"adapters": {"style": "nowhere.gguf"}}):
        with pytest.raises(ModelNotFound):
            edgeai.load("a.gguf", **options)


@pytest.mark.parametrize("stop", ["END", ["END"], ("END",)])
def test_one_stop_text_needs_no_list(stop: object) -> None:
    assert Model(FakeEngine()).config(stop=stop).stop == ("END",)


def test_a_text_is_no_conversation_and_no_list_of_texts() -> None:
    model = Model(FakeEngine())
    with pytest.raises(UsageError, match="messages"):
        model.chat("hi")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="list"):
        model.embed("hi")


def test_log_probabilities_of_all_chunks_are_in_the_answer_if_they_were_asked_for() -> None:
    engine = Puppet()
    model = Model(engine)
    tokens = [TokenLogprob(id=number, text=str(number), logprob=-1.0) for number in range(3)]
    for logprobs, expected in ((0, tuple(tokens)), (None, None)):
        stream = model.stream("x", logprobs=logprobs)
        engine.requests[-1].say("0", logprobs=tuple(tokens[:1]) if logprobs is not None else ())
        engine.requests[-1].say("12", logprobs=tuple(tokens[1:]) if logprobs is not None else ())
        engine.requests[-1].finish()
        done = stream.collect()
        assert done.logprobs == expected
        assert ("logprobs" in done.to_dict()) == (expected is not None)


def test_warnings_of_every_kind_are_in_the_answer(tmp_path: Path) -> None:
    engine = Puppet()
    plan, cut = Notice(code="cpu-fallback", message="a"), Notice(code="context-truncated", message="b")
    engine.plan = replace(engine.plan, notices=(plan,))
    engine.artifact = replace(engine.artifact, path=tmp_path / "x.gguf", metadata={"edgeai.passport.ok": False})
    model = Model(engine)
    stream = model.stream("x")
    engine.requests[0].say("", notices=(cut,))
    engine.requests[0].finish()
    assert [notice.code for notice in model.notices] == ["cpu-fallback", "proof-failed"]
    assert [notice.code for notice in stream.collect().warnings] == [
        "cpu-fallback",
        "proof-failed",
        "context-truncated",
    ]


# ---- closing


def test_everything_raises_after_close() -> None:
    engine = Puppet()
    model = Model(engine)
    stream = model.stream("x")
    ended = model.stream("x")
    engine.requests[0].say("one")
    engine.requests[1].finish(text="whole")
    assert ended.collect().text == "whole"
    model.close()
    model.close()
    for use in (
        lambda: model.chat([{"role": "user", "content": "x"}]), lambda: model.complete("x"), lambda: model.stream("x"),
        lambda: model.tokenize("x"), lambda: model.detokenize([0]), lambda: model.score("x"), lambda: model.embed(["x"]),
        lambda: model.rank("x", ["y"]), lambda: next(stream), stream.collect,
    ):  # fmt: skip
        with pytest.raises(ClosedError, match="'fake' has been closed"):
            use()
    assert list(ended) == []
    assert ended.completion().text == "whole"


def test_a_reader_that_waits_when_the_model_is_closed_is_told() -> None:
    engine, raised = Puppet(), threading.Event()
    model = Model(engine)

    def read() -> None:
        with pytest.raises(ClosedError):
            model.complete("x")
        raised.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert engine.begun.acquire(timeout=30)
    model.close()
    reader.join(30)
    assert raised.is_set()


# ---- answers that must have a form

SCHEMA = Constraint(kind="json_schema", source='{"type": "object"}')


@pytest.mark.parametrize("reason", ["length", "timeout", "stop"])
@pytest.mark.parametrize("engine_says_so", [True, False])
def test_an_answer_that_was_cut_before_it_had_its_form_is_an_error_that_keeps_the_text(
    reason: FinishReason, engine_says_so: bool
) -> None:
    engine = Puppet()
    stream = Model(engine).stream("x", constraint=SCHEMA)
    if engine_says_so:
        notice = Notice(code="incomplete-output", message="it ended before it was whole")
        engine.requests[0].say("12", notices=(notice,))
    engine.requests[0].finish(reason, "" if engine_says_so else '{"a":')
    with pytest.raises(IncompleteOutput, match="before it was whole") as caught:
        stream.collect()
    assert (caught.value.text, caught.value.exit_code) == (stream.completion().text, 4)


def test_an_answer_that_was_cancelled_may_have_any_form() -> None:
    engine = Puppet()
    stream = Model(engine).stream("x", schema="name, age int")
    engine.requests[0].say('{"a":')
    stream.cancel()
    assert stream.collect().text == '{"a":'


@pytest.mark.parametrize(
    ("form", "text", "whole"),
    [
        (SCHEMA, '{"a": 1}', True),
        (SCHEMA, '{"a"', False),  # a stop text can end an answer anywhere
        (Constraint(kind="choices", source='["yes", "no"]'), "yes", True),
        (Constraint(kind="choices", source='["yes", "no"]'), "ye", False),
        (Constraint(kind="regex", source="a+"), "aa", True),
        (None, '{"a"', True),
    ],
)
def test_an_answer_of_its_form_is_whole(form: Constraint | None, text: str, whole: bool) -> None:
    engine = Puppet()
    stream = Model(engine).stream("x", constraint=form)
    engine.requests[0].finish("stop", text)
    if whole:
        assert stream.collect().text == text
    else:
        with pytest.raises(IncompleteOutput):
            stream.collect()


def test_leaving_the_block_stops_the_work() -> None:
    engine = FakeEngine("one two three")
    with Model(engine).stream("x") as chunks:
        assert next(chunks).text == "one"
    assert engine.cancelled == 1


@pytest.mark.parametrize("name", ["save_prompt", "load_prompt"])
def test_a_prompt_is_kept_in_a_file_and_nothing_else(name: str) -> None:
    arguments = ("x", None) if name == "save_prompt" else (None,)
    with pytest.raises(UsageError, match="None is no path"):
        getattr(Model(FakeEngine("one")), name)(*arguments)


def test_a_stream_that_has_not_ended_is_no_completion() -> None:
    stream = Model(FakeEngine("one two")).stream("x")
    next(stream)
    with pytest.raises(UsageError, match="not ended"):
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


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 2.5}, {"max_tokens": True}, {"temperature": "hot"}, {"temperature": None}, {"seed": "1"}, {"top_k": None},
        {"stop": 3}, {"stop": [3]}, {"logit_bias": {"5": 1.0}}, {"logit_bias": {5: "much"}}, {"logit_bias": [5]}, {"adapters": ["a"]},
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_a_usage_error_that_names_it(option: dict[str, Any]) -> None:
    (name,) = option
    with Model(FakeEngine()) as model, pytest.raises(UsageError, match=name) as caught:
        model.complete("x", **option)
    assert name in (caught.value.hint or "")


@pytest.mark.parametrize(
    "option",
    [{"ctx": "64"}, {"ctx": 64.0}, {"threads": "2"}, {"gpu_layers": "all"}, {"adapters": ["a.gguf"]}, {"queue": None}],
)
def test_a_value_of_another_kind_for_loading_is_a_usage_error_that_names_it(
    tiny_gguf: Path, option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=name):
        edgeai.load(tiny_gguf, **option)


def test_numbers_of_numpy_are_numbers() -> None:
    options: dict[str, Any] = {
        "max_tokens": np.int64(3),
        "temperature": np.float32(0.5),
        "logit_bias": {np.int32(5): 1},
    }
    config = GenerationConfig(**options)
    assert (config.max_tokens, config.temperature) == (3, 0.5)


def test_a_conversation_is_no_text_to_be_completed() -> None:
    with Model(FakeEngine()) as model, pytest.raises(UsageError, match="list"):
        model.complete([{"role": "user", "content": "x"}])  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [{"role": "user", "content": "x"}, 3, [3], ["hi"], None])
def test_what_is_no_list_of_messages_is_a_usage_error(smollm2: Model, messages: Any) -> None:
    with pytest.raises(UsageError, match="messages"):
        smollm2.chat(messages)
