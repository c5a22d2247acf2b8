"""Everything that a request would send, as parts to examine: all messages of every role, calls of tools and their results, definitions, files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeai.routing.request import Part
from edgeai.types import Message, Prompt

__all__ = ["parts_of", "strings_in"]

EXAMINED = ("role", "content", "private", "tool_calls")
"""The keys of a message that are read by themselves; whatever else one has is examined as JSON."""
MOST_DEPTH = 64


def parts_of(
    prompt: Prompt, *, files: Mapping[str, str] | None = None, tools: Iterable[Mapping[str, Any]] = ()
) -> list[Part]:
    """Return the parts of PROMPT, of FILES (path → text) that were read into it, and of the definitions of TOOLS.

    `where` is for people and counts messages from 1; `message` is the index. What is no text, like a picture, cannot be examined and is
    tagged `private`.
    """
    found: list[Part] = []
    if isinstance(prompt, str):
        found.append(Part(text=prompt, where="prompt"))
    else:
        for index, message in enumerate(prompt):
            found += _of_message(message, index)
    last = max((part.message for part in found), default=0)
    found += [
        Part(text=text, where=f"file {Path(path).name}", message=last, path=path)
        for path, text in (files or {}).items()
    ]
    found += [Part(text=_dumped(tool), where="tool definition", message=last) for tool in tools]
    return found


def _of_message(message: Message, index: int) -> Iterator[Part]:
    private = bool(message.get("private", False))
    role = message.get("role", "user")
    where = {"system": "system", "tool": f"tool result (message {index + 1})"}.get(role, f"message {index + 1}")
    content: Any = message.get("content")
    if isinstance(content, str):
        yield Part(text=content, where=where, message=index, private=private)
    elif isinstance(content, list | tuple):
        for piece in content:
            text = piece.get("text") if isinstance(piece, Mapping) else piece
            known = isinstance(text, str)
            yield Part(text=text if known else "", where=where, message=index, private=private or not known)
    elif content is not None:
        yield Part(text=str(content), where=where, message=index, private=True)
    for call in message.get("tool_calls") or ():
        text = _dumped(call)
        yield Part(text=text, where="tool call", message=index, private=private)
        decoded = "\n".join(strings_in(call))
        if decoded not in text:  # what escapes hide: "jane\u0040…"
            yield Part(text=decoded, where="tool call", message=index, private=private)
    rest = {key: value for key, value in message.items() if key not in EXAMINED}
    if rest:
        yield Part(text=_dumped(rest), where=where, message=index, private=private)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def strings_in(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every string in the JSON VALUE, keys too, and those inside of strings that are JSON themselves."""
    if depth > MOST_DEPTH:
        yield str(value)
    elif isinstance(value, str):
        yield value
        if value.lstrip()[:1] in ("{", "[", '"') and len(value) > 2:
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                return
            yield from strings_in(inner, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from strings_in(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
