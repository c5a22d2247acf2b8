"""A stream of bytes is cut where it was joined, and garbage in it is found at once."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.engines.worker.frames import HEAD, MARK, BrokenStream, Frame, FrameReader, pack
from edgeai.engines.worker.outbox import Outbox

FRAMES = [
    Frame("ping", 0, None),
    Frame("chunks", 0, [(3, "héllo")]),
    Frame("answer", 7, b"\0" * 300),
    Frame("x", 1, {}),
]
STREAM = b"".join(pack(frame.kind, frame.id, frame.value) for frame in FRAMES)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_frames_arrive_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reader = FrameReader()
    found = [frame for start, end in itertools.pairwise(places) for frame in reader.feed(STREAM[start:end])]
    assert found == FRAMES


@given(st.binary(min_size=HEAD.size, max_size=200))
def test_garbage_is_broken(data: bytes) -> None:
    if data.startswith(MARK):
        return
    with pytest.raises(BrokenStream):
        list(FrameReader().feed(data))


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_frames_or_is_broken_and_nothing_else(place: int, change: int) -> None:
    data = bytearray(STREAM)
    data[place] ^= change
    with contextlib.suppress(BrokenStream):
        assert all(isinstance(frame, Frame) for frame in FrameReader().feed(bytes(data)))


@pytest.mark.parametrize("text", [b"", b"{}", b"[1,2,3]", b'["x",1]', b'["x","1",null]', b"\xff", b"[" * 100_000])
def test_a_whole_frame_with_no_message_in_it_is_broken(text: bytes) -> None:
    with pytest.raises(BrokenStream):
        list(FrameReader().feed(HEAD.pack(MARK, len(text), 0) + text))


def test_a_frame_of_gigabytes_is_broken_before_it_is_waited_for() -> None:
    with pytest.raises(BrokenStream):
        list(FrameReader().feed(HEAD.pack(MARK, 2**32 - 1, 0)))


def test_an_outbox_never_waits_and_sends_all_in_order() -> None:
    read, write = os.pipe()
    calls = 0

    def join(items: Sequence[bytes]) -> bytes:
        nonlocal calls
        calls += 1
        return b"".join(items)

    outbox: Outbox[bytes] = Outbox(write, join, name="test")
    sent = [b"%07d" % number for number in range(50_000)]  # more than a pipe holds, and nobody reads yet
    for item in sent:
        outbox.put(item)
    found = b""
    while len(found) < 7 * len(sent):
        found += os.read(read, 1 << 16)
    outbox.close()
    assert found == b"".join(sent)
    assert calls < len(sent) / 2  # what was there together went together
    assert os.read(read, 1) == b""
    os.close(read)


def test_an_outbox_to_nobody_ends_quietly() -> None:
    read, write = os.pipe()
    outbox: Outbox[bytes] = Outbox(write, b"".join, name="test")
    os.close(read)
    outbox.put(b"x")
    outbox.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(write)
