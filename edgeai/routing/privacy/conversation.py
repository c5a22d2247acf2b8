"""Everything that a request would send, as parts to examine: messages of every role, tools with their calls and results, files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeai.routing.request import Part
from edgeai.types import Message, Prompt

__all__ = ["as_lines", "parts_of", "strings_in"]

EXAMINED = ("role", "content", "private", "tool_calls")
"""The keys of a message that are read by themselves; whatever else one has is examined as JSON."""
ROLES = ("system", "developer", "user", "assistant", "tool")
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
    found += [Part(text=as_lines(tool), where="tool definition", message=last) for tool in tools]
    return found


def _of_message(message: Message, index: int) -> Iterator[Part]:
    role = message.get("role", "user")
    private = bool(message.get("private", False)) or role not in ROLES  # a role of one's own is text, too
    where = {"system": "system", "tool": f"tool result (message {index + 1})"}.get(role, f"message {index + 1}")
    content: Any = message.get("content")
    if isinstance(content, str):
        yield Part(text=content, where=where, message=index, private=private)
    elif isinstance(content, list | tuple):
        for piece in content:
            text = piece.get("text") if isinstance(piece, Mapping) else piece
            known = isinstance(text, str)
            yield Part(text=str(text) if known else "", where=where, message=index, private=private or not known)
            more = {key: item for key, item in piece.items() if key != "text"} if isinstance(piece, Mapping) else {}
            if set(more) - {"type"} or more.get("type") not in (None, "text"):  # it would be sent, whatever it is
                yield Part(text=as_lines(more), where=where, message=index, private=True)
    elif content is not None:
        yield Part(text=str(content), where=where, message=index, private=True)
    for call in message.get("tool_calls") or ():
        yield Part(text=as_lines(call), where="tool call", message=index, private=private)
    rest = {key: value for key, value in message.items() if key not in EXAMINED}
    if rest:
        yield Part(text=as_lines(rest), where=where, message=index, private=private)


def as_lines(value: Any) -> str:
    """Return the JSON VALUE as lines `key: value`, as its reader will understand it: escapes decoded, JSON inside of strings opened."""
    return "\n".join(_lines(value, "", 0))


def strings_in(text: str) -> list[str]:
    """Return what the JSON TEXT says as one text, and every string in it, keys too, also those inside of strings that are JSON themselves.

    Of TEXT that is no JSON, only itself.
    """
    value = _opened(text)
    return [text] if value is None else [as_lines(value), *dict.fromkeys(_strings(value, 0))]


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with all of its members: a name may be there twice, and a dict would forget the first."""


def _opened(text: str) -> Any:
    """Return the object or list that TEXT is the JSON of, None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str:
    """Return VALUE as JSON would have it: of a member of an enumeration that is a text, the text."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def _members(value: Any) -> Iterable[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(_text(key), item) for key, item in value.items()]
    if isinstance(value, _Pairs):
        return value
    return [("", item) for item in value] if isinstance(value, list | tuple) else None


def _lines(value: Any, name: str, depth: int) -> Iterator[str]:
    opened = _opened(value) if isinstance(value, str) and depth < MOST_DEPTH else None
    members = _members(value if opened is None else opened)
    if members is None or depth >= MOST_DEPTH:
        yield f"{name}: {_text(value)}" if name else _text(value)
        return
    if name:
        yield f"{name}:"
    for key, item in members:
        yield from _lines(item, key, depth + 1)


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth >= MOST_DEPTH:
        yield str(value)
    elif isinstance(value, str):
        yield value
        if (opened := _opened(value)) is not None:
            yield from _strings(opened, depth + 1)
    else:
        for key, item in _members(value) or ():
            if key:
                yield key
            yield from _strings(item, depth + 1)
