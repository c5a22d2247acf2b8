"""A wait ends when whoever wanted the result gives up, and the work behind it stops."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from pathlib import Path

import pytest

import edgeai
from edgeai.aio import AsyncModel
from edgeai.engines.llamacpp import LlamaCppEngine
from edgeai.engines.waiting import Abandoned, Patience, wait
from edgeai.engines.worker.engine import WorkerEngine


def test_a_reply_is_returned_with_and_without_patience() -> None:
    replies: queue.SimpleQueue[str] = queue.SimpleQueue()
    replies.put("one")
    replies.put("two")
    assert wait(replies) == "one"
    with Patience().here():
        assert wait(replies) == "two"


def test_giving_up_ends_the_wait_that_is_and_those_that_follow() -> None:
    replies: queue.SimpleQueue[str] = queue.SimpleQueue()
    patience, ended = Patience(), []

    def work() -> None:
        with patience.here():
            for _ in range(2):
                with pytest.raises(Abandoned):
                    wait(replies)
                ended.append(True)
        replies.put("after")
        ended.append(wait(replies) == "after")  # the thread's next work is for somebody else

    thread = threading.Thread(target=work)
    thread.start()
    patience.give_up()
    thread.join(30)
    assert ended == [True, True, True]


def until(condition: object) -> bool:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.mark.parametrize("isolated", [False, True])
def test_a_cancelled_task_stops_its_score(tiny_gguf: Path, isolated: bool) -> None:
    text = "the for and is a number list of string object " * 30_000  # minutes of work

    async def main(model: AsyncModel) -> None:
        task = asyncio.ensure_future(model.score(text))
        assert await asyncio.to_thread(until, lambda: begun(model))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def begun(model: AsyncModel) -> bool:
        engine = model.model.engine
        if isinstance(engine, WorkerEngine):
            return any(request.begun for request in engine._supervisor._requests)
        assert isinstance(engine, LlamaCppEngine)
        return bool(engine._core._jobs)

    with edgeai.load(tiny_gguf, ctx=256, threads=1, isolated=isolated) as model:
        asyncio.run(main(AsyncModel(model)))
        engine = model.engine
        if isinstance(engine, WorkerEngine):
            child = engine._supervisor._child
            assert child is not None
            assert until(lambda: idle(child.pid))
        else:
            assert isinstance(engine, LlamaCppEngine)
            assert until(lambda: not engine._core._jobs)
        assert model.score("the for and") != []


def idle(pid: int) -> bool:
    """Whether the process PID computes nothing for a while."""
    import psutil

    before = sum(psutil.Process(pid).cpu_times()[:2])
    time.sleep(0.5)
    return sum(psutil.Process(pid).cpu_times()[:2]) - before < 0.02
