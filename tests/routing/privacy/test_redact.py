"""Redaction of one request: placeholders out, values back across any chunks, nothing left in the bytes."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.config import PrivacySettings
from edgeai.routing.privacy.conversation import parts_of
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.redact import NotRedactable, Redactor, is_redactable
from edgeai.routing.privacy.restore import Restorer
from edgeai.types import Message

DETECTOR = Detector(PrivacySettings(redact=True))
EMAIL, PHONE, CARD = "jane@example.com", "415-555-2671", "4111 1111 1111 1111"


def call(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": json.dumps(arguments)}}


MESSAGES: list[Message] = [
    {"role": "system", "content": f"The user is {EMAIL}."},
    {"role": "user", "content": f"Mail {EMAIL} and bob@example.org, or call {PHONE}. Card: {CARD}"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [call({"to": EMAIL, "phone": "5551234", "text": 'He said "hi"\n', "n": 3})],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"sent": [EMAIL], "from": "10.0.0.7"})},
]


def redacted() -> tuple[Redactor, list[Message]]:
    redactor = Redactor(DETECTOR)
    prompt = redactor.redact(MESSAGES)
    assert not isinstance(prompt, str)
    return redactor, list(prompt)


def test_every_message_call_and_result_is_redacted_and_the_same_value_has_one_placeholder() -> None:
    _, messages = redacted()
    assert messages[0]["content"] == "The user is <EMAIL_1>."
    assert messages[1]["content"] == "Mail <EMAIL_1> and <EMAIL_2>, or call <PHONE_1>. Card: <CARD_1>"
    arguments = json.loads(messages[2]["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"to": "<EMAIL_1>", "phone": "<PHONE_2>", "text": 'He said "hi"\n', "n": 3}
    assert json.loads(messages[3]["content"]) == {"sent": ["<EMAIL_1>"], "from": "<IP_1>"}


def test_redacted_conversation_has_nothing_private_any_more() -> None:
    redactor, messages = redacted()
    assert DETECTOR.examine(parts_of(messages)).placement == "any"
    assert redactor.leaks(json.dumps({"model": "m", "messages": messages}).encode()) == []


def test_prompt_that_was_given_is_not_changed() -> None:
    before = json.dumps(MESSAGES)
    redacted()
    assert json.dumps(MESSAGES) == before


def test_placeholder_of_the_user_is_not_taken_for_one_of_ours() -> None:
    redactor = Redactor(DETECTOR)
    text = redactor.redact(f"What does <EMAIL_1> or <email 2> mean? Ask {EMAIL}")
    assert text == "What does <EMAIL_1> or <email 2> mean? Ask <EMAIL_3>"
    assert redactor.restore("<EMAIL_1> <EMAIL_2> <EMAIL_3>") == f"<EMAIL_1> <EMAIL_2> {EMAIL}"


def test_repr_shows_no_value() -> None:
    redactor, _ = redacted()
    assert repr(redactor) == "<Redactor of card (1), email (2), ip (1), phone (2)>"
    assert EMAIL not in repr(redactor.restorer())


def test_two_requests_share_no_map() -> None:
    first, second = Redactor(DETECTOR), Redactor(DETECTOR)
    first.redact(EMAIL)
    second.redact("bob@example.org")
    assert second.restore("<EMAIL_1>") == "bob@example.org"
    assert first.restore("<EMAIL_1>") == EMAIL


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hello", "private": True}],
        [{"role": "user", "content": "the Nachtigall plan"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
        [{"role": "user", "content": "x" * 2000}],
    ],
)
def test_what_no_placeholder_may_stand_for_is_not_redacted(messages: list[Message]) -> None:
    detector = Detector(PrivacySettings(words=("Nachtigall",), max_chars=1000))
    assert not is_redactable(detector.examine(parts_of(messages)))
    with pytest.raises(NotRedactable):
        Redactor(detector).redact(messages)


# ---- back again


SAID = "Ask <EMAIL_1>, \\<EMAIL\\_2\\>, <email_1>, <Email 2>, &lt;PHONE_1&gt;, <PHONE_9>, 1 < 2, <div>, <e, a&lt;b, <CARD_1>"
MEANT = f"Ask {EMAIL}, bob@example.org, {EMAIL}, bob@example.org, {PHONE}, <PHONE_9>, 1 < 2, <div>, <e, a&lt;b, {CARD}"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(SAID)), max_size=30))
def test_values_come_back_across_any_borders_of_chunks(cuts: list[int]) -> None:
    redactor, _ = redacted()
    restorer = redactor.restorer()
    edges = [0, *sorted(cuts), len(SAID)]
    pieces = [restorer.feed(SAID[left:right]) for left, right in itertools.pairwise(edges)]
    assert "".join(pieces) + restorer.flush() == MEANT


def test_every_single_character_alone_gives_the_same() -> None:
    redactor, _ = redacted()
    restorer = redactor.restorer()
    assert "".join(map(restorer.feed, SAID)) + restorer.flush() == MEANT


def test_text_that_cannot_become_a_placeholder_is_not_held_back() -> None:
    restorer = Restorer({"<EMAIL_1>": EMAIL})
    assert restorer.feed("a < b") == "a < b"
    assert restorer.feed(" <div") == " <div"
    assert restorer.feed(" <EMA") == " "
    assert restorer.feed("IL_1") == ""
    assert restorer.feed("> x") == f"{EMAIL} x"
    assert restorer.flush() == ""


def test_nothing_is_held_where_nothing_was_replaced() -> None:
    assert Restorer({}).feed("<EMAIL_1") == "<EMAIL_1"


def test_arguments_of_calls_come_back_as_valid_json() -> None:
    redactor = Redactor(DETECTOR)
    value = '"odd \\ name"@example.com'
    redactor.redact(f"write to {value} now and {EMAIL}")
    restored = redactor.restore_json('{"to": ["<EMAIL_1>", "<EMAIL_2>"], "n": 1}')
    assert json.loads(restored) == {"to": [value, EMAIL], "n": 1}
    assert (
        redactor.restore_json('{"to": "<EMAIL_1>') == '{"to": "' + json.dumps(value)[1:-1]
    )  # cut JSON stays what it is


# ---- leaks


@pytest.mark.parametrize(
    "leak",
    [
        CARD, "4111111111111111", "4111-1111-1111-1111", "JANE@EXAMPLE.COM", "jane\\u0040example.com", "(415) 555 2671",
        "bob2@example.net", "DE89 3704 0044 0532 0130 00",
    ],
)  # fmt: skip
def test_leak_is_found_in_any_layout(leak: str) -> None:
    redactor, messages = redacted()
    outgoing = json.dumps({"messages": messages, "extra": "LEAK"}).replace("LEAK", leak)
    found = redactor.leaks(outgoing.encode())
    assert found
    assert all(leak not in finding.masked for finding in found)


def test_leak_inside_of_json_inside_of_json_is_found() -> None:
    redactor, _ = redacted()
    inner = json.dumps({"arguments": json.dumps({"to": EMAIL}).replace("@", "\\u0040")})
    assert redactor.leaks(json.dumps({"messages": [{"content": inner}]}).encode())


def test_bytes_that_are_no_json_are_examined_too() -> None:
    redactor, _ = redacted()
    assert redactor.leaks(b"\xff to=" + EMAIL.encode())
    assert redactor.leaks(b"\xff nothing") == []


def test_random_conversations_leave_nothing_behind() -> None:
    generator = random.Random(8)
    values = [EMAIL, PHONE, CARD, "DE89370400440532013000", "10.0.0.7", "536-22-5432", "hunter2x!"]
    for _ in range(40):
        text = " ".join(
            generator.choice([*values, "and", "the password is hunter2x!", "\n", "(", "for,"]) for _ in range(12)
        )
        redactor = Redactor(DETECTOR)
        safe = redactor.redact(f"card {text} .")
        assert isinstance(safe, str)
        assert redactor.leaks(json.dumps(safe).encode()) == [], text
        assert redactor.restore(safe) == f"card {text} ."
