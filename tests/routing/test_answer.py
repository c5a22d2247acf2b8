"""The answer of a routed request: claimed once, given once, ended once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from edgeai.routing.answer import Answer
from edgeai.types import Chunk, Served


def test_the_first_who_claims_it_has_it_for_good() -> None:
    answer = Answer(None)
    assert [answer.claim(name) for name in ("a", "b", "a")] == [True, False, True]
    assert answer.winner == "a"


def test_of_many_threads_one_has_it() -> None:
    answer = Answer(None)
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda number: answer.claim(str(number)), range(200))) == 1


def test_what_runs_when_it_is_cancelled_is_stopped_and_so_is_what_begins_later() -> None:
    answer, stopped = Answer(None), []
    with answer.stopped_by("cloud/a", lambda: stopped.append("running")):
        answer.cancel()
    with answer.stopped_by("local/b", lambda: stopped.append("later")):
        pass
    assert stopped == ["running", "later"]


def test_stopping_by_name_leaves_the_others_alone() -> None:
    answer, stopped = Answer(None), []
    with (
        answer.stopped_by("cloud/a", lambda: stopped.append("cloud")),
        answer.stopped_by("local/b", lambda: stopped.append("local")),
    ):
        answer.stop("cloud/")
    assert stopped == ["cloud"]


def test_a_chunk_that_says_nothing_is_not_given() -> None:
    answer = Answer(None)
    answer.give(Chunk())
    answer.give(Chunk(text="x"))
    assert answer.channel.poll() == Chunk(text="x")
    assert answer.channel.poll() is None


def test_an_end_that_nobody_counted_has_the_pieces_that_came() -> None:
    answer = Answer(None)
    for text in ("a", "b", "c"):
        answer.give(Chunk(text=text))
    answer.finish("interrupted", Served(model="m", backend="cloud", device=""), prompt_tokens=5)
    assert answer.end is not None
    assert answer.end.usage is not None
    assert (answer.end.usage.prompt_tokens, answer.end.usage.completion_tokens) == (5, 3)
