"""One model, many callers: every answer is the one that its prompt and seed have alone, whatever else runs and is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edgeai
from edgeai.aio import AsyncModel
from edgeai.engines.llamacpp import LlamaCppEngine
from edgeai.model import Model
from edgeai.types import Completion

THREADS, REQUESTS = 50, 20
WORDS = [
    "the",
    "for",
    "and",
    "is",
    "a",
    "number",
    "list",
    "of",
    "string",
    "object",
    "with",
    "value",
    "return",
    "name",
    "class",
]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its seed; SIZE: the longest answer."""

    prompt: str
    seed: int
    size: int

    def options(self) -> dict[str, Any]:
        return {"seed": self.seed, "max_tokens": self.size, "temperature": 1.0}


def questions(count: int = 40) -> list[Question]:
    draw = random.Random(7)
    return [
        Question("The " + " ".join(draw.choices(WORDS, k=draw.randint(1, 30))), seed, draw.randint(1, 6))
        for seed in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A model with what it answers to each question when nobody else asks."""

    model: Model
    alone: dict[Question, tuple[str, str]]

    def wrong(self, question: Question, done: Completion) -> bool:
        return (done.text, done.finish_reason) != self.alone[question]


def becomes_idle(model: Model) -> bool:
    """Whether nothing runs and nothing waits, in the end: what is cancelled ends with the batch that is being computed."""
    assert isinstance(model.engine, LlamaCppEngine)
    deadline = time.monotonic() + 30
    while (stats := model.engine.stats()).running or stats.waiting:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(scope="module")
def asked(tiny_gguf: Path) -> Iterator[Asked]:
    """The tiny model in deterministic mode."""
    with edgeai.load(tiny_gguf, ctx=256, threads=1, deterministic=True) as model:
        alone = {}
        for question in questions():
            done = model.complete(question.prompt, **question.options())
            alone[question] = (done.text, done.finish_reason)
        assert len({text for text, _ in alone.values()}) > len(alone) // 2  # mixed-up answers would be seen
        yield Asked(model, alone)


def test_fifty_threads_with_twenty_requests_each_get_their_own_answers(asked: Asked) -> None:
    together = threading.Barrier(THREADS)

    def ask(number: int) -> list[Question]:
        draw = random.Random(number)
        together.wait()
        mine = draw.choices(list(asked.alone), k=REQUESTS)
        return [q for q in mine if asked.wrong(q, asked.model.complete(q.prompt, **q.options()))]

    with ThreadPoolExecutor(THREADS) as pool:
        assert [question for wrong in pool.map(ask, range(THREADS)) for question in wrong] == []


def test_two_hundred_tasks_get_their_own_answers(asked: Asked) -> None:
    model = AsyncModel(asked.model)

    async def ask(number: int) -> bool:
        question = list(asked.alone)[number % len(asked.alone)]
        return asked.wrong(question, await model.complete(question.prompt, **question.options()))

    async def main() -> list[bool]:
        return await asyncio.gather(*(ask(number) for number in range(200)))

    assert asyncio.run(main()) == [False] * 200


def test_threads_and_event_loops_share_a_model(asked: Asked) -> None:
    shared = AsyncModel(asked.model)

    def in_a_thread(number: int) -> list[Question]:
        mine = list(asked.alone)[number::8]
        return [q for q in mine if asked.wrong(q, asked.model.complete(q.prompt, **q.options()))]

    def in_a_loop(number: int) -> list[Question]:
        async def main() -> list[Question]:
            mine = list(asked.alone)[number::8]
            done = await asyncio.gather(*(shared.complete(q.prompt, **q.options()) for q in mine))
            return [q for q, answer in zip(mine, done, strict=True) if asked.wrong(q, answer)]

        return asyncio.run(main())

    ways: list[Callable[[int], list[Question]]] = [in_a_thread, in_a_loop]
    with ThreadPoolExecutor(16) as pool:
        found = [pool.submit(way, number) for number in range(8) for way in ways]
        assert [question for future in found for question in future.result()] == []


# ---- cancelling


def test_a_storm_of_cancels_leaves_the_engine_clean(asked: Asked) -> None:
    shared, draw = AsyncModel(asked.model), random.Random(3)
    long = "The " + " ".join(WORDS * 12)  # a prompt that takes a while

    async def cancelled_somewhere(number: int) -> None:
        work = asyncio.ensure_future(shared.complete(long if number % 2 else "The", max_tokens=60))
        await asyncio.sleep(draw.random() * 0.05)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    async def left_somewhere(number: int) -> None:
        async with shared.stream(long if number % 2 else "The", max_tokens=60) as stream:
            for _ in range(draw.randint(0, 4)):
                await anext(stream, None)
            if number % 3:
                stream.cancel()

    async def main() -> None:
        await asyncio.gather(
            *(cancelled_somewhere(number) for number in range(60)), *(left_somewhere(number) for number in range(60))
        )

    asyncio.run(main())
    assert becomes_idle(asked.model)
    for question in list(asked.alone)[:5]:
        assert not asked.wrong(question, asked.model.complete(question.prompt, **question.options()))


def test_threads_that_leave_their_streams_leave_the_engine_clean(asked: Asked) -> None:
    def leave(number: int) -> None:
        draw = random.Random(number)
        for _ in range(5):
            stream = asked.model.stream("The " + " ".join(WORDS * draw.randint(1, 12)), max_tokens=60)
            for _ in range(draw.randint(0, 3)):
                next(stream, None)
            if draw.random() < 0.5:
                stream.close()  # else it is forgotten

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, range(20)))
    assert becomes_idle(asked.model)
    for question in list(asked.alone)[:5]:
        assert not asked.wrong(question, asked.model.complete(question.prompt, **question.options()))


def test_a_full_queue_is_an_error_for_who_comes_too_late_and_for_nobody_else(tiny_gguf: Path) -> None:
    long = "The " + " ".join(WORDS * 12)

    async def main(model: AsyncModel) -> list[Completion | BaseException]:
        asked = (model.complete(long, max_tokens=60, temperature=0) for _ in range(60))
        return await asyncio.gather(*asked, return_exceptions=True)

    with edgeai.load(tiny_gguf, ctx=256, threads=1, streams=1, queue=2) as model:
        alone = model.complete(long, max_tokens=60, temperature=0).text
        found = asyncio.run(main(AsyncModel(model)))
        late = [error for error in found if isinstance(error, edgeai.errors.Busy)]
        answers = [done.text for done in found if isinstance(done, Completion)]
        assert late
        assert len(late) + len(answers) == 60
        assert set(answers) == {alone}


def test_closing_beside_many_callers_ends_every_one(tiny_gguf: Path) -> None:
    ended: list[str] = []
    running = threading.Barrier(17)

    with edgeai.load(tiny_gguf, ctx=256, threads=1) as model:

        def ask() -> None:
            running.wait()
            try:
                for _ in range(1000):
                    model.complete("The", max_tokens=20)
            except edgeai.errors.ClosedError:
                ended.append("told")

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        running.wait()
    for thread in threads:
        thread.join(30)
    assert ended == ["told"] * 16
