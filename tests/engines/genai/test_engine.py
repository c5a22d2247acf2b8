"""The engine of ONNX language models: onnxruntime-genai's own answers, stoppable, the same alone and in company."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeai
from edgeai.engines.base import Engine
from edgeai.engines.genai import GenaiEngine
from edgeai.errors import (
    Busy,
    ClosedError,
    ConstraintError,
    ContextExceeded,
    DeviceUnavailable,
    EngineCrashed,
    InvalidModel,
    NoChatTemplate,
    UsageError,
)
from edgeai.model import Model, open_engine
from edgeai.types import GenerationConfig, Message
from tests.checkpoints import make
from tests.families import VARIANTS, make_variant
from tests.genai import built, changed, raw_greedy

ROOT = Path(__file__).parents[3]
START = "The for statement"
LONG = "The for statement is used to iterate over the elements of a sequence. " * 6
HI: list[Message] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def chatty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a chat template."""
    root = tmp_path_factory.mktemp("chatty")
    return built(make(root / "source"), root / "built")


@pytest.fixture(scope="module")
def chatty(chatty_folder: Path) -> Iterator[Model]:
    with Model(open_engine(chatty_folder, threads=1)) as model:
        yield model


# ---- the model's own answers


@pytest.mark.parametrize("text", [START, LONG])
def test_greedy_answers_are_those_of_a_plain_loop(tiny_genai: Model, tiny_onnx_f32: Path, text: str) -> None:
    ids = tiny_genai.engine.prompt_ids(text)
    expected = raw_greedy(tiny_onnx_f32, ids, 24)
    done = tiny_genai.complete(text, max_tokens=24, temperature=0)
    shown = expected[: expected.index(tiny_genai.artifact.eos)] if tiny_genai.artifact.eos in expected else expected
    assert done.text == tiny_genai.detokenize(shown)
    assert done.usage.prompt_tokens == len(ids)


def test_greedy_answers_of_a_quantized_model_are_those_of_a_plain_loop(tiny_onnx_int4: Path) -> None:
    with Model(open_engine(tiny_onnx_int4, threads=1)) as model:
        expected = raw_greedy(tiny_onnx_int4, model.engine.prompt_ids(LONG), 24)
        assert model.complete(LONG, max_tokens=24, temperature=0).text == model.detokenize(expected)


def test_greedy_answers_are_torchs(tiny_genai: Model) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")(START, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    expected = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny").decode(out, skip_special_tokens=True)
    assert tiny_genai.complete(START, max_tokens=24, temperature=0).text == expected


def torch_scores(ids: list[int]) -> list[float]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found: list[float] = logits[range(len(logits)), ids[1:]].tolist()
    return found


@pytest.mark.parametrize("text", [START, LONG])
def test_scores_are_torchs_log_probabilities(tiny_genai: Model, text: str) -> None:
    assert tiny_genai.score(text) == pytest.approx(torch_scores(tiny_genai.engine.prompt_ids(text)), abs=1e-3)


def test_scores_of_ids_are_those_of_their_text(tiny_genai: Model) -> None:
    assert tiny_genai.score(tiny_genai.engine.prompt_ids(START)) == tiny_genai.score(START)


def test_a_text_of_one_token_has_no_scores(tiny_genai: Model) -> None:
    assert tiny_genai.score([5]) == []


def test_a_text_longer_than_the_context_is_scored_whole(tiny_onnx_f32: Path) -> None:
    with Model(open_engine(tiny_onnx_f32, threads=1, ctx=32)) as model:
        ids = model.engine.prompt_ids(LONG)
        assert len(model.score(LONG)) == len(ids) - 1 > 32


def test_log_probabilities_are_torchs(tiny_genai: Model) -> None:
    done = tiny_genai.complete(START, max_tokens=5, temperature=0, logprobs=2)
    ids = tiny_genai.engine.prompt_ids(START)
    drawn = [item.id for item in done.logprobs]
    assert [item.logprob for item in done.logprobs] == pytest.approx(torch_scores([*ids, *drawn])[-5:], abs=1e-3)
    assert all(item.top[0][0] == item.id for item in done.logprobs)


def test_seeds_decide_what_is_drawn(tiny_genai: Model) -> None:
    answers = [tiny_genai.complete(START, max_tokens=16, seed=seed, temperature=1.5).text for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_window_does_not_change_greedy_answers(tmp_path: Path) -> None:
    folder = built(make_variant(tmp_path / "source", VARIANTS["gemma3"]), tmp_path / "built")
    with Model(open_engine(folder, threads=1)) as model:
        text = "word " * 30
        expected = raw_greedy(folder, model.engine.prompt_ids(text), 8)
        done = model.complete(text, max_tokens=8, temperature=0, logprobs=0)
    drawn = [item.id for item in done.logprobs]
    assert drawn == expected[: len(drawn)]


# ---- text


def test_a_stream_is_the_answer_in_pieces(tiny_genai: Model) -> None:
    with tiny_genai.stream(START, max_tokens=16, temperature=0) as stream:
        chunks = list(stream)
    assert len(chunks) > 4
    assert "".join(chunk.text for chunk in chunks) == tiny_genai.complete(START, max_tokens=16, temperature=0).text
    assert chunks[-1].finish_reason == "length"


def test_a_stop_string_ends_the_answer_before_it(tiny_genai: Model) -> None:
    whole = tiny_genai.complete(START, max_tokens=24, temperature=0).text
    stop = whole[10:14]
    done = tiny_genai.complete(START, max_tokens=24, temperature=0, stop=(stop,))
    assert (done.text, done.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_an_end_token_ends_the_answer(tiny_genai: Model) -> None:
    eos = tiny_genai.artifact.eos
    assert eos is not None
    done = tiny_genai.complete(START, temperature=0, logit_bias={eos: 1000.0})
    assert (done.text, done.finish_reason, done.usage.completion_tokens) == ("", "stop", 0)


def test_banned_tokens_do_not_come(tiny_genai: Model) -> None:
    first = tiny_genai.complete(START, max_tokens=1, temperature=0, logprobs=0).logprobs[0].id
    done = tiny_genai.complete(START, max_tokens=1, temperature=0, logprobs=0, logit_bias={first: -100})
    assert done.logprobs[0].id != first


def test_an_answer_held_to_choices_is_one_of_them(chatty: Model) -> None:
    assert chatty.complete("x", temperature=0, choices=["red", "green"]).text in ("red", "green")


def test_an_answer_held_to_a_schema_has_its_form(chatty: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    assert chatty.complete("x", seed=1, schema=schema, max_tokens=20).text in ('{"n":1}', '{"n":2}')


def test_a_form_that_cannot_be_is_an_error_before_anything_is_computed(chatty: Model) -> None:
    with pytest.raises(ConstraintError):
        chatty.complete("x", regex="(")


def test_chat_prompts_have_the_ids_of_transformers(chatty: Model, chatty_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatty_folder)
    expected = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    assert chatty.engine.prompt_ids(HI) == expected


def test_chat_without_a_template_is_an_error(tiny_genai: Model) -> None:
    with pytest.raises(NoChatTemplate):
        tiny_genai.chat(HI)


def test_text_survives_tokens(tiny_genai: Model) -> None:
    for text in (START, "naïve café — 日本語 🙂‍↔️", "  two  spaces\n\n\ttab", "<|im_end|> stays text"):
        assert tiny_genai.detokenize(tiny_genai.tokenize(text)) == text


# ---- limits


def test_an_empty_prompt_is_a_usage_error(chatty: Model) -> None:
    with pytest.raises(UsageError, match="empty"):
        chatty.complete("")
    with pytest.raises(UsageError, match="empty"):
        chatty.score([])


def test_a_prompt_beyond_the_context_says_both_numbers(chatty: Model) -> None:
    text = "word " * 300
    count = len(chatty.engine.prompt_ids(text))
    with pytest.raises(ContextExceeded, match=rf"{count} tokens.*128") as caught:
        chatty.complete(text)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("overflow", ["truncate-middle", "rolling"])
def test_a_long_prompt_is_cut_where_that_is_asked_for(chatty: Model, overflow: str) -> None:
    done = chatty.complete("word " * 300, max_tokens=8, temperature=0, overflow=overflow)
    assert done.usage.truncated_tokens > 0
    assert done.usage.prompt_tokens + 8 <= 128


def test_a_context_for_what_is_needed_has_room_for_the_template(chatty_folder: Path) -> None:
    question: list[Message] = [{"role": "user", "content": "Hi"}]
    with Model(open_engine(chatty_folder, threads=1, needed=len("Hi") + 5)) as model:
        answer = model.chat(question, max_tokens=5, temperature=0)
    assert "context-full" not in [notice.code for notice in answer.warnings]


def test_half_a_character_in_a_message_is_a_usage_error(chatty: Model) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        chatty.chat([{"role": "user", "content": "a\ud800b"}])


def test_a_full_context_ends_the_answer_with_a_notice(chatty: Model) -> None:
    ends = dict.fromkeys((0, 1, 2), -1000.0)
    done = chatty.complete("word " * 20, temperature=0, logit_bias=ends)
    assert done.finish_reason == "length"
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 128
    assert [notice.code for notice in done.warnings] == ["context-full"]


def test_a_context_above_the_models_is_refused(chatty_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"128 tokens, and the context is 129"):
        open_engine(chatty_folder, ctx=129)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_layers", 3), ("kv_type", "q8_0"), ("draft", Path("x.gguf")), ("adapters", {"a": Path("a.gguf")}), ("prefix_bytes", 1 << 20),
     ("kv_unified", True), ("threads_batch", 2)],
)  # fmt: skip
def test_options_that_do_nothing_are_refused(chatty_folder: Path, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"`{name}` is not possible"):
        open_engine(chatty_folder, **{name: value})


@pytest.mark.parametrize("options", [{"speculation": "lookup"}, {"adapters": (("a", 1.0),)}])
def test_ways_of_answering_that_do_not_exist_here_are_refused(chatty: Model, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        chatty.complete("x", **options)


@pytest.mark.parametrize("device", ["cuda", "dml"])
def test_a_device_without_a_build_for_it_is_an_error(chatty_folder: Path, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=device) as caught:
        open_engine(chatty_folder, device=device)
    assert caught.value.exit_code == 6
    assert "pip install" in str(caught.value.hint)


@pytest.mark.parametrize("call", [lambda e: e.embed(["a"]), lambda e: e.rank("a", ["b"]), lambda e: e.classify(["a"]),
                                  lambda e: e.save_prompt("a", Path("x")), lambda e: e.load_prompt(Path("x"))])  # fmt: skip
def test_what_a_language_model_does_not_do_is_a_usage_error(chatty: Model, call: Callable[[Engine], object]) -> None:
    with pytest.raises(UsageError):
        call(chatty.engine)


def test_a_deadline_ends_the_answer(tiny_genai: Model) -> None:
    ends = {tiny_genai.artifact.eos: -1000.0}
    done = tiny_genai.complete(LONG, temperature=0, max_seconds=0.001, logit_bias=ends)
    assert done.finish_reason == "timeout"


@pytest.mark.parametrize("bias", [{-1: 1.0}, {10**6: 1.0}])
def test_a_bias_outside_of_the_vocabulary_is_refused(chatty: Model, bias: dict[int, float]) -> None:
    with pytest.raises(UsageError, match="not in the vocabulary"):
        chatty.complete("x", logit_bias=bias)


# ---- several at once


def endless(model: Model, **options: Any) -> Any:
    ends = dict.fromkeys([model.artifact.eos, 0, 1, 2], -1000.0)
    return model.stream("word", temperature=0, logit_bias=ends, **options)


def test_answers_in_company_are_those_alone(tiny_genai: Model) -> None:
    prompts = [START, LONG, "def f(x):", "A list is", "import"]
    alone = [tiny_genai.complete(text, max_tokens=20, seed=4).text for text in prompts]
    found: dict[int, str] = {}

    def ask(at: int) -> None:
        found[at] = tiny_genai.complete(prompts[at], max_tokens=20, seed=4).text

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(prompts))] == alone


def test_streams_go_on_side_by_side(tiny_genai: Model) -> None:
    with (
        tiny_genai.stream(START, max_tokens=30, temperature=0) as first,
        tiny_genai.stream("A list", max_tokens=30, temperature=0) as second,
    ):
        assert next(first).text
        assert next(second).text
        assert len(list(first)) > 0
        assert len(list(second)) > 0


def test_more_than_may_wait_are_refused(chatty_folder: Path) -> None:
    with Model(open_engine(chatty_folder, threads=1, streams=1, queue=1)) as model:
        first, second = endless(model), endless(model)
        with pytest.raises(Busy, match=r"requests run and . wait") as caught:
            endless(model)
        assert caught.value.exit_code == 4
        first.close()
        second.close()


def test_a_cancelled_stream_makes_room(chatty_folder: Path) -> None:
    with Model(open_engine(chatty_folder, threads=1, streams=1, queue=0)) as model:
        stream = endless(model)
        next(stream)
        stream.close()
        assert model.complete("x", max_tokens=2, temperature=0).usage.completion_tokens <= 2


def test_cancelling_stops_the_work(tiny_onnx_f32: Path) -> None:
    with Model(open_engine(tiny_onnx_f32, threads=1)) as model:
        engine = model.engine
        assert isinstance(engine, GenaiEngine)
        stream = endless(model)
        next(stream)
        stream.cancel()
        list(stream)
        time.sleep(0.05)
        before = engine.batches
        time.sleep(0.1)
        assert engine.batches == before


def test_a_forgotten_stream_stops(tiny_onnx_f32: Path) -> None:
    with Model(open_engine(tiny_onnx_f32, threads=1, streams=1, queue=0)) as model:
        next(endless(model))
        assert model.complete("x", max_tokens=1, temperature=0).finish_reason in ("length", "stop")


def test_closing_ends_streams_and_refuses_what_follows(chatty_folder: Path) -> None:
    engine = open_engine(chatty_folder, threads=1, streams=1)
    config = GenerationConfig(temperature=0, logit_bias=dict.fromkeys((0, 1, 2), -1000.0))
    running, waiting = engine.generate("word", config), engine.generate("word", config)
    next(running)
    engine.close()
    assert {list(stream)[-1].finish_reason for stream in (running, waiting)} <= {"cancelled", "length"}
    with pytest.raises(ClosedError):
        engine.generate("x", GenerationConfig())
    with pytest.raises(ClosedError):
        engine.score("two words")
    engine.close()


def test_a_closed_engine_frees_its_model(chatty_folder: Path) -> None:
    engine = open_engine(chatty_folder, threads=1)
    assert isinstance(engine, GenaiEngine)
    engine.close()
    assert engine._runtime.model is None


def test_an_engine_does_not_survive_a_fork(tiny_genai: Model) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    read, write = os.pipe()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            tiny_genai.complete(START, max_tokens=1)
            answer = "answered"
        except EngineCrashed as error:
            answer = error.message
        except BaseException as error:  # noqa: BLE001 - this process must end here, whatever it is
            answer = repr(error)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(pid, 0)
    assert "was loaded before this process was forked" in said


def test_a_failure_of_one_request_is_its_own(tiny_genai: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai.engines.genai import runtime

    def broken(_self: object, _tokens: object) -> None:
        raise EngineCrashed("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.Generator, "read", broken)
        with pytest.raises(EngineCrashed, match="on purpose"):
            tiny_genai.complete(START, max_tokens=2)
    assert tiny_genai.complete(START, max_tokens=2, temperature=0).usage.completion_tokens == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 1}], ids=["greedy", "drawn"])
def test_probabilities_that_are_not_finite_are_an_error(
    tiny_onnx_f32: Path, tmp_path: Path, value: float, options: dict[str, Any]
) -> None:
    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "m"
    shutil.copytree(tiny_onnx_f32, folder)
    graph = onnx.load(folder / "model.onnx")
    (norm,) = (item for item in graph.graph.initializer if "final_norm" in item.name)
    norm.CopyFrom(numpy_helper.from_array(np.full(norm.dims, value, np.float32), norm.name))
    (folder / "model.onnx.data").unlink()
    onnx.save(graph, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    with Model(open_engine(folder, threads=1)) as model, pytest.raises(EngineCrashed, match="not finite"):
        model.complete(START, max_tokens=2, **options)


# ---- damaged, and in a process of its own


def test_a_graph_that_onnxruntime_refuses_is_an_invalid_model(chatty_folder: Path, tmp_path: Path) -> None:

    import onnx

    shutil.copytree(chatty_folder, tmp_path / "m")
    path = tmp_path / "m" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.graph.node[5]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="does not load") as caught:
        open_engine(tmp_path / "m")
    assert "\n" not in caught.value.message


def test_a_head_of_another_size_is_an_error_before_the_first_request(chatty_folder: Path, tmp_path: Path) -> None:
    folder = changed(
        chatty_folder,
        tmp_path / "m",
        "genai_config.json",
        lambda config: config["model"]["decoder"].update(head_size=2),
    )
    with pytest.raises(InvalidModel, match="does not run"):
        open_engine(folder, threads=1)


def test_answers_of_a_worker_are_those_of_this_process(chatty_folder: Path, chatty: Model) -> None:
    with edgeai.load(chatty_folder, threads=1, isolated=True) as model:
        expected = chatty.chat(HI, max_tokens=12, temperature=0).text
        assert model.chat(HI, max_tokens=12, temperature=0).text == expected
        assert model.score("one two three") == pytest.approx(chatty.score("one two three"), abs=1e-5)
        assert model.engine.prompt_ids(HI) == chatty.engine.prompt_ids(HI)


def test_a_killed_worker_is_an_error_and_the_next_one_answers(tmp_path: Path) -> None:
    folder = built(make(tmp_path / "source", max_position_embeddings=8192), tmp_path / "built")
    with edgeai.load(folder, threads=1, isolated=True) as model:
        expected = model.chat(HI, max_tokens=12, temperature=0).text
        stream = endless(model)  # of seconds
        next(stream)
        os.kill(model.engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(EngineCrashed):
            list(stream)
        assert model.chat(HI, max_tokens=12, temperature=0).text == expected
