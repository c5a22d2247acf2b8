"""Where room is short or something fails, each request still ends, and by itself: the others and the engine go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeai.engines.llamacpp import LlamaCppEngine, request
from edgeai.engines.llamacpp.composing import PromptPace, places, share_out
from edgeai.engines.llamacpp.speculate import Lookup
from edgeai.engines.opening import open_engine, planned
from edgeai.engines.worker.engine import WorkerEngine
from edgeai.errors import EngineCrashed
from edgeai.evaluation.streams import end_tokens
from edgeai.model import Model
from edgeai.plan import LoadOptions
from edgeai.types import GenerationConfig
from tests.engines.test_scheduler import WORDS, engine_of, together
from tests.families import VARIANTS, make_variant, write_f32

DEADLINE_S = 20


def tight(path: Path, *, draft_cells: int = 0, options: dict[str, Any], **plan: Any) -> Model:
    """Load PATH with a plan that the planner would not make here, where memory is plentiful."""
    artifact, found = planned(path, LoadOptions(threads=1, **options))
    draft = (artifact, replace(found, kv_cells=draft_cells)) if draft_cells else None
    return Model(LlamaCppEngine(artifact, replace(found, **plan), draft=draft))


def ends(stream: Iterator[Any]) -> list[str]:
    """Read STREAM in a thread; return its finish reason, or the type of its error, within DEADLINE_S; nothing for one that hangs."""
    found: list[str] = []

    def read() -> None:
        try:
            found.append([chunk.finish_reason for chunk in stream][-1])
        except Exception as error:  # noqa: BLE001 - what it is, is looked at
            found.append(type(error).__name__)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(DEADLINE_S)
    return found


def test_guesses_of_a_request_that_gave_its_cells_back_are_forgotten(tiny_gguf: Path) -> None:
    with tight(
        tiny_gguf,
        options={"ctx": 256, "streams": 4, "prefix_bytes": 0, "numerics": "fast", "kv_unified": True},
        kv_cells=256,
    ) as model:
        prompts = [f"{word} {WORDS} {WORDS}" for word in ("red", "green", "blue", "white")]
        options: dict[str, Any] = {"max_tokens": 100, "temperature": 0}
        alone = [model.complete(prompt, **options).text for prompt in prompts]
        done = together(model, prompts, **options, speculation="lookup")
        assert engine_of(model).stats().preempted > 0
        assert [answer.text for answer in done] == alone


@pytest.mark.parametrize("kv_unified", [True, False])
def test_more_answers_than_a_batch_has_places_take_turns(tiny_gguf: Path, kv_unified: bool) -> None:
    with tight(tiny_gguf, options={"ctx": 64, "streams": 32, "kv_unified": kv_unified}, batch=8) as model:
        done = together(model, [f"the {word}" for word in (WORDS * 2).split()[:32]], max_tokens=12, temperature=0)
        assert {answer.finish_reason for answer in done} == {"length"}


def test_prompts_keep_a_part_of_a_batch_that_answers_would_fill() -> None:
    assert (places(512, reading=False), places(512, reading=True), places(8, reading=True)) == (512, 480, 4)
    assert share_out([5, 7], 0) == [0, 0]


def test_scores_give_their_cells_to_a_request_that_needs_them_and_are_the_same(tiny_gguf: Path) -> None:
    text = " ".join([WORDS] * 20)
    options = {"ctx": 256, "streams": 1, "prefix_bytes": 0}
    with tight(tiny_gguf, options=options, kv_cells=256, batch=32, outputs=8) as model:
        expected = model.score(text)
        found: list[float] = []
        scoring = threading.Thread(target=lambda: found.extend(model.score(text)))
        scoring.start()
        done = [model.complete(f"{WORDS} {at}", max_tokens=180, temperature=0).finish_reason for at in range(3)]
        scoring.join()
        assert (done, found) == (["length"] * 3, expected)


def test_a_draft_model_without_room_guesses_nothing_and_gives_its_sequences_back(tiny_gguf: Path) -> None:
    with tight(
        tiny_gguf, options={"ctx": 256, "streams": 4, "numerics": "fast", "kv_unified": True}, draft_cells=256
    ) as model:
        prompts = [f"{word} {WORDS} {WORDS}" for word in ("red", "green", "blue", "white")]
        done = together(model, prompts, max_tokens=80, temperature=0, speculation="draft")
        assert {answer.finish_reason for answer in done} == {"length"}
        alone = model.complete(prompts[0], max_tokens=20, temperature=0, speculation="draft")
        assert alone.timings.accepted > 0


def test_failed_requests_give_the_sequences_of_the_draft_model_back(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tight(tiny_gguf, options={"ctx": 256, "streams": 2, "numerics": "fast"}, draft_cells=512) as model:
        with monkeypatch.context() as patched:
            patched.setattr(request.Answer, "_clock", _broken_at_the_third_token)
            for _ in range(8):
                with pytest.raises(ArithmeticError):
                    model.complete(WORDS, max_tokens=9, temperature=0, speculation="draft")
        assert model.complete(WORDS, max_tokens=20, temperature=0, speculation="draft").timings.accepted > 0


def test_a_failure_of_the_thread_gives_the_sequences_of_the_draft_model_back(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ctx": 256, "streams": 3, "prefix_bytes": 0, "numerics": "fast", "kv_unified": True}
    with tight(tiny_gguf, options=options, draft_cells=1024, kv_cells=256) as model:
        engine, prompts = engine_of(model), [f"{word} {WORDS} {WORDS}" for word in ("red", "green", "blue")]
        make_room = engine._core._make_room

        def make_room_and_fail() -> None:
            make_room()  # one request waits now, and has guessed before
            raise ArithmeticError

        monkeypatch.setattr(engine._core, "_make_room", make_room_and_fail)
        config = GenerationConfig(max_tokens=120, temperature=0, speculation="draft")
        streams = [engine.generate(text, config) for text in prompts]
        assert "ArithmeticError" in {end for stream in streams for end in ends(stream)}
        draft = engine._draft
        assert draft is not None
        assert sorted(draft._free) == list(range(draft.handle.sequences))


def test_a_long_prompt_is_read_by_a_draft_model_a_batch_at_a_time(tiny_gguf: Path) -> None:
    with tight(tiny_gguf, options={"ctx": 256, "streams": 1, "numerics": "fast"}, draft_cells=256, batch=256) as model:
        draft = engine_of(model)._draft
        assert draft is not None
        guesser, tokens = draft.guesser(), model.tokenize(" ".join([WORDS] * 16))[:200]
        draft._batch.capacity = 64
        assert [guesser.guess(tokens, 2) for _ in range(3)] == [[], [], []]
        assert len(guesser.guess(tokens, 2)) == 2
        guesser.close()


def test_a_stream_that_was_closed_is_no_reason_to_be_busy(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, queue=0, threads=1)) as model:
        for _ in range(20):
            with model.stream("the list", max_tokens=200, temperature=0) as stream:
                next(stream)


def test_a_prompt_larger_than_the_budget_does_not_push_the_others_out(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1, prefix_bytes=40_000)) as model:
        model.complete(WORDS, max_tokens=1)
        model.complete("red " + " ".join([WORDS] * 5), max_tokens=1)
        assert model.complete(WORDS, max_tokens=1).usage.cached_tokens > 0


def test_a_prompt_that_cannot_be_parked_is_forgotten(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1)) as model:
        handle = engine_of(model)._handle
        monkeypatch.setattr(handle, "state", _broken_memory)
        for word in ("red", "green", "blue", "white"):
            assert model.complete(f"{word} {WORDS}", max_tokens=2).usage.completion_tokens > 0


@pytest.mark.parametrize("method", ["end", "__init__"])
def test_a_request_that_fails_at_its_ends_tells_its_reader_and_no_other(
    method: str, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=2, threads=1)) as model:
        other = model.stream("the list", max_tokens=200, temperature=0)
        next(other)
        with monkeypatch.context() as patched:
            patched.setattr(request.Answer, method, _broken)
            assert ends(model.stream("the function", max_tokens=1)) == ["ArithmeticError"]
        assert ends(other) == ["length"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_the_lock_is_held_hangs_nobody_in_the_child(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1)) as model:
        stream = model.stream("the list", max_tokens=200, temperature=0)
        core, held, forked = engine_of(model)._core, threading.Event(), threading.Event()

        def hold() -> None:
            with core._gate:
                held.set()
                forked.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = os.fork()
        if child == 0:
            stream.close()
            core.stats()
            core.shut()
            core.join()
            os._exit(7)
        forked.set()
        holder.join()
        assert _exit_status(child) == 7
        stream.close()


def _exit_status(child: int) -> int | None:
    """Return what CHILD exits with; None, and it is killed, after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


# ---- how fast prompts are read


def test_what_is_only_begun_teaches_nothing_until_it_is_computed() -> None:
    pace, other = PromptPace(512), PromptPace(512)
    pace.learn(512, 0.001, computed=False)  # a GPU has only been told
    pace.learn(512, 2.047, computed=True)
    other.learn(1024, 2.048, computed=True)
    assert pace.allowance(1) == other.allowance(1)


def test_a_batch_that_was_not_computed_takes_what_was_begun_before_it_along() -> None:
    pace = PromptPace(512)
    pace.learn(512, 0.001, computed=False)
    pace.interrupted()
    pace.learn(64, 0.128, computed=True)
    assert pace.allowance(1) == 63


def _broken(*_: object) -> None:
    raise ArithmeticError


def _broken_at_the_third_token(answer: request.Answer) -> None:
    answer.samples += 1
    if answer.samples == 3:
        raise ArithmeticError


def _broken_memory(_: int) -> bytes:
    raise MemoryError


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_guesser_that_fails_ends_its_request_alone(
    kv_unified: bool, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Lookup, tokens: list[int], _most: int) -> list[int]:
        if len(tokens) > 40:
            raise EngineCrashed("the draft model failed", hint="none")
        return []

    monkeypatch.setattr(Lookup, "guess", fail)
    endless: dict[str, Any] = {"max_tokens": 60, "logit_bias": dict.fromkeys(end_tokens(tiny_gguf), -100.0)}
    with Model(open_engine(tiny_gguf, ctx=256, streams=4, threads=1, kv_unified=kv_unified, numerics="fast")) as model:
        streams = [
            model.stream(f"{word} {WORDS}", **endless, speculation="lookup" if word == "green" else "off")
            for word in ("red", "green", "blue", "white")
        ]
        found = [ends(stream) for stream in streams]
    assert found == [["length"], ["EngineCrashed"], ["length"], ["length"]]


def test_a_request_that_gave_its_cells_back_says_what_was_there_when_it_began(tiny_gguf: Path) -> None:
    endless: dict[str, Any] = {"max_tokens": 120, "logit_bias": dict.fromkeys(end_tokens(tiny_gguf), -100.0)}
    with Model(open_engine(tiny_gguf, ctx=256, threads=1)) as model:
        done = together(model, [f"{WORDS} and"] * 6, **endless)
        assert engine_of(model).stats().preempted > 0
    assert all(answer.usage.cached_tokens < answer.usage.prompt_tokens for answer in done)
    assert min(answer.usage.cached_tokens for answer in done) == 0  # of the first one


@pytest.mark.parametrize("options", [{}, {"streams": 4}, {"streams": 4, "kv_unified": True}])
def test_nothing_is_put_beyond_the_positions_that_a_model_has_learned(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS["gpt2"]), tmp_path / "x.gguf")
    with Model(open_engine(path, ctx=128, threads=1, prefix_bytes=10_000_000, isolated=True, **options)) as model:
        assert isinstance(model.engine, WorkerEngine)
        prompt = model.detokenize(model.tokenize(f"{WORDS} {WORDS} {WORDS}")[:88])
        for text in (prompt, f"{prompt} if so"):
            model.complete(text, max_tokens=30)
            time.sleep(0.3)  # the answer is read again while nobody asks
        assert model.complete("the", max_tokens=1).usage.completion_tokens == 1
        assert model.engine.restarts == 0


def test_the_trees_of_adapters_that_nothing_is_kept_of_are_gone(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, threads=1)) as model:
        cache = engine_of(model)._core._cache
        for scale in range(20):
            cache.computed(0, [1, 2, 3], (("x", float(scale)),))
            cache.lost(0)
        assert not cache._trees


def test_numbers_that_are_none_end_an_answer_with_an_error(tiny_gguf: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    data[-4000:] = b"\x00\x00\xc0\x7f" * 1000
    (tmp_path / "x.gguf").write_bytes(data)
    with Model(open_engine(tmp_path / "x.gguf", ctx=64, threads=1)) as model:
        for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 1}, {"schema": "a int"}):
            with pytest.raises(EngineCrashed, match="not finite"):
                model.complete("The", max_tokens=5, **options)


def test_a_time_limit_holds_for_a_child_that_is_stopped(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, threads=1, isolated=True)) as model:
        assert isinstance(model.engine, WorkerEngine)
        pid = model.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = ends(model.stream("The", max_tokens=5, max_seconds=0.5))
            spent = time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
        assert found == ["timeout"]
        assert spent < 5
        assert model.complete("The", max_tokens=1).usage.completion_tokens == 1
