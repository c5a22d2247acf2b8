"""The lab's local engine answers with the other answer, or fails as it is told."""

from __future__ import annotations

import threading

import pytest

from edgeai.chaos import stand_in
from edgeai.chaos.answers import LOCAL_ANSWER
from edgeai.chaos.faults import HOOKS
from edgeai.chaos.stand_in import open_stand_in
from edgeai.errors import Busy, ContextExceeded, DoesNotFit, EngineCrashed, ModelNotFound
from edgeai.types import GenerationConfig

FAILURES = {"local-oom": DoesNotFit, "local-busy": Busy, "local-context": ContextExceeded, "local-crash": EngineCrashed}


@pytest.mark.parametrize("hook", [None, *(hook for hook in HOOKS if not hook.startswith("local"))])
def test_it_answers_under_every_hook_that_is_no_matter_of_it(hook: str | None) -> None:
    chunks = list(open_stand_in(hook).generate("a question", GenerationConfig()))
    assert "".join(chunk.text for chunk in chunks) == LOCAL_ANSWER
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("hook", FAILURES)
def test_it_fails_without_a_word(hook: str) -> None:
    engine, texts = open_stand_in(hook), []
    with pytest.raises(FAILURES[hook]):
        texts += [chunk.text for chunk in engine.generate("a question", GenerationConfig())]
    assert not texts


def test_it_crashes_after_some_words() -> None:
    stream = open_stand_in("local-crash-midway").generate("a question", GenerationConfig())
    text = "".join(next(stream).text for _ in range(stand_in.SOME_WORDS))
    with pytest.raises(EngineCrashed):
        next(stream)
    assert text
    assert LOCAL_ANSWER.startswith(text)


@pytest.mark.parametrize("hook", ["local-missing", "local-down"])
def test_it_is_not_there(hook: str) -> None:
    with pytest.raises(ModelNotFound):
        open_stand_in(hook)


def test_it_is_slow_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "SLOW_S", 0.05)
    engine = open_stand_in("local-slow")
    assert "".join(chunk.text for chunk in engine.generate("a question", GenerationConfig())) == LOCAL_ANSWER
    monkeypatch.setattr(stand_in, "SLOW_S", 60)
    stream = engine.generate("a question", GenerationConfig())
    stream.close()
    assert engine.cancelled == 1
    for thread in threading.enumerate():
        if thread.name == "edgeai-chaos-slow":
            thread.join(1)
            assert not thread.is_alive()


def test_every_local_hook_does_something() -> None:
    known = {*FAILURES, "local-crash-midway", "local-missing", "local-down", "local-slow"}
    assert {hook for hook in HOOKS if hook.startswith("local")} == known
