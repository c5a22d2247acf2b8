"""A schema in a line: `name, age int, tags list[str], kind: cat|dog`.

    fields       separated by commas, or by line ends where there are any; in brackets, [name, age int], a list of such objects
    a field      NAME, NAME TYPE, and after a colon what it means: `age int: in years`
    types        str (when none is given), int, float, bool, date, time, datetime, email, uuid, url, list[TYPE], object;
                 int is what all JSON readers read exactly, up to 2**53 - 1
    how many     list[TYPE]{5}, list[TYPE]{1,5}, list[TYPE]{,5}: small models need a bound, or they may go on for ever
    one of       cat|dog for the words themselves, int|null for types; also after the colon: `kind: cat|dog`

Every field is required, and no other may come. This is the short form of simonw/llm (its docs/schemas.md) with lists, formats and
choices; there an unknown type is a text, and here it is an error. Descriptions are kept in the schema; the model sees none of it unless
the prompt says it.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from edgeai.errors import ConstraintError

__all__ = ["schema_of_shorthand"]

_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    # The integers that every JSON reader reads exactly (RFC 7493, section 2.2); without bounds a small model may write digits for ever.
    "int": {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "null": {"type": "null"},
    "object": {"type": "object"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "datetime": {"type": "string", "format": "date-time"},
    "email": {"type": "string", "format": "email"},
    "uuid": {"type": "string", "format": "uuid"},
    "url": {"type": "string", "format": "uri"},
}
_ALIASES = {
    "string": "str",
    "text": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "none": "null",
    "uri": "url",
}
_HINT = 'write it like "name, age int, tags list[str], kind: cat|dog"'


def schema_of_shorthand(text: str) -> dict[str, Any]:
    """Return the JSON schema of TEXT. Raises ConstraintError for a field that is none."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        return {"type": "array", "items": schema_of_shorthand(inner[1:-1])}
    properties: dict[str, Any] = {}
    for part in re.split(r"\n" if "\n" in inner else r",(?![^\[]*\]|[^{]*\})", inner):
        if not part.strip():
            continue
        name, schema = _field(part.strip())
        if name in properties:
            raise ConstraintError(f"the field {name!r} is there twice", hint="give each field a name of its own")
        properties[name] = schema
    if not properties:
        raise ConstraintError(f"the schema {text!r} has no field", hint=_HINT)
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _field(text: str) -> tuple[str, dict[str, Any]]:
    head, colon, note = (part.strip() for part in text.partition(":"))
    name, *rest = head.split(None, 1) if head else [""]
    if not re.fullmatch(r"[^\s\[\]{}|\"']+", name):
        raise ConstraintError(f"{text!r} is no field of a schema", hint=_HINT)
    if colon and not rest and re.fullmatch(r"\S+?(\s*\|\s*\S+)+", note):
        return name, _type(note, text)
    schema = _type(rest[0], text) if rest else dict(_TYPES["str"])
    return name, schema | ({"description": note} if note else {})


def _type(text: str, field: str) -> dict[str, Any]:
    words = [word.strip() for word in text.split("|")] if "[" not in text else [text.strip()]
    known = [_named(word) for word in words]
    if len(words) == 1 or all(known):
        found = [
            schema if schema is not None else _unknown(word, field) for word, schema in zip(words, known, strict=True)
        ]
        return dict(found[0]) if len(found) == 1 else {"anyOf": found}
    if any(known):
        mixed = next(word for word, schema in zip(words, known, strict=True) if schema)
        raise ConstraintError(f"{mixed!r} in {field!r} is a type among words", hint="use words alone, or types alone")
    if not all(re.fullmatch(r"\S+", word) for word in words):
        raise ConstraintError(f"the choices in {field!r} must be single words", hint="use a JSON schema with an enum")
    return {"type": "string", "enum": words}


def _named(word: str) -> dict[str, Any] | None:
    """Return the schema of the type that WORD names, or None."""
    if match := re.fullmatch(r"(?:list|array)\[(.+)\](?:\{(\d*)(,?)(\d*)\})?", word, re.DOTALL):
        least, most = match[2], match[4] if match[3] else match[2]
        bounds = {"minItems": least, "maxItems": most}
        return {"type": "array", "items": _type(match[1], word)} | {
            key: int(value) for key, value in bounds.items() if value
        }
    return _TYPES.get(_ALIASES.get(word, word))


def _unknown(word: str, field: str) -> dict[str, Any]:
    close = difflib.get_close_matches(word, [*_TYPES, *_ALIASES], n=1)
    known = f"types are {', '.join(_TYPES)} and list[TYPE]; a description comes after a colon"
    hint = f"did you mean {close[0]!r}?" if close else known
    raise ConstraintError(f"unknown type {word!r} in {field!r}", hint=hint)
