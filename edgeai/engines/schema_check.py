"""A JSON schema as it may be enforced: every keyword is enforced, is an annotation, or is refused by its name.

llguidance enforces JSON Schema 2020-12 in part. It refuses some keywords, and passes over those that it has never heard of: a misspelt
`propertis` would let everything through. Nothing is passed over here. What is rewritten on the way says the same, or less than, what was
written, so an answer that follows it follows the schema.

Sources: JSON Schema 2020-12, Core (json-schema.org/draft/2020-12/json-schema-core) and Validation (…-validation); llguidance 1.9,
docs/json_schema.md, and what it does with each keyword, tried one by one.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn
from urllib.parse import unquote

from edgeai.errors import ConstraintError

__all__ = ["enforceable", "read_json"]

Children = Literal["", "schema", "list", "map", "schema or list"]

ENFORCED: Mapping[str, Children] = {
    "type": "", "const": "", "enum": "", "$ref": "", "anyOf": "list", "oneOf": "list", "allOf": "list",
    "properties": "map", "patternProperties": "map", "additionalProperties": "schema", "required": "", "minProperties": "",
    "maxProperties": "", "items": "schema or list", "prefixItems": "list", "additionalItems": "schema", "minItems": "", "maxItems": "",
    "minLength": "", "maxLength": "", "pattern": "", "format": "", "minimum": "", "maximum": "", "exclusiveMinimum": "",
    "exclusiveMaximum": "", "multipleOf": "",
}  # fmt: skip
"""Keywords that llguidance enforces, and where the schemas below them are."""

ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",  # Validation, section 9
    "contentMediaType", "contentEncoding", "contentSchema",  # Validation, section 8.2: not checked by default
    "$comment", "$defs", "definitions", "$schema", "$id", "$anchor",  # Core, section 8; $ref leads to what of $defs is used
    "discriminator", "example", "externalDocs", "xml",  # OpenAPI 3.1, schema object: hints that change no validity
})  # fmt: skip
"""Keywords that say nothing about which values are valid. So do those that begin with `x-` (OpenAPI 3.1, specification extensions)."""

REFUSED = frozenset({
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$dynamicAnchor", "$recursiveRef",
    "$recursiveAnchor", "$vocabulary", "x-guidance",
})  # fmt: skip
"""Keywords that mean something and cannot be enforced; `x-guidance` would switch llguidance's checks off."""

HINTS = {
    "nullable": 'write "type": ["string", "null"] (JSON Schema has no nullable)',
    "uniqueItems": "leave it out, and drop repeated items from the answer",
    "then": "write the cases as anyOf",
    "if": "write the cases as anyOf",
    "not": "say what is allowed instead: enum, pattern, anyOf",
}

DIALECT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(19-09|20-12))/(hyper-)?schema#?")

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # no year 0: Python and SQL have none
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""Formats of RFC 3339 whose patterns in llguidance let through what is none: 29 February of any year, a leap second in any minute."""

MOST_WHOLE = 2**53 - 1
"""llguidance counts in doubles: whole numbers beyond this are rounded, and the ranges of 64 bits are more than it can write."""
INTEGERS = {
    f"{sign}int{bits}": (
        0 if sign else max(-(2 ** (bits - 1)), -MOST_WHOLE),
        min(2 ** (bits if sign else bits - 1) - 1, MOST_WHOLE),
    )
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
"""Formats of integers in OpenAPI's registry, and their ranges."""

Node = dict[str, Any]


def read_json(text: str, what: str) -> Any:
    """Return the value of the JSON TEXT. Raises ConstraintError, which names it as WHAT."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(
            f"{what} is not valid JSON: {error}", hint="check it with: python -m json.tool"
        ) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def enforceable(schema: Any) -> Node:
    """Return SCHEMA (JSON values; it is changed) as one that llguidance enforces wholly.

    Raises ConstraintError for what cannot be enforced, naming keyword and place (a JSON pointer), and for a schema that only an endless
    answer could satisfy.
    """
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        wrong = "allows no answer" if schema is False else f"is {_shown(schema)}"
        raise ConstraintError(f"the schema {wrong}", hint='a schema is a JSON object, as {"type": "object"}')
    root: Node = schema
    _check_dialect(root)
    for key in ("$id", "id", "$schema"):  # the base of references, which are all within the schema, and the dialect
        if isinstance(root.get(key), str):
            del root[key]
    found = _Walk(root)
    found.run()
    found.check_ends()
    return root


def _check_dialect(root: Node) -> None:
    dialect = root.get("$schema", "http://json-schema.org/draft-07/schema#")
    if not isinstance(dialect, str) or not DIALECT.fullmatch(dialect):
        raise ConstraintError(
            f"the schema is written in {_shown(dialect)}", hint="use JSON Schema 2020-12, 2019-09, draft 7, 6 or 4"
        )


class _Walk:
    """Looks at every schema that the root leads to, once; what no reference leads to says nothing."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._seen: dict[int, tuple[Node, str]] = {}
        self._target: dict[int, Any] = {}  # of the $ref of a node

    def run(self) -> None:
        waiting: list[tuple[Any, str]] = [(self._root, "#")]
        while waiting:
            node, place = waiting.pop()
            if isinstance(node, bool):
                continue
            if not isinstance(node, dict):
                raise ConstraintError(
                    f"{_shown(node)} at {place} is no schema", hint="a schema is an object or a boolean"
                )
            if id(node) in self._seen:
                continue
            self._seen[id(node)] = (node, place)
            list(_below(node, place))  # the forms, before they are relied on
            self._check(node, place)
            waiting += _below(node, place)
            if "$ref" in node:
                self._target[id(node)] = self._resolve(node["$ref"], place)
                waiting.append((self._target[id(node)], str(node["$ref"])))

    def _check(self, node: Node, place: str) -> None:
        if node.get("uniqueItems") is False:
            del node["uniqueItems"]
        for keyword in node:
            if keyword in REFUSED or not (keyword in ENFORCED or keyword in ANNOTATIONS or keyword.startswith("x-")):
                raise _refusal(keyword, place)
        if node is not self._root and ("$id" in node or "id" in node):
            raise ConstraintError(f"the schema at {place} has an $id of its own", hint="put all under one root")
        _check_patterns(node, place)
        _check_counts(node, place)
        _check_values(node, place)
        _rewrite_format(node)
        _rewrite_bounds(node, place)
        if isinstance(node.get("oneOf"), list):
            self._rewrite_one_of(node, place)

    def _resolve(self, ref: Any, place: str) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise ConstraintError(
                f"$ref {_shown(ref)} at {place} leads out of the schema",
                hint='only references like "#/$defs/name" are followed',
            )
        node: Any = self._root
        for part in unquote(ref).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")  # RFC 6901, section 4
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise ConstraintError(f"$ref {ref!r} at {place} leads nowhere", hint=f"there is no {part!r}")
        return node

    def _rewrite_one_of(self, node: Node, place: str) -> None:
        """Make oneOf an anyOf where a required property tells its cases apart, as in a union of classes with a discriminator."""
        if "anyOf" in node:
            return
        cases = [
            self._resolve(case["$ref"], place) if set(case) == {"$ref"} else case
            for case in node["oneOf"]
            if isinstance(case, dict)
        ]
        if len(cases) != len(node["oneOf"]) or not all(isinstance(case, dict) for case in cases):
            return
        names: set[str] = set.intersection(*(set(_tags(case)) for case in cases)) if cases else set()
        for name in names:
            values = [value for case in cases for value in _tags(case)[name]]
            if len(values) == len(set(values)):
                node["anyOf"] = node.pop("oneOf")
                return

    def check_ends(self) -> None:
        """Raise ConstraintError where a schema requires itself, so that no answer could ever end."""
        ended: set[int] = set()
        waiting = dict(self._seen)
        while done := [key for key, (node, _) in waiting.items() if self._ends(node, ended)]:
            ended.update(done)
            for key in done:
                del waiting[key]
        if waiting:
            place = min((place for _, place in waiting.values()), key=len)
            raise ConstraintError(
                f"the schema at {place} requires itself: an answer could never end",
                hint="make the property that leads back optional, or let it be null",
            )

    def _ends(self, node: Node, ended: set[int]) -> bool:
        def ends(child: Any) -> bool:
            return not isinstance(child, dict) or id(child) in ended

        if "const" in node or "enum" in node:
            return True
        alternatives = [node[key] for key in ("anyOf", "oneOf") if isinstance(node.get(key), list)]
        required = [*node.get("allOf", ()), self._target.get(id(node))]
        if node.get("type") == "object":
            known = node.get("properties", {})
            required += [known.get(name, node.get("additionalProperties")) for name in node.get("required", ())]
        if node.get("type") == "array" and isinstance(node.get("minItems"), int):
            required += _first_items(node)
        return all(map(ends, required)) and all(any(map(ends, options)) or not options for options in alternatives)


def _below(node: Node, place: str) -> Iterator[tuple[Any, str]]:
    """Yield the schemas directly below NODE with their places."""
    for keyword, value in node.items():
        kind = ENFORCED.get(keyword, "")
        if kind == "schema" or (kind == "schema or list" and not isinstance(value, list)):
            yield value, f"{place}/{keyword}"
        elif kind == "map" and isinstance(value, dict):
            yield from ((child, f"{place}/{keyword}/{name}") for name, child in value.items())
        elif kind and isinstance(value, list):
            yield from ((child, f"{place}/{keyword}/{index}") for index, child in enumerate(value))
        elif kind:
            raise ConstraintError(f"{keyword!r} at {place} is {_shown(value)}", hint="see json-schema.org for its form")


def _refusal(keyword: str, place: str) -> ConstraintError:
    if keyword in REFUSED:
        hint = HINTS.get(keyword, "leave it out, and check the answer for it yourself")
        return ConstraintError(f"the schema keyword {keyword!r} at {place} cannot be enforced", hint=hint)
    close = difflib.get_close_matches(keyword, [*ENFORCED, *ANNOTATIONS], n=1)
    hint = HINTS.get(keyword) or (f"did you mean {close[0]!r}?" if close else "a note of your own is written x-…")
    return ConstraintError(f"unknown schema keyword {keyword!r} at {place}", hint=hint)


def _check_patterns(node: Node, place: str) -> None:
    known = node.get("patternProperties")
    for pattern in (node.get("pattern"), *(known if isinstance(known, dict) else ())):
        if isinstance(pattern, str) and (wrong := set_operation(pattern)):
            raise ConstraintError(
                f"the pattern {pattern!r} at {place} has {wrong!r} inside […], which is read in two ways",
                hint=f"write \\{wrong}",
            )


def set_operation(pattern: str) -> str | None:
    """Return the first thing inside a class of PATTERN that means itself in ECMA-262 and an operation in Rust's regex crate."""
    inside = False
    for match in re.finditer(r"\\.|\[\^?\]?|\]|&&|--|~~", pattern, re.DOTALL):
        found = match.group()
        if not inside:
            inside = found.startswith("[")
        elif found == "]":
            inside = False
        elif found[0] in "[&-~":
            return found[:2] if found[0] != "[" else "["
    return None


def _check_counts(node: Node, place: str) -> None:
    """Raise ConstraintError for a minProperties that repeated names could satisfy: only names in `properties` are kept from repeating."""
    least, required = node.get("minProperties"), node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ConstraintError(f"'required' at {place} is {_shown(required)}", hint="it is a list of property names")
    if isinstance(least, int) and least > len(set(required)) + 1:
        raise ConstraintError(
            f"minProperties {least} at {place} cannot be enforced for properties without names",
            hint="name what must be there in `properties` and `required`",
        )


def _check_values(node: Node, place: str) -> None:
    """Raise ConstraintError for a fixed value with a number that llguidance would round: it counts in doubles."""
    for keyword in ("const", "enum"):
        waiting = [node[keyword]] if keyword in node else []
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
            elif isinstance(value, int | float) and not (abs(value) <= MOST_WHOLE or isinstance(value, float)):
                raise _too_large(value, f"{place}/{keyword}")


def _too_large(value: float, place: str) -> ConstraintError:
    return ConstraintError(
        f"{_shown(value)} at {place} cannot be enforced: numbers are exact up to 2**53",
        hint='let it be a text: {"type": "string", "pattern": "^[0-9]+$"}',
    )


def _rewrite_bounds(node: Node, place: str) -> None:
    """Narrow what llguidance would round, or let through: bounds beyond 2**53, and a whole one that is excluded beside a close one."""
    for sign, least, above in ((1, "minimum", "exclusiveMinimum"), (-1, "maximum", "exclusiveMaximum")):
        for keyword in (least, above):
            bound = node.get(keyword)
            if not isinstance(bound, int | float) or isinstance(bound, bool):
                continue
            if bound * sign > MOST_WHOLE:
                raise _too_large(bound, f"{place}/{keyword}")
            if bound * sign < -MOST_WHOLE:
                node[keyword] = -sign * MOST_WHOLE
    for sign, above, others in (
        (1, "exclusiveMinimum", ("maximum", "exclusiveMaximum")),
        (-1, "exclusiveMaximum", ("minimum", "exclusiveMinimum")),
    ):
        whole: Any = node.get(above)
        limits = [sign * node[other] for other in others if _is_number(node.get(other))]
        if not _is_number(whole) or whole != int(whole) or not limits:
            continue
        room = min(limits) - sign * whole
        if 0 < room < 1 and int(min(limits)) == int(sign * whole):
            # nothing is lost that anybody writes, and doubles have so many digits
            digits = min(9 - math.floor(math.log10(room)), 14 - math.floor(math.log10(abs(whole) or 1)))
            node[above] = round(whole + sign * 10.0**-digits, digits)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rewrite_format(node: Node) -> None:
    """Replace the formats that need more than llguidance does about them."""
    name, kinds = node.get("format"), node.get("type")
    if name in FORMATS:
        del node["format"]
        if "pattern" in node:
            node["allOf"] = [*node.get("allOf", ()), {"pattern": FORMATS[name]}]
        else:
            node["pattern"] = FORMATS[name]
    elif name == "password":  # OpenAPI: a hint to hide what is typed
        del node["format"]
    elif name == "hostname" and isinstance(node.get("maxLength", 253), int):
        node["maxLength"] = min(node.get("maxLength", 253), 253)  # RFC 1123, section 2.1
    elif name in INTEGERS:
        if kinds == "number":
            node["type"] = "integer"
        elif isinstance(kinds, list):
            node["type"] = ["integer" if kind == "number" else kind for kind in kinds]
        low, high = INTEGERS[name]
        for keyword, bound, tighter in (("minimum", low, max), ("maximum", high, min)):
            given = node.get(keyword)
            node[keyword] = tighter(given, bound) if isinstance(given, int | float) else bound


def _first_items(node: Node) -> list[Any]:
    """Return the schemas of the items that a list must have."""
    items = node.get("items")
    first = items if isinstance(items, list) else node.get("prefixItems", [])
    rest = node.get("additionalItems") if isinstance(items, list) else items
    return [*first[: node["minItems"]], *([rest] if node["minItems"] > len(first) else [])]


def _tags(case: Node) -> dict[str, list[str]]:
    """Return the required properties of an object schema whose values are fixed texts, with those."""
    properties, required = case.get("properties"), case.get("required")
    if case.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    found = {}
    for name, value in properties.items():
        fixed = value if isinstance(value, dict) else {}
        values = [fixed["const"]] if "const" in fixed else fixed.get("enum")
        if name in required and isinstance(values, list) and all(isinstance(item, str) for item in values):
            found[name] = values
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
