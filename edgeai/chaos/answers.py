"""What the lab's endpoints say: answers that follow from the prompt, so that text that is lost, doubled or foreign is seen."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

__all__ = [
    "FLOOD",
    "LOCAL_ANSWER",
    "TOOL",
    "cloud_text",
    "cloud_words",
    "completion",
    "done",
    "event",
    "piece",
    "sse",
    "stream_events",
    "tool_pieces",
]

WORDS = (
    "amber", "birch", "cobalt", "dune", "ember", "fjord", "garnet", "heron", "iris", "jasper", "kestrel", "lichen", "marble", "nectar",
    "onyx", "plum", "quartz", "raven", "saffron", "thistle", "umber", "violet", "willow", "xenon", "yarrow", "zephyr",
)  # fmt: skip
WIDE = ("naïve", "crème", "Ωmega", "東京", "🦊fox")
"""Words of two, three and four bytes a character; every answer has two, so that cuts between bytes are met."""
LENGTH = 14

FLOOD = "flood"
"""What an answer without an end says, after its first word."""

LOCAL_ANSWER = "this machine answers with pebbles that nobody sent over any wire"
"""What stands for the answer of the local model, or of a gateway's second endpoint; it has no word of an answer of the first."""

TOOL = ("weather", '{"city": "Oslo", "days": 3}')
"""The call that the lab's endpoint makes where it is to call a tool: its name and its arguments."""
TOOL_ID = "call_lab_1"


def cloud_words(prompt: str) -> list[str]:
    """Return the words of the answer to PROMPT, the same for the same prompt; no word comes twice."""
    # SHA-256, not hash(): the answer must be the same in another process.
    rng = random.Random(hashlib.sha256(prompt.encode("utf-8", "replace")).digest())  # noqa: S311 - no secret
    words = [*rng.sample(WORDS, LENGTH - 2), *rng.sample(WIDE, 2)]
    rng.shuffle(words)
    return words


def cloud_text(prompt: str) -> str:
    """Return the whole answer to PROMPT."""
    return " ".join(cloud_words(prompt))


def _identity(prompt: str) -> dict[str, Any]:
    number = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12]
    return {"id": f"chatcmpl-{number}", "created": 1_700_000_000, "model": "lab"}


def usage(prompt: str) -> dict[str, int]:
    """Return the counts of tokens of the answer to PROMPT; a word is a token."""
    asked = len(prompt.split())
    return {"prompt_tokens": asked, "completion_tokens": LENGTH, "total_tokens": asked + LENGTH}


def event(prompt: str, delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return one chunk of a stream with DELTA in its only choice."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {**_identity(prompt), "object": "chat.completion.chunk", "choices": [choice], **more}


def piece(prompt: str, index: int) -> dict[str, Any]:
    """Return the chunk of word INDEX of the answer to PROMPT."""
    word = cloud_words(prompt)[index]
    return event(prompt, {"content": word if index == 0 else f" {word}"})


def done(prompt: str, finish: str = "stop") -> list[dict[str, Any]]:
    """Return what ends a stream, but for its end mark: the reason, then the counts of tokens."""
    return [event(prompt, finish=finish), {**event(prompt), "choices": [], "usage": usage(prompt)}]


def stream_events(prompt: str) -> list[dict[str, Any]]:
    """Return the chunks of the whole stream, as OpenAI's API has them: the role, the words, the reason, the counts."""
    words = [piece(prompt, index) for index in range(LENGTH)]
    return [event(prompt, {"role": "assistant", "content": ""}), *words, *done(prompt)]


def tool_pieces(prompt: str, cuts: int = 3) -> list[dict[str, Any]]:
    """Return the chunks that call TOOL, its arguments in CUTS parts."""
    name, arguments = TOOL
    size = -(-len(arguments) // cuts)
    parts = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    first = {"index": 0, "id": TOOL_ID, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": part}} for part in parts]
    return [event(prompt, {"role": "assistant", "tool_calls": [first]})] + [
        event(prompt, {"tool_calls": [call]}) for call in rest
    ]


def completion(prompt: str, **message: Any) -> dict[str, Any]:
    """Return the whole answer as one object; MESSAGE changes fields of its message, and `finish` the reason for its end."""
    finish = message.pop("finish", "stop")
    said = {"role": "assistant", "content": cloud_text(prompt), **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    return {**_identity(prompt), "object": "chat.completion", "choices": [choice], "usage": usage(prompt)}


def sse(value: Any) -> bytes:
    """Return VALUE as a server-sent event; a str stands as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n".encode()
