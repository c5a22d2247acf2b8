"""The asyncio API: the methods of Model, no thread for a stream, and a cancelled task stops its work wherever it waits."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import edgeai
from edgeai.aio import AsyncModel, AsyncStream
from edgeai.engines.fake import FakeEngine
from edgeai.errors import ClosedError, ContextExceeded, EngineCrashed
from edgeai.model import Model, Stream
from tests.puppet import Puppet, Request

HI = [{"role": "user", "content": "hi"}]
SECONDS = 30.0
"""How long anything may take that should take no time: a test that waits longer has failed."""


def run(work: Callable[[AsyncModel], Awaitable[Any]], engine: FakeEngine | None = None) -> Any:
    """Return what WORK makes of a model with ENGINE, in an event loop of its own."""

    async def main() -> Any:
        async with AsyncModel(Model(engine or FakeEngine("one two three"))) as model:
            return await asyncio.wait_for(work(model), SECONDS)

    return asyncio.run(main(), debug=True)


async def begun(engine: Puppet, count: int = 1) -> Request:
    """Wait until COUNT requests more have begun and return the newest."""
    for _ in range(count):
        assert await asyncio.to_thread(engine.begun.acquire, timeout=SECONDS)
    deadline = time.monotonic() + SECONDS
    while not engine.requests:
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    return engine.requests[-1]


def public(kind: type) -> dict[str, Any]:
    return {name: value for name in dir(kind) if not name.startswith("_") and (value := getattr(kind, name, None))}


@pytest.mark.parametrize(
    ("sync", "other", "only_sync", "only_async"),
    [
        (Model, AsyncModel, {"open_engine"}, {"load", "submit", "in_thread"}),
        (Stream, AsyncStream, set(), {"aclose", "tell"}),
    ],
)
def test_every_method_is_there_with_the_same_parameters(
    sync: type, other: type, only_sync: set[str], only_async: set[str]
) -> None:
    ours, theirs = public(sync), public(other)
    assert ours.keys() - theirs.keys() == only_sync
    assert theirs.keys() - ours.keys() == only_async
    for name in ours.keys() & theirs.keys():
        if callable(ours[name]):
            assert inspect.signature(ours[name]).parameters == inspect.signature(theirs[name]).parameters, name
            assert theirs[name].__doc__, name


def test_results_are_those_of_the_model() -> None:
    with Model(FakeEngine("one two three")) as model:
        expected = [
            model.chat(HI, max_tokens=2), model.complete("x"), model.tokenize("a b a"), model.score("a b"),
            model.detokenize([0]), model.embed(["a", "b"]).tolist(), model.rank("a", ["a", "b"]),
        ]  # fmt: skip

    async def work(m: AsyncModel) -> list[Any]:
        return [
            await m.chat(HI, max_tokens=2), await m.complete("x"), await m.tokenize("a b a"), await m.score("a b"),
            await m.detokenize([0]), (await m.embed(["a", "b"])).tolist(),
            await m.rank("a", ["a", "b"]),
        ]  # fmt: skip

    assert run(work) == expected


def test_chunks_come_when_they_are_made() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> list[str]:
        seen = []
        async with m.stream(HI) as stream:
            for word in ("one", " two"):
                threading.Thread(target=engine.requests[0].say, args=[word]).start()
                seen.append((await anext(stream)).text)
            engine.requests[0].finish(text=" three")
            seen += [chunk.text async for chunk in stream]
        return [*seen, stream.completion().text]

    assert run(work, engine) == ["one", " two", " three", "one two three"]


def test_a_thousand_chunks_put_at_once_are_read_in_order() -> None:
    engine = Puppet()
    numbers = [str(number) for number in range(1000)]

    def produce(request: Request) -> None:
        for number in numbers:
            request.say(number)
        request.finish()

    async def work(m: AsyncModel) -> list[str]:
        async with m.stream("x") as stream:
            threading.Thread(target=produce, args=[engine.requests[0]]).start()
            return [chunk.text async for chunk in stream if chunk.text]

    assert run(work, engine) == numbers


def test_a_stream_takes_no_thread() -> None:
    engine, before = Puppet(), set(threading.enumerate())

    async def work(m: AsyncModel) -> int:
        tasks = [asyncio.ensure_future(m.chat(HI)) for _ in range(200)]
        await begun(engine, 200)
        while len(engine.requests) < 200:
            await asyncio.sleep(0)
        count = sum(thread.name.startswith("edgeai") for thread in threading.enumerate() if thread not in before)
        for request in engine.requests:
            request.finish()
        await asyncio.gather(*tasks)
        return count

    assert run(work, engine) <= 8


def test_what_is_wrong_with_a_prompt_is_raised_by_the_first_await() -> None:
    async def work(m: AsyncModel) -> None:
        stream = m.stream("word " * 100)
        for _ in range(2):
            with pytest.raises(ContextExceeded):
                await anext(stream)
        with pytest.raises(ContextExceeded):
            async with m.stream("word " * 100):
                pass

    run(work)


def test_an_engine_that_fails_raises_in_the_reader() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> None:
        async with m.stream("x") as stream:
            engine.requests[0].channel.put(EngineCrashed("it is gone"))
            with pytest.raises(EngineCrashed):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run(work, engine)


# ---- cancelled tasks


async def chats(m: AsyncModel) -> None:
    await m.chat(HI)


async def reads(m: AsyncModel) -> None:
    async with m.stream(HI) as stream:
        async for _ in stream:
            pass


async def reads_without_a_block(m: AsyncModel) -> None:
    async for _ in m.stream(HI):
        pass


async def does_something_else(m: AsyncModel) -> None:
    async with m.stream(HI) as stream:
        async for _ in stream:
            await asyncio.sleep(SECONDS)


READERS = [chats, reads, reads_without_a_block, does_something_else]


@pytest.mark.parametrize("reader", READERS)
def test_a_cancelled_task_stops_its_work(reader: Callable[[AsyncModel], Awaitable[None]]) -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> None:
        task = asyncio.ensure_future(reader(m))
        request = await begun(engine)
        request.say("one")
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        assert await asyncio.to_thread(request.cancelled.wait, SECONDS)

    run(work, engine)


@pytest.mark.parametrize("reader", READERS)
def test_a_task_that_is_cancelled_while_its_prompt_is_read_stops_its_work(
    reader: Callable[[AsyncModel], Awaitable[None]],
) -> None:
    engine = Puppet()
    engine.may_begin.clear()

    async def work(m: AsyncModel) -> None:
        task = asyncio.ensure_future(reader(m))
        assert await asyncio.to_thread(engine.begun.acquire, timeout=SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        engine.may_begin.set()
        while not engine.requests:
            await asyncio.sleep(0)
        assert await asyncio.to_thread(engine.requests[0].cancelled.wait, SECONDS)

    run(work, engine)


def test_a_task_that_is_cancelled_before_its_prompt_is_read_never_begins() -> None:
    engine = Puppet()
    engine.may_begin.clear()

    async def work(m: AsyncModel) -> None:
        tasks = [asyncio.ensure_future(m.chat(HI)) for _ in range(20)]
        for _ in range(4):  # as many as there are threads for it
            assert await asyncio.to_thread(engine.begun.acquire, timeout=SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        engine.may_begin.set()

    run(work, engine)
    assert not engine.begun.acquire(blocking=False)
    assert all(request.cancelled.is_set() for request in engine.requests)


def test_a_forgotten_stream_stops_its_work() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> None:
        stream = m.stream(HI)
        waiting = asyncio.ensure_future(anext(stream))
        request = await begun(engine)
        request.say("one")
        assert (await waiting).text == "one"
        del stream, waiting
        gc.collect()
        assert request.cancelled.is_set()

    run(work, engine)


def test_waiting_with_a_time_limit_loses_nothing() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> str:
        engine.may_begin.clear()
        stream = m.stream(HI)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)  # while the prompt is read
        engine.may_begin.set()
        request = await begun(engine)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)  # while nothing comes
        request.say("one")
        request.finish(text=" two")
        return "".join([chunk.text async for chunk in stream])

    assert run(work, engine) == "one two"


def test_cancel_ends_the_stream_with_a_last_chunk() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> tuple[str, str]:
        async with m.stream(HI) as running:
            engine.requests[0].say("one")
            running.cancel()
            done = await running.collect()
        waiting = m.stream(HI)
        waiting.cancel()  # before it begins
        return done.finish_reason, (await waiting.collect()).finish_reason

    assert run(work, engine) == ("cancelled", "cancelled")


def test_a_closed_stream_ends_for_a_task_that_waits_for_it_too() -> None:
    engine = Puppet()

    async def work(m: AsyncModel) -> None:
        stream = m.stream(HI)
        waiting = asyncio.ensure_future(anext(stream))
        request = await begun(engine)
        stream.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert request.cancelled.is_set()
        unused = m.stream(HI)
        unused.close()
        assert [chunk async for chunk in unused] == []

    run(work, engine)


# ---- event loops


def test_a_loop_that_is_closed_in_the_middle_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "concurrent")
    engine = Puppet()
    model = AsyncModel(Model(engine))
    loop = asyncio.new_event_loop()
    stream = model.stream(HI)

    async def first_chunk() -> str:
        waiting = asyncio.ensure_future(anext(stream))
        (await begun(engine)).say("one")
        return (await waiting).text

    assert loop.run_until_complete(first_chunk()) == "one"
    engine.may_begin.clear()
    late = loop.create_task(model.chat(HI))
    loop.run_until_complete(asyncio.sleep(0))
    assert engine.begun.acquire(timeout=SECONDS)
    loop.call_soon(late.cancel)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    engine.requests[0].say("two")  # nobody is there any more
    assert engine.requests[0].cancelled.is_set()
    engine.may_begin.set()
    model.model.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_many_loops_in_many_threads_share_a_model() -> None:
    model = AsyncModel(Model(FakeEngine("one two three")))
    found: list[set[str]] = []

    async def work() -> set[str]:
        done = await asyncio.gather(*(model.chat(HI) for _ in range(10)))
        return {answer.text for answer in done}

    threads = [threading.Thread(target=lambda: found.append(asyncio.run(work()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"one two three"}] * 8


# ---- closing and loading


def test_everything_raises_after_close() -> None:
    engine = Puppet()

    async def main() -> None:
        model = AsyncModel(Model(engine))
        opened, waiting = model.stream(HI), asyncio.ensure_future(model.chat(HI))
        first = asyncio.ensure_future(anext(opened))
        await begun(engine, 2)
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        for request in engine.requests:
            request.say("one")
        await first
        await model.close()
        await model.close()
        for use in (
            lambda: model.chat(HI), lambda: model.complete("x"), lambda: model.tokenize("x"), lambda: model.detokenize([0]),
            lambda: model.score("x"), lambda: model.embed(["x"]), lambda: model.rank("x", ["y"]), lambda: anext(opened), lambda: waiting,
        ):  # fmt: skip
            with pytest.raises(ClosedError):
                await use()
        with pytest.raises(ClosedError):
            model.stream(HI)

    asyncio.run(main())


def test_loading_answers(tiny_gguf: Path) -> None:
    async def main() -> tuple[str, int]:
        async with await edgeai.AsyncModel.load(tiny_gguf, ctx=128, threads=1) as m:
            async with m.stream("The", max_tokens=3, temperature=0) as stream:
                pieces = [chunk.text async for chunk in stream]
            return "".join(pieces), (await m.complete("The", max_tokens=3, temperature=0)).usage.completion_tokens

    with edgeai.load(tiny_gguf, ctx=128, threads=1) as model:
        text = model.complete("The", max_tokens=3, temperature=0).text
    assert asyncio.run(main()) == (text, 3)


def test_a_load_that_is_cancelled_closes_what_it_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, go_on, engine = threading.Event(), threading.Event(), FakeEngine()

    def load(_: object) -> Model:
        loading.set()
        go_on.wait()
        return Model(engine)

    monkeypatch.setattr("edgeai.aio.load", load)

    async def main() -> None:
        task = asyncio.ensure_future(AsyncModel.load("x"))
        assert await asyncio.to_thread(loading.wait, SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        deadline = time.monotonic() + SECONDS
        while not engine.closed:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_beginning_an_answer_does_not_wait_for_long_work() -> None:
    release = threading.Event()

    class Busy(FakeEngine):
        def score(self, text: str) -> list[float]:
            release.wait(SECONDS)
            return super().score(text)

    async def work(m: AsyncModel) -> str:
        scores = [asyncio.ensure_future(m.score("a b")) for _ in range(50)]
        await asyncio.sleep(0)
        text = (await m.chat(HI)).text
        release.set()
        await asyncio.gather(*scores)
        return str(text)

    assert run(work, Busy("at once")) == "at once"


def test_the_doc_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeai.aio.load", functools.partial(lambda *_, **__: Model(FakeEngine("fine"))))

    async def main() -> str:
        async with await edgeai.AsyncModel.load("smollm2") as m:
            return (await m.chat([{"role": "user", "content": "Hi"}], max_tokens=64)).text

    assert asyncio.run(main()) == "fine"
