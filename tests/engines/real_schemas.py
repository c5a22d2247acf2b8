"""Schemas as they are met: of APIs, forms, extraction and tool calls, written anew; some with the marks of the tools that make them."""

from __future__ import annotations

from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))


def fields(required: list[str] | None = None, /, *, more: Any = False, **properties: Any) -> dict[str, Any]:
    """An object of PROPERTIES, all required unless said otherwise."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": more}


REAL: dict[str, dict[str, Any]] = {
    "person": fields(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 130}),
    "sentiment": fields(
        label={"enum": ["positive", "negative", "neutral"]}, confidence={"type": "number", "minimum": 0, "maximum": 1}
    ),
    "weather call": fields(location=STRING, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    "optional fields": fields(["id"], id=INTEGER, note=STRING, tag=STRING),
    "nullable": fields(
        middle_name={"type": ["string", "null"]},
        died={"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    ),
    "nested address": fields(
        user=fields(
            name=STRING, address=fields(street=STRING, zip={"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"})
        )
    ),
    "order lines": fields(
        id={"type": "string", "format": "uuid"},
        lines={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": fields(sku=STRING, count={"type": "integer", "exclusiveMinimum": 0}),
        },
    ),
    "price in cents": fields(amount={"type": "number", "multipleOf": 0.01, "minimum": 0}, currency={"const": "EUR"}),
    "event": fields(start={"type": "string", "format": "date-time"}, end={"type": "string", "format": "date-time"}),
    "opening hours": fields(
        days={"type": "array", "items": {"enum": ["mo", "tu", "we"]}, "maxItems": 3},
        at={"type": "string", "format": "time"},
    ),
    "contact": fields(email={"type": "string", "format": "email"}, site={"type": "string", "format": "uri"}),
    "host": fields(
        ip={"oneOf": [{"type": "string", "format": "ipv4"}, {"type": "null"}]}, v6={"type": "string", "format": "ipv6"}
    ),
    "duration": fields(took={"type": "string", "format": "duration"}, host={"type": "string", "format": "hostname"}),
    "phone": {"type": "string", "pattern": "^\\+[1-9][0-9]{6,14}$"},
    "semantic version": {"type": "string", "pattern": "^(0|[1-9]\\d*)\\.(0|[1-9]\\d*)\\.(0|[1-9]\\d*)$"},
    "color": {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
    "point tuple": {"type": "array", "prefixItems": [NUMBER, NUMBER], "items": False, "minItems": 2},
    "matrix": {
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": INTEGER},
    },
    "string map": {"type": "object", "additionalProperties": STRING, "maxProperties": 3},
    "map of numbers by pattern": {
        "type": "object",
        "patternProperties": {"^x_": NUMBER},
        "additionalProperties": False,
    },
    "open object": fields(["kind"], kind={"const": "open"}, more=True),
    "tree by reference": {
        "$defs": {
            "node": fields(
                ["value"], value=INTEGER, children={"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}}
            )
        },
        "$ref": "#/$defs/node",
    },
    "linked list": fields(value=INTEGER, next={"anyOf": [{"type": "null"}, {"$ref": "#"}]}),
    "draft 7 definitions": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"positive": {"type": "integer", "minimum": 1}},
        **fields(width={"$ref": "#/definitions/positive"}, height={"$ref": "#/definitions/positive"}),
    },
    "pydantic model": {
        "title": "Ticket",
        "description": "A support ticket.",
        "$defs": {"Priority": {"enum": ["low", "high"], "title": "Priority", "type": "string"}},
        **fields(
            ["title", "priority"],
            title={"title": "Title", "type": "string", "maxLength": 20},
            priority={"$ref": "#/$defs/Priority"},
            labels={"type": "array", "items": STRING, "default": [], "maxItems": 2, "title": "Labels"},
        ),
    },
    "pydantic union with a discriminator": {
        "$defs": {
            "Cat": fields(kind={"const": "cat", "type": "string"}, lives=INTEGER),
            "Dog": fields(kind={"const": "dog", "type": "string"}, good=BOOLEAN),
        },
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
    },
    "tool calls": {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {
            "anyOf": [
                fields(tool={"const": "search"}, query=STRING),
                fields(tool={"const": "open"}, line={"type": "integer", "minimum": 1}),
            ]
        },
    },
    "zod enum and literal": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **fields(role={"type": "string", "enum": ["a", "b"]}, ok={"const": True}),
    },
    "inheritance by allOf": {
        "allOf": [
            {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
            {"type": "object", "properties": {"name": STRING}, "required": ["name"], "maxProperties": 2},
        ]
    },
    "bounded integers": fields(
        month={"type": "integer", "minimum": 1, "maximum": 12},
        offset={"type": "integer", "minimum": -5, "exclusiveMaximum": 5},
    ),
    "bounded text": {"type": "string", "minLength": 3, "maxLength": 5},
    "int32 of OpenAPI": {"type": "integer", "format": "int32"},
    "names in Unicode": fields(**{"名前": STRING, "größe": NUMBER, "emoji 😀": BOOLEAN, 'quote"': INTEGER}),
    "values in Unicode": {"enum": ["ja", "nein", "vielleicht…", "日本", "😀", 'say "hi"\n']},
    "any JSON": {},
    "mixed enum": {"enum": [1, "one", None, True, 1.5, [1], {"a": "b"}]},
    "no additional, none required": fields([], a=STRING, b=INTEGER),
    "quiz": fields(
        questions={
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": fields(
                text=STRING,
                answers={"type": "array", "minItems": 2, "maxItems": 4, "items": STRING},
                correct={"type": "integer", "minimum": 0, "maximum": 3},
            ),
        }
    ),
}
