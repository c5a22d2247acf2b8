"""Streams with cells of their own: what they share is copied, a conversation goes on in place, and batches suit libllama."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeai.engines.llamacpp.composer import Composer, Part
from edgeai.engines.llamacpp.composing import in_turns
from edgeai.engines.llamacpp.handle import Batch, Handle
from edgeai.engines.opening import open_engine, planned
from edgeai.errors import UsageError
from edgeai.evaluation.streams import end_tokens
from edgeai.model import Model, Stream
from edgeai.plan import LoadOptions

WORDS = "the function returns a list of strings and raises an error when it is not found in the module"
EXACT: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 3}


@pytest.fixture(scope="module")
def apart(tiny_gguf: Path) -> Iterator[Model]:
    with Model(open_engine(tiny_gguf, ctx=512, streams=4, threads=1)) as model:
        assert not model.plan.unified
        yield model


def read_all(streams: list[Stream]) -> list[str]:
    """Read STREAMS side by side."""
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [stream.completion().text for stream in streams]


def test_what_several_share_is_computed_once_and_their_answers_are_those_of_one(apart: Model) -> None:
    prompts = [f"{WORDS} {WORDS}: {word}" for word in ("None", "a list", "when", "for all")]
    alone = [apart.complete(prompt, max_tokens=60, temperature=0, prefix_cache=False).text for prompt in prompts]
    streams = [apart.stream(prompt, max_tokens=60, temperature=0) for prompt in prompts]
    assert read_all(streams) == alone
    shared = len(apart.tokenize(f"{WORDS} {WORDS}:"))
    cached = sorted(stream.completion().usage.cached_tokens for stream in streams)
    assert all(count >= shared - 2 for count in cached[1:])


def test_a_conversation_goes_on_in_its_own_cells(apart: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = apart.complete(WORDS, max_tokens=24, temperature=0)
    longer = f"{WORDS}{first.text} and"
    fresh = apart.complete(longer, **EXACT, prefix_cache=False)
    copied: list[int] = []
    monkeypatch.setattr(Handle, "share", lambda _self, source, *_rest: copied.append(source))
    again = apart.complete(longer, **EXACT)
    assert again.usage.cached_tokens >= len(apart.tokenize(WORDS)) - 1
    assert (copied, again.logprobs) == ([], fresh.logprobs)


def test_what_stays_in_cells_of_its_own_takes_nothing_of_the_budget_and_what_is_parked_does(tiny_gguf: Path) -> None:
    topics = [f"{word} {WORDS}" for word in ("red", "green", "blue", "white", "black")]
    kept: list[int] = []
    with Model(open_engine(tiny_gguf, ctx=256, streams=2, threads=1, prefix_bytes=60_000)) as model:
        for topic in topics:
            model.complete(topic, max_tokens=1)
            kept.append(model.engine.stats().kept_bytes)
        cached = [model.complete(topic, max_tokens=1).usage.cached_tokens for topic in reversed(topics)]
    assert kept[:2] == [0, 0]  # as many as there are streams
    assert 0 < kept[2] < max(kept[3:]) <= 60_000
    assert all(cached[:3])
    assert cached[4] == 0


def test_another_question_leaves_a_conversation_what_it_has(tiny_gguf: Path) -> None:
    begin = f"{WORDS}, that is: {WORDS}"
    with Model(open_engine(tiny_gguf, ctx=512, streams=2, threads=1, numerics="fast")) as model:
        first = model.complete(begin, max_tokens=30, temperature=0)
        model.complete(f"{begin} or else", max_tokens=2)
        again = model.complete(f"{begin}{first.text} then", max_tokens=1)
        assert again.usage.cached_tokens > len(model.tokenize(begin)) + 16


def test_a_sequence_between_two_that_run_is_computed_with_them_and_keeps_its_own(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridged: set[tuple[int, int]] = set()
    forget = Composer._clear_idle

    def noted(self: Composer) -> None:
        bridged.update(self._idle)
        forget(self)

    monkeypatch.setattr(Composer, "_clear_idle", noted)
    endless: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(end_tokens(tiny_gguf), -100.0)}
    room = {"ctx": 512, "streams": 3, "prefix_bytes": 1 << 24, "numerics": "fast"}
    with Model(open_engine(tiny_gguf, **room, threads=1)) as model:
        fresh = model.complete(f"{WORDS} between", **EXACT, prefix_cache=False)
        left = model.stream("one", max_tokens=300, **endless)
        next(left)
        middle = model.stream(WORDS, max_tokens=40, **endless)
        next(middle)
        right = model.stream("three", max_tokens=300, **endless)
        next(right)
        middle.collect()
        for _ in range(120):
            next(left)
            next(right)
        left.close()
        right.close()
        again = model.complete(f"{WORDS} between", **EXACT)
    assert [sequence for sequence, _ in bridged] == [1]  # always behind as many tokens of its own
    assert again.usage.cached_tokens >= 8
    assert again.text == fresh.text


def test_beside_an_answer_one_prompt_at_a_time_is_read(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside: list[list[tuple[int, int]]] = []
    compose = Composer.compose

    def noted(self: Composer, *arguments: Any) -> list[Part]:
        parts = compose(self, *arguments)
        if any(not part.request.reads for part in parts):
            beside.append([(part.count, part.request.pending) for part in parts if part.request.reads])
        return parts

    monkeypatch.setattr(Composer, "compose", noted)
    endless: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(end_tokens(tiny_gguf), -100.0)}
    with Model(open_engine(tiny_gguf, ctx=2048, streams=3, threads=1, prefix_bytes=0)) as model:
        first = model.stream("one", max_tokens=1500, **endless)
        next(first)
        read_all([model.stream(f"{word} {WORDS} " * 40, max_tokens=1) for word in ("alpha", "beta")])
        first.close()
    cut = [counts for counts in beside if any(count < pending for count, pending in counts)]
    assert cut
    assert all(sum(count < pending for count, pending in counts) == 1 for counts in cut), cut
    assert all(sum(count for count, _ in counts) >= 64 for counts in cut), cut


@pytest.mark.parametrize(
    ("pending", "allowance", "shortest", "shares"),
    [
        ([800, 300, 90], 64, False, [64, 0, 0]),
        ([800, 300, 90], 64, True, [0, 0, 64]),
        ([10, 300, 90], 64, False, [10, 0, 54]),
        ([800, 300, 20], 64, True, [0, 44, 20]),
        ([5, 6], 64, True, [5, 6]),
        ([], 64, True, []),
    ],
)
def test_prompts_are_read_one_after_another_in_turns(
    pending: list[int], allowance: int, shortest: bool, shares: list[int]
) -> None:
    assert in_turns(pending, allowance, shortest=shortest) == shares


def test_a_copy_is_of_what_the_sequence_has_now(tiny_gguf: Path) -> None:
    handle = Handle(*planned(tiny_gguf, LoadOptions(ctx=256, streams=4, threads=1)))
    batch = Batch(handle.lib, handle.n_batch)

    def read(tokens: list[int], first: int, sequence: int) -> bytes:
        batch.clear()
        index = batch.add(tokens, first, sequence, 1)
        handle.decode(batch)
        return bytes(handle.logits(index))

    try:
        read([5, 6, 7, 8], 0, 0)
        read([11, 12, 13, 14], 0, 1)
        other = handle.state(1)
        assert handle.share(0, 2, 4)
        handle.forget(0)
        assert handle.restore(0, other)
        assert handle.share(0, 3, 4)
        was, expected = read([9], 4, 2), read([9], 4, 1)
        assert read([9], 4, 3) == expected != was
    finally:
        handle.free()


def test_streams_that_would_rather_share_their_cells_do(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=4, threads=1, kv_unified=True)) as model:
        assert model.plan.unified
        assert model.complete(WORDS, max_tokens=2).usage.completion_tokens == 2
    with pytest.raises(UsageError, match="kv_unified"):
        LoadOptions(kv_unified=True, deterministic=True)
