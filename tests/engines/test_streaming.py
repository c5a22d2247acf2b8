"""Streams show whole characters and nothing of a stop string, however the pieces are cut."""

from __future__ import annotations

import gc
import queue
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream, StopFilter, Utf8Decoder
from edgeai.errors import ClosedError
from edgeai.types import Chunk, GenerationConfig


def test_a_character_comes_when_its_last_byte_does() -> None:
    decoder = Utf8Decoder()
    assert [decoder.feed(bytes([byte])) for byte in "né€🙂".encode()] == ["n", "", "é", "", "", "€", "", "", "", "🙂"]


@given(st.text(), st.lists(st.integers(1, 5), min_size=1))
def test_any_cut_of_the_bytes_gives_the_text(text: str, sizes: list[int]) -> None:
    data, decoder, shown = text.encode(), Utf8Decoder(), ""
    while data:
        size = sizes[len(data) % len(sizes)]
        shown += decoder.feed(data[:size])
        data = data[size:]
    assert shown == text


@given(st.lists(st.text("ab<", max_size=3)), st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    stopper = StopFilter(stops)
    shown = "".join(stopper.feed(piece) for piece in pieces)
    shown += stopper.flush()
    text = "".join(pieces)
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
    else:
        assert stopper.stopped
        assert all(stop not in shown for stop in stops)
        assert text.startswith(shown)


def test_nothing_that_may_begin_a_stop_string_is_shown_early() -> None:
    stopper = StopFilter(["</end>"])
    assert [stopper.feed(piece) for piece in ["hi <", "/en", "t>", "</end", ">x"]] == ["hi ", "", "</ent>", "", ""]
    assert stopper.stopped


def test_a_forgotten_stream_cancels_its_work() -> None:
    engine = FakeEngine()
    stream = engine.generate("hello", GenerationConfig())
    del stream
    gc.collect()
    assert engine.cancelled == 1


def test_an_error_ends_the_stream() -> None:
    chunks = Channel()
    chunks.put(Chunk(text="a"))
    chunks.put(ValueError("broken"))
    stream = ChunkStream(chunks, lambda: None)
    seen = []
    try:
        for chunk in stream:
            seen.append(chunk.text)
    except ValueError:
        seen.append("error")
    assert seen == ["a", "error"]
    assert list(stream) == []


@pytest.mark.parametrize("last", [Chunk(finish_reason="stop"), ClosedError("gone")])
def test_the_end_reaches_every_thread_that_reads(last: Chunk | ClosedError) -> None:
    stream = ChunkStream(Channel(), lambda: None)
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        try:
            ends.put(f"{len(list(stream))} chunks")
        except ClosedError as error:
            ends.put(str(error))

    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    stream.channel.put(last)
    found = sorted(ends.get(timeout=10) for _ in readers)
    assert found == ["0 chunks", "0 chunks", "1 chunks" if isinstance(last, Chunk) else "gone"]


def polled(channel: Channel) -> list[str]:
    found = []
    while (item := channel.poll()) is not None:
        assert isinstance(item, Chunk)
        found.append(item.text)
    return found


def test_a_channel_with_a_pace_hands_over_at_once_what_comes_late() -> None:
    channel = Channel(pace=0.0001)
    for text in "ab":
        time.sleep(0.001)
        channel.put(Chunk(text=text))
        assert polled(channel) == [text]


def test_what_a_channel_with_a_pace_holds_back_comes_in_order_with_the_last() -> None:
    channel = Channel(pace=1000)
    for text in "abc":
        channel.put(Chunk(text=text))
    assert polled(channel) == ["a"]
    channel.put(Chunk(text="", finish_reason="stop"))
    assert polled(channel) == ["b", "c", ""]


def test_an_error_comes_behind_what_a_channel_held_back() -> None:
    channel, error = Channel(pace=1000), ValueError("broken")
    for text in "ab":
        channel.put(Chunk(text=text))
    channel.put(error)
    assert [channel.poll(), channel.poll(), channel.poll()] == [Chunk(text="a"), Chunk(text="b"), error]
