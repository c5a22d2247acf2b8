"""What is sent. The reference is OpenAI's chat API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeai.engines.cloud.body import encode, limits
from edgeai.errors import UsageError
from edgeai.types import Constraint, GenerationConfig, Message

ASK: list[Message] = [{"role": "user", "content": "hé"}]


def sent(config: GenerationConfig, prompt: Any = ASK, model: str = "m", host: str = "h") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(prompt, config, model=model, host=host))
    return found


def test_what_was_asked_for_is_in_the_fields_of_the_api() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    config = GenerationConfig(max_tokens=5, temperature=0.5, top_p=0.9, stop=("a",), seed=3, logprobs=2, tools=(tool,))
    assert sent(config) == {
        "model": "m", "messages": ASK, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5,
        "temperature": 0.5, "top_p": 0.9, "stop": ["a"], "seed": 3, "logprobs": True, "top_logprobs": 2, "tools": [tool],
    }  # fmt: skip


def test_text_goes_out_as_it_is_so_that_a_check_of_the_bytes_sees_it() -> None:
    assert "hé".encode() in encode(ASK, GenerationConfig(), model="m", host="h")


def test_a_schema_is_sent_as_one() -> None:
    config = GenerationConfig(constraint=Constraint(kind="json_schema", source='{"type": "object"}'))
    assert sent(config)["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_only_what_the_api_knows_of_a_message_leaves() -> None:
    message: Any = {"role": "tool", "content": "x", "tool_call_id": "c", "private": False, "path": "/home/me"}
    assert sent(GenerationConfig(), [message])["messages"] == [{"role": "tool", "content": "x", "tool_call_id": "c"}]


def test_a_message_that_is_marked_private_is_refused() -> None:
    with pytest.raises(UsageError, match="marked private"):
        limits([{"role": "user", "content": "x", "private": True}], GenerationConfig())


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(adapters=(("law", 1.0),)),
        GenerationConfig(logit_bias={5: -100}),
        GenerationConfig(constraint=Constraint(kind="regex", source="a")),
        GenerationConfig(constraint=Constraint(kind="choices", source='["a"]')),
    ],
    ids=["adapters", "logit_bias", "regex", "choices"],
)
def test_what_would_change_the_answer_and_cannot_be_sent_is_refused(config: GenerationConfig) -> None:
    with pytest.raises(UsageError, match="cannot keep"):
        limits(ASK, config)


def test_what_is_left_out_is_said() -> None:
    assert limits(ASK, GenerationConfig()) == ()
    (notice,) = limits(ASK, GenerationConfig(min_p=0.2, repeat_penalty=1.1))
    assert "min_p, repeat_penalty" in notice.message


def test_a_text_becomes_a_message_of_the_user_and_that_is_said() -> None:
    assert sent(GenerationConfig(), "hi")["messages"] == [{"role": "user", "content": "hi"}]
    assert [notice.code for notice in limits("hi", GenerationConfig())] == ["cloud-as-chat"]


def test_models_of_openai_that_reason_get_the_fields_that_they_take() -> None:
    body = sent(GenerationConfig(max_tokens=9), model="o4-mini", host="api.openai.com")
    assert body["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature", "top_p"} & set(body)
    assert "max_tokens" in sent(GenerationConfig(max_tokens=9), model="gpt-4o", host="api.openai.com")
    assert "max_tokens" in sent(GenerationConfig(max_tokens=9), model="o4-mini", host="127.0.0.1")


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_half_of_a_character_is_an_error_before_anything_is_sent(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        encode(text, GenerationConfig(), model="m", host="h")
