"""Answers that are cut anywhere, or have any byte changed: a whole answer or a failure, and never a crash."""

from __future__ import annotations

import random

import pytest

from edgeai.engines.cloud import Endpoint
from edgeai.errors import CloudFailure
from tests.engines.cloud.endpoints import ask, endpoint, text_of
from tests.engines.cloud.server import GOOD, HEAD, Step, chunked, delta, serve

WHOLE = GOOD.index(b'"stop"') + len(b'"stop"}]}\n\n')
"""From here on the answer has said why it ended."""


def outcome(made: Endpoint) -> tuple[str, CloudFailure | None]:
    """The text of an answer, or how it failed."""
    try:
        return text_of(ask(made)), None
    except CloudFailure as failure:
        return "", failure


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_an_answer_cut_at_any_byte_is_never_taken_for_a_whole_one(end: str) -> None:
    cuts = range(3, len(GOOD), 4)
    scripts: list[list[Step]] = [[GOOD[:cut], end] for cut in cuts]
    with serve(*scripts) as server, endpoint(server.url) as made:
        for cut in cuts:
            text, failure = outcome(made)
            if failure is None:
                assert text == "Hello there"
                assert cut >= WHOLE
            else:
                assert failure.kind in ("malformed", "connection")
                assert cut < WHOLE or end == "rst"  # a reset takes with it what was not read yet


def test_any_changed_bytes_are_an_answer_or_a_failure() -> None:
    draw = random.Random(7)
    scripts: list[list[Step]] = []
    for _ in range(400):
        data = bytearray(GOOD)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(9, len(data))
            data[at] = draw.choice((draw.randrange(256), 10, 13, 34, 123, 92, 0, 255))
        scripts.append([bytes(data), "fin"])
    answered = 0
    with serve(*scripts) as server, endpoint(server.url) as made:
        for _ in scripts:
            answered += outcome(made)[1] is None
        assert 0 < answered < len(scripts)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_an_answer_in_pieces_of_any_size_is_the_same(size: int) -> None:
    body = b"".join(piece.partition(b"\r\n")[2][:-2] for piece in (delta("é€"), delta("😀"), delta(finish="stop")))
    body += b"data: [DONE]\n\n"
    pieces = b"".join(chunked(body[at : at + size]) for at in range(0, len(body), size))
    with serve(HEAD + pieces + b"0\r\n\r\n") as server, endpoint(server.url) as made:
        assert text_of(ask(made)) == "é€😀"
