"""Messages to a prompt, by the model's own template, and what in the prompt is control and what is text.

Text of special tokens that a user writes must stay text. Before rendering, each such text in a message is replaced by a placeholder of
private-use characters; so is a part of one at the beginning or end of a message, since a template may put the rest beside it. After
rendering, what still reads as a special token came from the template and is control, and the placeholders are turned back into plain text.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeai.errors import NoChatTemplate, UsageError
from edgeai.sandbox import Sandbox
from edgeai.types import Message

__all__ = ["Segment", "render", "split_segments"]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt: one special token, or text in which nothing is special."""

    text: str
    control: bool


def render(
    template: str | None, messages: Sequence[Message], *, special: Mapping[str, str], control: Sequence[str]
) -> list[Segment]:
    """Return the prompt for MESSAGES, ending where the assistant's answer begins.

    `special` holds the texts of the named tokens that templates refer to (bos_token, eos_token …); `control` the texts of all tokens
    that must never come from a message. Raises NoChatTemplate, UsageError for messages that the template refuses, InvalidModel for a
    template that is broken or exceeds its limits.
    """
    if not template:
        raise NoChatTemplate(
            "the model has no chat template: it is a base model, or its file is incomplete",
            hint="use completion mode: edgeai run MODEL --raw PROMPT",
        )
    _check_messages(messages)
    guard = _Placeholders(control)
    safe = [{"role": message["role"], "content": guard.hide(message["content"])} for message in messages]
    size = sum(len(message["content"]) for message in safe)
    text = Sandbox(size, len(safe)).render(
        template, messages=safe, add_generation_prompt=True, tools=None, documents=None, **special
    )
    return [Segment(guard.show(part.text), part.control) for part in split_segments(text, control)]


def split_segments(text: str, control: Sequence[str]) -> list[Segment]:
    """Cut TEXT at the special tokens in it; the longest token wins where several begin."""
    if not control:
        return [Segment(text, False)] if text else []
    pattern = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)))
    segments, end = [], 0
    for match in pattern.finditer(text):
        segments += [Segment(text[end : match.start()], False), Segment(match.group(), True)]
        end = match.end()
    segments.append(Segment(text[end:], False))
    return [segment for segment in segments if segment.text]


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise UsageError(
            f"messages {messages!r:.60} are no list of messages", hint='give [{"role": "user", "content": …}]'
        )
    if not messages:
        raise UsageError("there are no messages to answer", hint="give at least one message with the role 'user'")
    for message in messages:
        if not isinstance(message.get("content"), str):
            raise UsageError(f"a message's content is {message.get('content')!r}", hint="content must be text")
        if message.get("role") not in ROLES:
            raise UsageError(f"a message has the role {message.get('role')!r}", hint=f"roles are {', '.join(ROLES)}")


@functools.lru_cache(maxsize=4)
def _parts(texts: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Return every beginning and every end of TEXTS that is not the whole."""
    heads = frozenset(text[:size] for text in texts for size in range(1, len(text)))
    return heads, frozenset(text[-size:] for text in texts for size in range(1, len(text)))


class _Placeholders:
    """Hides special-token texts in messages behind private-use characters that no message contains by chance."""

    def __init__(self, control: Sequence[str]) -> None:
        nonce = "".join(chr(0xE000 + byte) for byte in secrets.token_bytes(8))
        self._texts = sorted((token for token in control if token), key=len, reverse=True)
        self._hide = re.compile("|".join(map(re.escape, self._texts))) if self._texts else None
        self._index = {text: index for index, text in enumerate(self._texts)}
        self._heads, self._tails = _parts(tuple(self._texts))
        self._open, self._close = nonce, chr(0xF8FF)
        self._show = re.compile(f"{nonce}([0-9]+){self._close}")

    def hide(self, text: str) -> str:
        if self._hide is None:
            return text
        text = self._hide.sub(lambda match: self._hidden(match.group()), text)
        longest = len(self._texts[0])
        body = text.rstrip()  # templates strip, too
        for size in range(min(longest, len(body)), 0, -1):
            if body[-size:] in self._heads:
                text = f"{body[:-size]}{self._hidden(body[-size:])}{text[len(body) :]}"
                break
        body = text.lstrip()
        for size in range(min(longest, len(body)), 0, -1):
            if body[:size] in self._tails:
                return f"{text[: len(text) - len(body)]}{self._hidden(body[:size])}{body[size:]}"
        return text

    def _hidden(self, text: str) -> str:
        """Return what stands for TEXT."""
        index = self._index.setdefault(text, len(self._texts))
        if index == len(self._texts):
            self._texts.append(text)
        return f"{self._open}{index}{self._close}"

    def show(self, text: str) -> str:
        """Return TEXT with everything back in its place."""
        return self._show.sub(lambda match: self._texts[int(match.group(1))], text)
