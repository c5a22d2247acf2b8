"""Events from bytes. The reference is the WHATWG HTML standard, section 9.2.6, and its examples."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.engines.cloud import sse
from edgeai.engines.cloud.sse import EventReader
from edgeai.errors import CloudFailure


def test_text_that_is_no_utf_8_is_refused_and_not_replaced() -> None:
    with pytest.raises(CloudFailure, match="no UTF-8"):
        EventReader().feed(b"data: a\xff\n\n")


def test_events_that_are_not_in_the_order_of_their_numbers_are_refused() -> None:
    ordered = [f"id: {number}\ndata: w{number}\n\n".encode() for number in range(6)]
    assert len(EventReader().feed(b"".join(ordered))) == 6
    for wrong in ([0, 1, 2, 3, 5, 4], [0, 1, 2, 3, 5], [0, 3, 2]):
        with pytest.raises(CloudFailure, match="wrong order"):
            EventReader().feed(b"".join(ordered[number] for number in wrong))


def test_numbers_with_gaps_from_the_beginning_are_no_order() -> None:
    assert len(EventReader().feed(b"".join(f"id: {number}\ndata: w\n\n".encode() for number in (1, 7, 9, 40)))) == 4


def read(*pieces: bytes) -> list[str]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_in_three_ways(end: bytes) -> None:
    assert read(b"data: one" + end + end + b"data: two" + end + end) == ["one", "two"]


def test_an_end_of_a_line_may_itself_be_cut_in_two() -> None:
    assert read(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == ["a\nb"]
    assert read(b"data: a\r", b"data: b\r", b"\r") == ["a\nb"]


def test_examples_of_the_standard() -> None:
    stock = b"data: YHOO\ndata: +2\ndata: 10\n\n"
    four = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    two = b"data\n\ndata\ndata\n\ndata:"
    same = b"data:test\n\ndata: test\n\n"
    assert read(stock) == ["YHOO\n+2\n10"]
    assert read(four) == ["first event", "second event", " third event"]
    assert read(two) == ["\n"]  # the first has no data at all, and is given to nobody here
    assert read(same) == ["test", "test"]


def test_a_mark_of_byte_order_is_dropped_even_in_pieces() -> None:
    assert read(b"\xef", b"\xbb", b"\xbfdata: a\n\n") == ["a"]


def test_other_fields_and_comments_mean_nothing() -> None:
    assert read(b": hello\nevent: x\nretry: 5\nunknown: y\ndata: a\n:\n\n") == ["a"]


def test_an_event_without_its_end_is_not_given_but_kept_as_the_rest() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: [DO") == ["a"]
    assert reader.rest == "[DO"
    assert reader.feed(b"NE]\n") == []
    assert reader.rest == "[DONE]"


def reference(data: bytes) -> list[str]:
    """The standard's algorithm on the whole stream, line by line."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)[:-1]
    found: list[str] = []
    held: list[str] = []
    for line in lines:
        if not line:
            if "\n".join(held):
                found.append("\n".join(held))
            held = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            held.append(value)
    return found


parts = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"\n",
        b"\r",
        b"\r\n",
        b":",
        b" ",
        b"x",
        "é€😀".encode(),
        b"\xff",
        b"event: e",
        b"\n\n",
    ]
)


@given(st.lists(parts, max_size=30), st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_any_bytes_in_any_pieces_give_what_the_algorithm_of_the_standard_gives(
    stream: list[bytes], sizes: list[int]
) -> None:
    data, pieces, at, turn = b"".join(stream), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    expected = reference(data)
    if any("\ufffd" in text for text in expected):  # the standard replaces what is no UTF-8, and an answer must not
        with pytest.raises(CloudFailure, match="no UTF-8"):
            read(*pieces)
    else:
        assert read(*pieces) == expected


def test_an_event_that_comes_twice_by_its_id_is_given_once() -> None:
    reader = EventReader()
    assert reader.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 2\ndata: b\n\nid: 1\ndata: a\n\n") == ["a", "b"]
    assert reader.doubled == 2


def test_ids_that_are_all_the_same_tell_nothing() -> None:
    assert read(b"id: c\ndata: a\n\nid: c\ndata: ha\n\nid: c\ndata: ha\n\n") == ["a", "ha", "ha"]


def test_same_data_without_an_id_is_two_events() -> None:
    assert read(b"data: ha\n\ndata: ha\n\n") == ["ha", "ha"]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 1000, b"data: x\n" * 300])
def test_a_line_or_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(sse, "MOST_BYTES", 500)
    with pytest.raises(CloudFailure, match="more than 500 bytes") as raised:
        read(piece)
    assert raised.value.kind == "malformed"


def test_events_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST_EVENTS", 10)
    with pytest.raises(CloudFailure, match="more than 10 events"):
        read(b"data: {}\n\n" * 11)


def test_a_long_line_byte_by_byte_is_not_copied_at_every_byte() -> None:
    reader = EventReader()
    for _ in range(300_000):  # quadratic work would be 45 GB
        reader.feed(b"x")
    assert len(reader.rest) == 300_000
