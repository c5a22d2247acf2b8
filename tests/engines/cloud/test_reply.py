"""An answer from its events: text never twice, calls of tools whole and once, and an end that was really there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeai.engines.cloud.reply import Reply
from edgeai.errors import CloudFailure
from edgeai.types import ToolCall, Usage


def piece(delta: Any = None, finish: Any = None, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish, **more}]})


def call(index: int | None = 0, id_: str | None = None, name: str | None = None, arguments: Any = None) -> str:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    found: dict[str, Any] = {"function": function}
    found |= {} if index is None else {"index": index}
    found |= {} if id_ is None else {"id": id_}
    return piece({"tool_calls": [found]})


def read(*events: str, max_tokens: int | None = None) -> tuple[str, tuple[ToolCall, ...], Reply]:
    reply = Reply("h", max_tokens=max_tokens)
    chunks = [reply.take(event) for event in events]
    return "".join(chunk.text for chunk in chunks if chunk is not None), reply.close(), reply


def calls_of(*events: str) -> list[tuple[str, str, str]]:
    return [(made.id, made.name, made.arguments) for made in read(*events, piece(finish="tool_calls"))[1]]


STOP = piece(finish="stop")
COUNTS = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
NO_COUNTS = json.dumps({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})


def test_text_and_counts_are_read() -> None:
    text, calls, reply = read(
        piece({"role": "assistant", "content": ""}), piece({"content": "hi"}), STOP, COUNTS, "[DONE]"
    )
    assert (text, calls, reply.finish) == ("hi", (), "stop")
    assert reply.usage == Usage(prompt_tokens=3, completion_tokens=1)


def test_a_call_is_put_together_from_its_pieces() -> None:
    events = (call(id_="c1", name="f", arguments=""), call(arguments='{"a"'), call(arguments=": 1}"))
    assert calls_of(*events) == [("c1", "f", '{"a": 1}')]


def test_a_repeated_role_id_or_name_changes_nothing() -> None:
    events = (piece({"role": "assistant"}), call(id_="c", name="f", arguments='{"a"'), piece({"role": "assistant"}))
    assert calls_of(*events, call(id_="c", name="f", arguments=": 1}")) == [("c", "f", '{"a": 1}')]


def test_arguments_that_come_whole_a_second_time_are_taken_once() -> None:
    assert calls_of(call(id_="c", name="f", arguments='{"a":1}'), call(arguments='{"a":1}')) == [("c", "f", '{"a":1}')]


def test_gaps_and_order_of_indices_mean_nothing() -> None:
    events = (call(7, "b", "g", "{}"), call(2, "a", "f", '{"x":'), call(7), call(2, arguments="2}"))
    assert calls_of(*events) == [("a", "f", '{"x":2}'), ("b", "g", "{}")]


def test_whole_calls_that_all_have_the_index_0_are_told_apart_by_their_ids() -> None:
    assert calls_of(call(0, "a", "f", "{}"), call(0, "b", "g", "{}")) == [("a", "f", "{}"), ("b", "g", "{}")]


def test_a_call_without_an_index_is_known_by_its_id() -> None:
    events = (call(None, "a", "f", '{"x"'), call(None, None, None, ":1}"), call(None, "b", "g", "{}"))
    assert calls_of(*events) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_a_call_that_is_given_twice_with_one_id_is_one() -> None:
    assert calls_of(call(0, "a", "f", "{}"), call(1, "a", "f", "{}")) == [("a", "f", "{}")]


@pytest.mark.parametrize(
    "events",
    [
        (call(id_="c", name="f"), call(name="g")),
        (call(id_="c", arguments="{}"),),
        (call(id_="c", name="f", arguments=["x"]),),
        (piece({"tool_calls": "f"}),),
        (piece({"tool_calls": [7]}),),
        (call(0, "a", "f", "{}"), call(1, "a", "f", '{"x":1}')),
    ],
    ids=["two names", "no name", "arguments are a list", "no list", "no object", "one id for two"],
)
def test_calls_that_contradict_themselves_are_malformed(events: tuple[str, ...]) -> None:
    with pytest.raises(CloudFailure) as raised:
        calls_of(*events)
    assert raised.value.kind == "malformed"


def test_of_an_answer_that_was_cut_only_whole_calls_are_given() -> None:
    events = (call(0, "a", "f", "{}"), call(1, "b", "g", '{"x": '), piece(finish="length"))
    _, calls, reply = read(*events)
    assert [made.id for made in calls] == ["a"]
    assert [notice.code for notice in reply.notices] == ["cloud-call-cut"]


def test_calls_with_the_reason_stop_are_calls() -> None:
    assert read(call(0, "a", "f", "{}"), STOP)[2].finish == "tool_calls"


@pytest.mark.parametrize("finish", ["eos", "end_turn", "EOS_TOKEN"])
def test_other_words_for_the_end_are_known(finish: str) -> None:
    assert read(piece({"content": "a"}), piece(finish=finish))[2].finish == "stop"


def test_an_unknown_reason_is_a_stop_with_a_notice() -> None:
    reply = read(piece({"content": "a"}), piece(finish="boredom"))[2]
    assert reply.finish == "stop"
    assert "boredom" in reply.notices[0].message


@pytest.mark.parametrize(
    "events",
    [
        (),
        (STOP,),
        (STOP, NO_COUNTS, "[DONE]"),
        ("[DONE]",),
        (json.dumps({"choices": []}), "[DONE]"),
        (piece({"content": ""}), STOP, NO_COUNTS),
        (piece(finish="tool_calls"), NO_COUNTS),
    ],
)
def test_an_empty_answer_is_none(events: tuple[str, ...]) -> None:
    with pytest.raises(CloudFailure) as raised:
        read(*events)
    assert raised.value.kind == "malformed"


@pytest.mark.parametrize(
    "events",
    [
        (piece(finish="length"),),
        (piece(finish="content_filter"),),
        (STOP, COUNTS, "[DONE]"),
        (piece(finish="length"), NO_COUNTS),
    ],
)
def test_an_empty_answer_that_says_why_is_one(events: tuple[str, ...]) -> None:
    assert read(*events)[0] == ""


def test_an_empty_answer_of_hardly_any_tokens_is_one() -> None:
    assert read(STOP, max_tokens=1)[0] == ""


def test_text_without_an_end_is_no_answer() -> None:
    with pytest.raises(CloudFailure, match="before its end mark"):
        read(piece({"content": "a"}))


def test_text_after_the_end_is_malformed() -> None:
    with pytest.raises(CloudFailure, match="text after the end"):
        read(piece({"content": "a"}), STOP, piece({"content": "b"}))


@pytest.mark.parametrize(
    "event",
    [
        "{", "[]", "7", "null", '{"choices": 7}', '{"choices": [7]}', '{"choices": {"a": 1}}', "[" * 100_000, "9" * 10_000,
        '{"choices": [{"delta": 7}]}', '{"choices": [{"delta": {"content": 7}}]}', '{"choices": [{"delta": {"content": ["x"]}}]}',
    ],
)  # fmt: skip
def test_an_event_that_is_none_is_a_class_of_failure_and_no_crash(event: str) -> None:
    with pytest.raises(CloudFailure) as raised:
        read(event)
    assert raised.value.kind == "malformed"


def test_an_error_in_an_event_is_what_it_says() -> None:
    with pytest.raises(CloudFailure, match="slow down") as raised:
        read(json.dumps({"error": {"code": 429, "message": "slow down"}, "choices": []}))
    assert raised.value.kind == "rate_limited"


def test_other_answers_than_the_first_are_not_mixed_in() -> None:
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "b"}}]})
    assert read(piece({"content": "a"}), other, STOP)[0] == "a"


def test_halves_of_a_character_are_joined_and_a_half_alone_is_no_text() -> None:
    halves = [r'{"choices": [{"delta": {"content": "a\ud83d"}}]}', r'{"choices": [{"delta": {"content": "\ude00b"}}]}']
    assert read(*halves, STOP)[0] == "a😀b"
    with pytest.raises(CloudFailure, match="half of a character"):
        read(halves[0], piece({"content": "b"}), STOP)
    with pytest.raises(CloudFailure, match="half of a character"):
        read(halves[0], STOP)


def of(id_: str, text: str) -> str:
    return json.dumps({"id": id_, "choices": [{"index": 0, "delta": {"content": text}}]})


def test_a_piece_of_another_answer_is_no_part_of_this_one() -> None:
    with pytest.raises(CloudFailure, match="another answer") as error:
        read(of("a", "one "), of("a", "two "), of("b", "three "), STOP)
    assert error.value.kind == "malformed"


def test_endpoints_that_number_their_pieces_are_understood() -> None:
    assert read(of("a", "one "), of("b", "two "), of("c", "three"), STOP)[0] == "one two three"
    assert read(of("", "one "), of("a", "two "), of("", "three "), of("a", "four"), STOP)[0] == "one two three four"


def test_a_call_whose_arguments_are_cut_is_no_call() -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"city": "Os'}}
    with pytest.raises(CloudFailure, match="no JSON object"):
        read(piece({"tool_calls": [call]}), piece(finish="tool_calls"))


def test_pieces_that_came_twice_are_told_by_the_counts_of_the_endpoint() -> None:
    pieces = [piece({"content": word}) for word in ("a", "b", "c")]
    doubled = [one for one in pieces for _ in range(2)]
    counts = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}})
    assert [notice.code for notice in read(*doubled, STOP, counts)[2].notices] == ["cloud-doubled"]
    assert read(*pieces, STOP, counts)[2].notices == []


@pytest.mark.parametrize("counted", [3, 4])
def test_a_word_that_is_said_twice_is_no_double(counted: int) -> None:
    words = [piece({"content": word}) for word in ("ha", "ha", "!")]
    counts = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": counted}})
    text, _, reply = read(*words, STOP, counts)
    assert text == "haha!"
    assert reply.notices == []


def test_thinking_is_neither_text_nor_silence() -> None:
    reply = Reply("h")
    assert reply.take(piece({"reasoning_content": "hm"})) is None
    assert reply.moved


def test_an_empty_delta_is_silence() -> None:
    reply = Reply("h")
    reply.take(piece({"role": "assistant", "content": ""}))
    reply.take(json.dumps({"choices": []}))
    assert not reply.moved


@pytest.mark.parametrize("count", [-1, 1.5, True, "7", None, 10**400])
def test_counts_that_are_none_are_not_believed(count: Any) -> None:
    event = json.dumps({"choices": [], "usage": {"prompt_tokens": count, "completion_tokens": 1}})
    assert read(piece({"content": "a"}), STOP, event)[2].usage is None


def test_log_probabilities_come_with_their_text() -> None:
    token = {
        "token": "a",
        "logprob": -0.5,
        "top_logprobs": [{"token": "b", "logprob": -2}, {"token": "c", "logprob": "x"}],
    }
    chunk = Reply("h").take(piece({"content": "a"}, logprobs={"content": [token, {"token": 7}]}))
    assert chunk is not None
    (found,) = chunk.logprobs
    assert (found.text, found.logprob, found.top) == ("a", -0.5, ((-1, "b", -2.0),))


def test_an_answer_in_one_piece_is_taken() -> None:
    reply = Reply("h")
    message = {
        "role": "assistant",
        "content": "hi",
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
    }
    chunk = reply.whole(json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode())
    assert chunk is not None
    assert chunk.text == "hi"
    assert [made.name for made in reply.close()] == ["f"]
