"""What a caller may give as the form of an answer, and the Constraint that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeai.errors import ConstraintError, UsageError
from edgeai.schema_types import schema_of_type
from edgeai.shorthand import schema_of_shorthand
from edgeai.types import Constraint

__all__ = ["FORMS", "constraint_of", "schema_of_argument"]

FORMS = ("schema", "regex", "grammar", "choices", "response_format")
"""The options of `Model.chat` and its like that say the form of an answer: at most one of them."""


def constraint_of(
    *,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    response_format: Mapping[str, Any] | None = None,
) -> Constraint | None:
    """Return the Constraint of the one option that is given, or None.

    `schema`: a JSON schema (dict or JSON text), the short form of `edgeai.shorthand` (`"name, age int"`), a pydantic model, a dataclass,
    a TypedDict or a type like `list[int]`, OpenAI's `response_format`, or the path of a file with one of the texts (as a `Path`).
    `regex`: the whole answer matches it, in the syntax of Rust's regex crate. `grammar`: llguidance's Lark. `choices`: texts, one of
    which is the answer. `response_format`: as OpenAI's API has it, `{"type": "text" | "json_object" | "json_schema", …}`.

    Raises ConstraintError for what is none of these. Whether a schema can be enforced is found out where it is compiled.
    """
    options = (schema, regex, grammar, choices, response_format)
    given = [name for name, value in zip(FORMS, options, strict=True) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other", hint="an answer has one form")
    if schema is not None:
        return _json_schema(_schema_of(schema))
    if response_format is not None:
        return _of_response_format(response_format)
    if choices is not None:
        return Constraint(kind="choices", source=_dumps(_texts(choices)))
    if regex is not None:
        return Constraint(kind="regex", source=_text(regex, "regex"))
    return None if grammar is None else Constraint(kind="lark", source=_text(grammar, "grammar"))


def schema_of_argument(text: str) -> Any:
    """Return what `--schema TEXT` means: a file that is there, JSON text, or the short form."""
    if _looks_like_a_path(text):
        path = Path(text)
        if path.is_file():
            return path
        raise ConstraintError(f"there is no schema file {text!r}", hint='a schema in a line is written "name, age int"')
    return text


def _looks_like_a_path(text: str) -> bool:
    if text.lstrip().startswith(("{", "[")) or "\n" in text:
        return False
    return text.endswith((".json", ".schema", ".txt")) or "/" in text or _is_file(text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a file name may be, or with a NUL in it
        return False


def read_form(path: Path) -> str:
    """Return the text of a file that holds a schema or grammar. Raises ConstraintError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConstraintError(
            f"{str(path)!r} cannot be read: {reason}", hint="check the path, and that it is a text file"
        ) from error


def _schema_of(value: Any) -> Any:
    if isinstance(value, Path):
        value = read_form(value)
    if isinstance(value, str):
        looks_like_json = value.lstrip().startswith(("{", '["', "[{")) or value.strip() in {"true", "false"}
        value = _parsed(value) if looks_like_json else schema_of_shorthand(value)
    if isinstance(value, Mapping):
        return _unwrapped(value)
    if isinstance(value, bool):
        raise ConstraintError(
            f"the schema {value!r} says nothing", hint='use response_format {"type": "json_object"} for any JSON object'
        )
    return schema_of_type(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(
            f"the schema is not valid JSON: {error}", hint="check it with: python -m json.tool"
        ) from error


def _unwrapped(value: Mapping[str, Any]) -> Any:
    """Return the schema inside OpenAI's envelope, or VALUE."""
    if value.get("type") == "json_schema" or (value.get("type") == "json_object" and set(value) <= {"type", "schema"}):
        found = _of_response_format(value)
        return json.loads(found.source) if found else {}
    if isinstance(value.get("schema"), Mapping) and "name" in value and set(value) <= _ENVELOPE:
        return value["schema"]
    return value


_ENVELOPE = {"name", "description", "schema", "strict"}


def _of_response_format(value: Mapping[str, Any]) -> Constraint | None:
    """Return the Constraint of OpenAI's `response_format`. A schema is enforced, `strict` or not."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text" and set(value) == {"type"}:
        return None
    if kind == "json_object" and set(value) <= {"type", "schema"}:  # llama-server and others take a schema here
        return _json_schema(value.get("schema", {"type": "object"}))
    if kind == "json_schema" and set(value) == {"type", "json_schema"}:
        inner = value["json_schema"]
        if isinstance(inner, Mapping) and "schema" in inner and set(inner) <= _ENVELOPE:
            return _json_schema(inner["schema"])
    raise ConstraintError(
        f"response_format {json.dumps(value, default=str)[:200]} is not understood",
        hint='use {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}, {"type": "json_object"} or {"type": "text"}',
    )


def _json_schema(schema: Any) -> Constraint:
    return Constraint(kind="json_schema", source=_dumps(schema))


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(
            f"the schema is not JSON: {error}", hint="it has numbers, texts, lists, dicts, booleans and None"
        ) from error


def _texts(choices: Sequence[str]) -> list[str]:
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise ConstraintError(f"choices {choices!r} is no list of texts", hint='as ["yes", "no"]')
    return list(choices)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ConstraintError(f"{name} must be a text, not {type(value).__name__}", hint="give a str")
    return value
