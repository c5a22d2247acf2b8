"""What a JSON schema says of a value, written down from the specification alone: the reference that masked answers are held against.

JSON Schema 2020-12, Validation, section 6 and 7, and Core, section 10. Only the keywords that can be enforced; integers and floats that
are equal are equal, as in section 4.2.3 of Core.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
import uuid
from collections.abc import Callable
from fractions import Fraction
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: number(value) and (isinstance(value, int) or value.is_integer()),
    "number": lambda value: number(value),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
DIGITS = r"\d+(?:\.\d+)?"
FORMATS: dict[str, Callable[[str], object]] = {
    "date": lambda text: re.fullmatch(r"\d{4}-\d\d-\d\d", text) and datetime.date.fromisoformat(text),
    "date-time": lambda text: (
        re.fullmatch(r".{10}T.{8}(\.\d+)?(Z|[+-]\d\d:\d\d)", text) and datetime.datetime.fromisoformat(text)
    ),
    "time": lambda text: (
        re.fullmatch(r".{8}(\.\d+)?(Z|[+-]\d\d:\d\d)", text) and datetime.time.fromisoformat(text) is not None
    ),
    "uuid": lambda text: str(uuid.UUID(text)) == text.lower(),
    "ipv4": lambda text: str(ipaddress.IPv4Address(text)) == text,
    "ipv6": ipaddress.IPv6Address,
    "email": lambda text: re.fullmatch(r"[^\s@]+@[^\s@]+", text) and ".." not in text.split("@")[0],
    "hostname": lambda text: (
        len(text) <= 253 and all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", part) for part in text.split("."))
    ),
    "uri": lambda text: re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]*", text),
    "duration": lambda text: re.fullmatch(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)", text),
}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return bool(left == right)


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether VALUE, as json.loads made it, is valid under SCHEMA."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    return all(rule(value, schema[keyword], schema, root) for keyword, rule in RULES.items() if keyword in schema)


def _format(value: Any, name: str, *_: Any) -> bool:
    if not isinstance(value, str) or name not in FORMATS:
        return True
    try:
        return bool(FORMATS[name](value))
    except ValueError:
        return False


def _ref(value: Any, ref: str, _: Any, root: Any) -> bool:
    node = root
    for part in ref.split("/")[1:]:
        node = node[int(part) if isinstance(node, list) else part.replace("~1", "/").replace("~0", "~")]
    return valid(value, node, root)


def _additional(value: Any, extra: Any, schema: Any, root: Any) -> bool:
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    rest = [name for name in value if name not in known and not any(re.search(pattern, name) for pattern in patterns)]
    return all(valid(value[name], extra, root) for name in rest)


def _items(value: Any, rest: Any, schema: Any, root: Any) -> bool:
    first = schema.get("prefixItems", [])
    return all(valid(item, rest, root) for item in value[len(first) :])


def _patterns(value: Any, patterns: Any, _: Any, root: Any) -> bool:
    return all(
        valid(item, child, root)
        for name, item in value.items()
        for pattern, child in patterns.items()
        if re.search(pattern, name)
    )


def on(kind: Callable[[Any], bool], rule: Callable[..., bool]) -> Callable[..., bool]:
    """Apply RULE to values of a KIND; to all others it says nothing."""
    return lambda value, *rest: not kind(value) or rule(value, *rest)


def text(rule: Callable[..., bool]) -> Callable[..., bool]:
    return on(TYPES["string"], rule)


def many(rule: Callable[..., bool]) -> Callable[..., bool]:
    return on(TYPES["array"], rule)


def named(rule: Callable[..., bool]) -> Callable[..., bool]:
    return on(TYPES["object"], rule)


def counted(rule: Callable[..., bool]) -> Callable[..., bool]:
    return on(number, rule)


RULES: dict[str, Callable[..., bool]] = {
    "type": lambda value, kinds, *_: any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
    "const": lambda value, only, *_: equal(value, only),
    "enum": lambda value, some, *_: any(equal(value, one) for one in some),
    "$ref": _ref,
    "anyOf": lambda value, cases, _, root: any(valid(value, case, root) for case in cases),
    "allOf": lambda value, cases, _, root: all(valid(value, case, root) for case in cases),
    "oneOf": lambda value, cases, _, root: sum(valid(value, case, root) for case in cases) == 1,
    "minLength": text(lambda value, least, *_: len(value) >= least),
    "maxLength": text(lambda value, most, *_: len(value) <= most),
    "pattern": text(lambda value, pattern, *_: re.search(pattern, value) is not None),
    "format": _format,
    "minimum": counted(lambda value, least, *_: value >= least),
    "maximum": counted(lambda value, most, *_: value <= most),
    "exclusiveMinimum": counted(lambda value, least, *_: value > least),
    "exclusiveMaximum": counted(lambda value, most, *_: value < most),
    "multipleOf": counted(
        lambda value, step, *_: (
            (isinstance(value, int) or math.isfinite(value))
            and (Fraction(str(value)) / Fraction(str(step))).denominator == 1
        )
    ),
    "prefixItems": many(
        lambda value, first, _, root: all(valid(item, child, root) for item, child in zip(value, first, strict=False))
    ),
    "items": many(_items),
    "minItems": many(lambda value, least, *_: len(value) >= least),
    "maxItems": many(lambda value, most, *_: len(value) <= most),
    "required": named(lambda value, names, *_: all(name in value for name in names)),
    "properties": named(
        lambda value, known, _, root: all(
            valid(value[name], child, root) for name, child in known.items() if name in value
        )
    ),
    "patternProperties": named(_patterns),
    "additionalProperties": named(_additional),
    "minProperties": named(lambda value, least, *_: len(value) >= least),
    "maxProperties": named(lambda value, most, *_: len(value) <= most),
}
