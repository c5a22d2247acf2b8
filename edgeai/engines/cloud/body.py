"""What is sent: a prompt and how to answer it, as the JSON of OpenAI's chat API."""

from __future__ import annotations

import json
import re
from typing import Any

from edgeai.errors import UsageError
from edgeai.types import GenerationConfig, Message, Notice, Prompt

__all__ = ["encode", "limits"]

SENT = ("role", "content", "tool_calls", "tool_call_id")
"""The keys of a message that leave; any other is ours."""
REASONING = re.compile(r"(o\d|gpt-5)(\b|-)")
"""Models of api.openai.com that refuse `max_tokens`, `temperature` and `top_p` (its reference of chat completions)."""
OPENAI = "api.openai.com"
DEFAULTS = GenerationConfig()


def limits(prompt: Prompt, config: GenerationConfig, *, model: str = "", host: str = "") -> tuple[Notice, ...]:
    """Return what of CONFIG no endpoint can keep and is left out, as notices.

    Raises UsageError for what would change the answer and cannot be sent (adapters, logit_bias with the ids of another tokenizer, a form
    that is no JSON schema), and for a message that is marked private: such a one has no business here.
    """
    if not isinstance(prompt, str) and any(message.get("private") for message in prompt):
        raise UsageError("a message that is marked private is not sent to an endpoint", hint="ask a local model")
    refused = (
        ("adapters", bool(config.adapters), "adapters are part of a local model"),
        ("logit_bias", bool(config.logit_bias), "the ids of tokens differ from model to model: use `stop`, or ask a local model"),
        (
            "constraint", config.constraint is not None and config.constraint.kind != "json_schema",
            "endpoints know JSON schemas only: give a schema, or ask a local model",
        ),
    )  # fmt: skip
    for name, given, hint in refused:
        if given:
            raise UsageError(f"an endpoint cannot keep {name}", hint=hint)
    names = ["top_k", "min_p", "repeat_penalty"]
    if _is_reasoning(model, host):
        names += ["temperature", "top_p"]
    left = [name for name in names if getattr(config, name) != getattr(DEFAULTS, name)]
    notices = []
    if left:
        said = f"the endpoint's API has no {', '.join(left)}: left out"
        notices.append(Notice(code="cloud-sampling", message=said))
    if isinstance(prompt, str):
        said = "an endpoint completes no text: it was sent as one message of the user"
        notices.append(Notice(code="cloud-as-chat", message=said))
    return tuple(notices)


def encode(prompt: Prompt, config: GenerationConfig, *, model: str, host: str) -> bytes:
    """Return the body of the request for PROMPT, UTF-8. Raises UsageError for text that is no Unicode, and for what is no JSON."""
    messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_sent(one) for one in prompt]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if _is_reasoning(model, host):
        body |= {"max_completion_tokens": config.max_tokens} if config.max_tokens is not None else {}
    else:
        body |= {"max_tokens": int(config.max_tokens)} if config.max_tokens is not None else {}
        body |= {"temperature": float(config.temperature), "top_p": float(config.top_p)}
    if config.stop:
        body["stop"] = list(config.stop)
    if config.seed is not None:
        body["seed"] = int(config.seed)
    if config.logprobs is not None:
        body |= {"logprobs": True} | ({"top_logprobs": int(config.logprobs)} if config.logprobs else {})
    if config.tools:
        body["tools"] = [dict(tool) for tool in config.tools]
    if config.constraint is not None:
        schema = {"name": "answer", "schema": json.loads(config.constraint.source), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the request cannot be written as JSON ({type(error).__name__})",
            hint="texts must be whole Unicode, numbers finite",
        ) from None


def _sent(message: Message) -> dict[str, Any]:
    return {name: message[name] for name in SENT if name in message}  # type: ignore[literal-required]


def _is_reasoning(model: str, host: str) -> bool:
    return host == OPENAI and REASONING.match(model) is not None
