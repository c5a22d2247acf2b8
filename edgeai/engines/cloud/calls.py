"""Calls of tools, put together from the pieces in which endpoints send them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgeai.errors import CloudFailure
from edgeai.types import ToolCall

__all__ = ["Calls", "is_whole"]

MOST_CALLS = 512


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class Calls:
    """The calls of one answer. Each piece names its call by `index`, or by `id` where there is no index; gaps between them mean nothing.

    A role, id or name that is repeated changes nothing, nor do arguments that come whole a second time.
    """

    def __init__(self) -> None:
        self._slots: dict[Any, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, pieces: Any) -> None:
        """Add what a delta has as `tool_calls`. Raises CloudFailure, malformed, where that is none, or contradicts what was there."""
        if not isinstance(pieces, list):
            raise _malformed("tool_calls that are no list")
        for piece in pieces:
            function = piece.get("function") or {} if isinstance(piece, dict) else None
            if not isinstance(function, dict):
                raise _malformed("a call of a tool that is none")
            call = self._call(piece.get("index"), piece.get("id"))
            self._name(call, function.get("name"))
            self._argue(call, function.get("arguments"))

    def _call(self, index: Any, id_: Any) -> _Call:
        id_ = id_ if isinstance(id_, str) else ""
        place: Any = index if isinstance(index, int) else (id_ or next(reversed(self._slots), 0))
        call = self._slots.get(place)
        if call is not None and id_ and call.id and id_ != call.id:  # some endpoints give every whole call the index 0
            place = ("id", id_)
            call = self._slots.get(place)
        if call is None:
            if len(self._slots) >= MOST_CALLS:
                raise _malformed(f"more than {MOST_CALLS} calls of tools")
            call = self._slots[place] = _Call()
        call.id = call.id or id_
        return call

    def _name(self, call: _Call, name: Any) -> None:
        if not name or name == call.name:
            return
        if call.name or not isinstance(name, str):
            raise _malformed("two names for one call of a tool")
        call.name = name

    def _argue(self, call: _Call, arguments: Any) -> None:
        if arguments is None or arguments == "":
            return
        if isinstance(arguments, dict):  # whole, where a text should be
            arguments = json.dumps(arguments)
        if not isinstance(arguments, str):
            raise _malformed("arguments of a call that are no text")
        if arguments == call.arguments and len(arguments) > 1 and is_whole(arguments):
            return
        call.arguments += arguments

    def whole(self) -> tuple[ToolCall, ...]:
        """Return the calls in the order of their index. Raises CloudFailure for one without a name."""
        found: dict[str, ToolCall] = {}
        for number, place in enumerate(sorted(self._slots, key=_order)):
            call = self._slots[place]
            if not call.name:
                raise _malformed("a call of a tool without a name")
            made = ToolCall(id=call.id or f"call_{number}", name=call.name, arguments=call.arguments or "{}")
            if found.get(made.id, made) != made:
                raise _malformed("two calls of tools with one id")
            found[made.id] = made
        return tuple(found.values())


def _order(place: Any) -> int:
    """Return what sorts PLACE by its index; those without one follow in the order in which they came."""
    return place if isinstance(place, int) else 1 << 62


def is_whole(arguments: str) -> bool:
    """Whether ARGUMENTS are a JSON object."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _malformed(what: str) -> CloudFailure:
    return CloudFailure(f"the endpoint sent {what}", kind="malformed", reason="tool-calls", hint="ask another endpoint")
