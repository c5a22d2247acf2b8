"""Python types as JSON schemas: pydantic models say their own; dataclasses, TypedDicts and plain types are read here."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from edgeai.errors import ConstraintError

__all__ = ["schema_of_type"]

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}


def schema_of_type(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of KIND, a type. Raises ConstraintError for one that has none.

    A dataclass or TypedDict is an object without other properties; what has a default, or is not required, may be left out. Any class
    with `model_json_schema` (pydantic 2) says its schema itself.
    """
    own = getattr(kind, "model_json_schema", None)
    if callable(own):
        return dict(own())
    found = _Types()
    schema = found.of(kind)
    return schema | ({"$defs": found.defined} if found.defined else {})


class _Types:
    """Reads types into schemas; classes go into `defined`, so that they may refer to themselves."""

    def __init__(self) -> None:
        self.defined: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        if isinstance(kind, type) and kind in _PLAIN:
            return dict(_PLAIN[kind])
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            return self._class(kind)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [member.value for member in kind]}
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if origin in (typing.Union, types.UnionType):
            return {"anyOf": [self.of(argument) for argument in arguments]}
        if origin in (typing.Annotated, typing.Required, typing.NotRequired):
            return self.of(arguments[0])
        if origin in (list, Sequence) and len(arguments) == 1:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin in (dict, Mapping) and arguments[:1] == (str,):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        name = getattr(kind, "__name__", None) or repr(kind)
        raise ConstraintError(
            f"{name!r} is no type that an answer can have",
            hint="use a JSON schema, a pydantic model, or a dataclass of plain types",
        )

    def _class(self, kind: Any) -> dict[str, Any]:
        if kind not in self._names:
            name = kind.__name__ if kind.__name__ not in self.defined else f"{kind.__name__}{len(self.defined)}"
            self._names[kind] = name
            self.defined[name] = {}  # holds the name while the class is read, which may refer to itself
            hints = typing.get_type_hints(kind)
            self.defined[name] = {
                "type": "object",
                "properties": {field: self.of(hint) for field, hint in hints.items() if field in _fields(kind)},
                "required": [field for field, needed in _fields(kind).items() if needed],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{self._names[kind]}"}


def _fields(kind: Any) -> dict[str, bool]:
    """Return the fields of a dataclass or TypedDict, and whether each is required."""
    if typing.is_typeddict(kind):
        # __required_keys__ does not see NotRequired in annotations that are texts (`from __future__ import annotations`).
        marks = {
            name: typing.get_origin(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        }
        needed = kind.__required_keys__
        return {
            name: mark is typing.Required or (mark is not typing.NotRequired and name in needed)
            for name, mark in marks.items()
        }
    missing = dataclasses.MISSING
    return {
        field.name: field.default is missing and field.default_factory is missing
        for field in dataclasses.fields(kind)
        if field.init
    }
