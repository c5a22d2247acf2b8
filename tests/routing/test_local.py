"""The local model of a router: loaded once, when it is asked."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeai.engines.fake import FakeEngine
from edgeai.errors import CloudFailure, DoesNotFit, ModelNotFound
from edgeai.routing.local import LocalModel
from edgeai.routing.timers import Timers


def test_many_requests_load_it_once() -> None:
    loads = []

    def load(path: Path) -> FakeEngine:
        loads.append(path)
        time.sleep(0.05)
        return FakeEngine()

    model = LocalModel("m", lambda: Path("m.gguf"), load)
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda _: model.engine(5.0), range(8)))
    assert (len(loads), len(engines), model.is_loaded) == (1, 1, True)


def test_a_load_that_failed_is_tried_again_by_the_next_request() -> None:
    outcomes = [DoesNotFit("full"), None]

    def load(path: Path) -> FakeEngine:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return FakeEngine()

    model = LocalModel("m", lambda: Path("m.gguf"), load)
    with pytest.raises(DoesNotFit):
        model.engine(5.0)
    assert isinstance(model.engine(5.0), FakeEngine)


def test_a_load_that_takes_too_long_for_one_request_serves_the_next() -> None:
    gate = threading.Event()

    def load(path: Path) -> FakeEngine:
        gate.wait(10)
        return FakeEngine()

    model = LocalModel("m", lambda: Path("m.gguf"), load)
    with pytest.raises(CloudFailure, match=r"not loaded in 0\.0 s") as error:
        model.engine(0.02)
    assert error.value.kind == "timeout"
    gate.set()
    assert isinstance(model.engine(5.0), FakeEngine)


def test_a_model_that_is_not_here_is_a_problem_and_no_crash() -> None:
    def find() -> Path:
        raise ModelNotFound("there is no 'm'", hint="edgeai pull m")

    model = LocalModel("m", find, lambda _: FakeEngine())
    assert model.problem() == "there is no 'm'; edgeai pull m"


def test_closing_frees_a_model_that_is_still_being_loaded() -> None:
    gate, engine = threading.Event(), FakeEngine()

    def load(path: Path) -> FakeEngine:
        gate.wait(10)
        return engine

    model = LocalModel("m", lambda: Path("m.gguf"), load)
    with pytest.raises(CloudFailure):
        model.engine(0.01)
    model.close()
    gate.set()
    for _ in range(200):
        if engine.closed:
            break
        time.sleep(0.01)
    assert engine.closed


def test_timers_call_in_the_order_of_their_times_and_not_what_was_cancelled() -> None:
    timers, called, done = Timers(), [], threading.Event()
    timers.after(0.06, done.set)
    timers.after(0.04, lambda: called.append("late"))
    timers.after(0.01, lambda: called.append("early"))
    timers.after(0.02, lambda: called.append("never")).cancel()
    assert done.wait(5)
    assert called == ["early", "late"]
    timers.close()
