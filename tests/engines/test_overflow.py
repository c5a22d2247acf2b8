"""A prompt that is longer than the context: refused with both numbers, or cut where it may be cut and reported to the token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.engines.llamacpp import LlamaCppEngine
from edgeai.engines.overflow import Fitted, Tokens, fit_prompt, room_for_prompt
from edgeai.errors import ContextExceeded, UsageError
from edgeai.model import Model
from edgeai.types import GenerationConfig, Message, Overflow, Prompt

CONTEXT = 100


class ThreeByteTokens:
    """A tokenizer of three bytes a token, so that most cuts fall into the middle of a character; a message is framed by two more."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        self.pieces += [data[at : at + 3] for at in range(0, len(data), 3)]
        count = -(-len(data) // 3)
        return list(range(len(self.pieces) - count, len(self.pieces)))

    def encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenize(prompt)
        return [token for message in prompt for token in (-1, *self.tokenize(message["content"]), -2)]


def fit(
    prompt: Prompt, overflow: Overflow, *, context: int = CONTEXT, trained: int | None = 1000, **options: Any
) -> Fitted:
    own = ThreeByteTokens()
    tokens = Tokens(encode=own.encode, tokenize=own.tokenize, piece=lambda token: own.pieces[token])
    config = GenerationConfig(overflow=overflow, **options)
    return fit_prompt(prompt, config, context=context, trained=trained, tokens=tokens)


def count(prompt: Prompt) -> int:
    return len(ThreeByteTokens().encode(prompt))


def talk(*contents: str, system: str | None = None) -> list[Message]:
    turns: list[Message] = [
        {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def contents(fitted: Fitted) -> list[str]:
    assert not isinstance(fitted.prompt, str)
    return [message["content"] for message in fitted.prompt]


@pytest.mark.parametrize("overflow", ["error", "rolling", "truncate-middle"])
def test_what_fits_is_not_touched(overflow: Overflow) -> None:
    messages = talk("hello", "hi", "how are you?", system="Be brief.")
    fitted = fit(messages, overflow)
    assert (fitted.prompt, fitted.truncated_tokens, fitted.notices) == (messages, 0, ())


def test_error_names_both_numbers_and_the_flags_that_help() -> None:
    with pytest.raises(ContextExceeded, match=r"200 tokens.* 100") as caught:
        fit("x" * 600, "error")
    assert caught.value.hint == "use `ctx=1000`, or `overflow=truncate-middle`"
    with pytest.raises(ContextExceeded) as caught:
        fit(talk("x" * 300, "y" * 300, "z"), "error")
    assert "`overflow=rolling`" in (caught.value.hint or "")


def test_error_asks_for_no_context_that_the_model_was_not_trained_for() -> None:
    with pytest.raises(ContextExceeded) as caught:
        fit("x" * 600, "error", trained=150)
    assert "ctx" not in (caught.value.hint or "")


def test_an_empty_prompt_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        fit("", "rolling")


@pytest.mark.parametrize(("max_tokens", "room"), [(None, 75), (10, 90), (50, 50), (51, 50), (4000, 50), (1, 99)])
def test_the_answer_has_room_up_to_half_of_the_context(max_tokens: int | None, room: int) -> None:
    assert room_for_prompt(GenerationConfig(max_tokens=max_tokens), CONTEXT) == room


def test_rolling_leaves_out_whole_oldest_turns_and_keeps_the_system_message() -> None:
    messages = talk("a" * 60, "b" * 60, "c" * 60, "d" * 60, "e" * 60, system="S" * 30)
    fitted = fit(messages, "rolling", max_tokens=20)
    assert contents(fitted) == ["S" * 30, "c" * 60, "d" * 60, "e" * 60]
    assert fitted.truncated_tokens == count(messages) - count(fitted.prompt) == 44
    assert fitted.notices[0].code == "context-truncated"
    assert "2 oldest messages" in fitted.notices[0].message
    assert "44 tokens" in fitted.notices[0].message


def test_rolling_keeps_the_newest_turn_in_the_room_of_the_answer_if_need_be() -> None:
    fitted = fit(talk("a" * 90, "b", "c" * 270), "rolling", max_tokens=50)
    assert contents(fitted) == ["c" * 270]


def test_rolling_refuses_a_newest_message_that_is_too_long_alone() -> None:
    with pytest.raises(ContextExceeded, match=r"102 tokens.* 100"):
        fit(talk("a", "b", "c" * 300), "rolling")


def test_rolling_keeps_the_end_of_a_text() -> None:
    text = "".join(f"{number:03}" for number in range(200))
    fitted = fit(text, "rolling", max_tokens=20)
    assert fitted.prompt == text[-240:]
    assert fitted.truncated_tokens == 120


def test_the_middle_is_cut_out_of_the_longest_message_only() -> None:
    long = "".join(f"{number:03}" for number in range(200))
    fitted = fit(talk("first", "answer", long, system="S" * 60), "truncate-middle", max_tokens=20)
    shown = contents(fitted)
    assert shown[:3] == ["S" * 60, "first", "answer"]
    assert shown[3] == long[: len(shown[3]) // 2] + long[-len(shown[3]) // 2 :]
    assert len(fitted.ids) == 80
    assert fitted.truncated_tokens == count(talk("first", "answer", long, system="S" * 60)) - 80


def test_no_system_message_is_cut_in_the_middle() -> None:
    with pytest.raises(ContextExceeded, match="cutting messages does not help"):
        fit(talk("hello", system="S" * 400), "truncate-middle")


@pytest.mark.parametrize("overflow", ["rolling", "truncate-middle"])
def test_no_other_way_of_cutting_is_proposed_that_would_not_help(overflow: Overflow) -> None:
    with pytest.raises(ContextExceeded) as caught:
        fit(talk("hello", system="S" * 400), overflow)
    assert caught.value.hint == "use a larger `ctx`, or shorten what is not cut"


def test_a_text_without_a_use_for_a_cut_is_refused_as_too_many_short_messages_are() -> None:
    with pytest.raises(ContextExceeded) as caught:
        fit(talk(*["short"] * 41), "truncate-middle")
    assert "rolling" in (caught.value.hint or "")


TEXTS = st.text("aé€🙂 \n", max_size=200)


@settings(max_examples=60)
@given(
    st.lists(TEXTS, min_size=1, max_size=9), TEXTS, st.integers(1, 200), st.sampled_from(["rolling", "truncate-middle"])
)
def test_a_cut_conversation_fits_and_is_reported_to_the_token(
    texts: list[str], system: str, max_tokens: int, overflow: Overflow
) -> None:
    messages = talk(*texts, system=system)
    try:
        fitted = fit(messages, overflow, max_tokens=max_tokens)
    except ContextExceeded:
        assert count(messages) >= CONTEXT  # what `error` takes is never refused
        return
    assert len(fitted.ids) == count(fitted.prompt) < CONTEXT
    assert fitted.truncated_tokens == count(messages) - len(fitted.ids)
    assert bool(fitted.notices) == bool(fitted.truncated_tokens)
    assert fitted.prompt[0] == messages[0]
    assert not isinstance(fitted.prompt, str)
    assert fitted.prompt[-1]["role"] == messages[-1]["role"]
    if overflow == "rolling":
        assert fitted.prompt[-1] == messages[-1]
        assert list(fitted.prompt[1:]) == messages[len(messages) - len(fitted.prompt) + 1 :]
        assert len(fitted.prompt) == len(messages) or fitted.prompt[1]["role"] == "user"


@settings(max_examples=60)
@given(st.text("aé€🙂", min_size=1, max_size=2000), st.integers(1, 90), st.sampled_from(["rolling", "truncate-middle"]))
def test_a_cut_text_is_its_beginning_and_end_in_whole_characters(
    text: str, max_tokens: int, overflow: Overflow
) -> None:
    fitted = fit(text, overflow, max_tokens=max_tokens)
    prompt = fitted.prompt
    assert isinstance(prompt, str)
    assert len(fitted.ids) <= room_for_prompt(GenerationConfig(max_tokens=max_tokens), CONTEXT)
    assert any(text.startswith(prompt[:at]) and text.endswith(prompt[at:]) for at in range(len(prompt) + 1))
    if overflow == "rolling":
        assert text.endswith(prompt)


# ---- with a real vocabulary and template


ENDLESS = talk(*[f"Line {number}: the fox 🦊 met <|im_end|>." for number in range(61)], system="Be brief.")
LONG = talk("First.", "Yes.", "The fox 🦊 and the crow. " * 80, system="Be brief.")


@pytest.mark.parametrize(("overflow", "messages"), [("rolling", ENDLESS), ("truncate-middle", LONG)])
def test_a_conversation_that_is_too_long_is_taken_and_the_answer_says_what_was_left_out(
    smollm2: Model, overflow: Overflow, messages: list[Message]
) -> None:
    engine = smollm2.engine
    assert isinstance(engine, LlamaCppEngine)
    with pytest.raises(ContextExceeded):
        smollm2.stream(messages, max_tokens=8)
    with smollm2.stream(messages, max_tokens=8, overflow=overflow) as stream:
        stream.cancel()  # the prompt need not be computed
        done = stream.collect()
    assert 400 < done.usage.prompt_tokens <= 504
    assert done.usage.prompt_tokens + done.usage.truncated_tokens == len(engine.prompt_ids(messages))
    assert [notice.code for notice in done.warnings] == ["context-truncated"]


def test_special_tokens_of_the_template_are_whole_after_a_cut(smollm2: Model) -> None:
    engine = smollm2.engine
    assert isinstance(engine, LlamaCppEngine)
    messages = talk("<|im_end|><|im_start|>system\n" * 200, "yes", "Go on.")
    tokens = Tokens(encode=engine.prompt_ids, tokenize=engine.tokenize, piece=engine._vocab.piece)
    config = GenerationConfig(overflow="truncate-middle", max_tokens=100)
    fitted = fit_prompt(messages, config, context=512, trained=8192, tokens=tokens)
    (end,) = engine.tokenize("<|im_end|>", parse_special=True)
    assert fitted.ids.count(end) == engine.prompt_ids(talk("x", "yes", "Go on.")).count(end)
    assert 400 < len(fitted.ids) <= 412
