"""The form of an answer from all that a caller may give, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from edgeai.engines.constraint import check
from edgeai.engines.fake import FakeEngine
from edgeai.errors import ConstraintError, UsageError
from edgeai.model import Model
from edgeai.schema import constraint_of, schema_of_argument
from edgeai.schema_types import schema_of_type
from edgeai.shorthand import schema_of_shorthand
from edgeai.types import Constraint

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ENVELOPE = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}


INT = {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}


def schema_in(found: Constraint | None) -> Any:
    assert found is not None
    assert found.kind == "json_schema"
    return json.loads(found.source)


def field(text: str) -> Any:
    """The schema of the one field of a shorthand."""
    (schema,) = schema_of_shorthand(text)["properties"].values()
    return schema


# ---- one function for all forms


@pytest.mark.parametrize(
    "given",
    [
        SCHEMA,
        json.dumps(SCHEMA),
        ENVELOPE,
        ENVELOPE["json_schema"],
        json.dumps(ENVELOPE),
        {"type": "json_object", "schema": SCHEMA},
    ],
)
def test_a_schema_is_found_in_every_wrapping(given: Any, tmp_path: Path) -> None:
    assert schema_in(constraint_of(schema=given)) == SCHEMA
    path = tmp_path / "é schema.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given), encoding="utf-8-sig")
    assert schema_in(constraint_of(schema=path)) == SCHEMA
    assert schema_in(constraint_of(schema=schema_of_argument(str(path)))) == SCHEMA


def test_response_formats_are_those_of_openai() -> None:
    assert schema_in(constraint_of(response_format=ENVELOPE)) == SCHEMA
    assert schema_in(constraint_of(response_format={"type": "json_object"})) == {"type": "object"}
    assert constraint_of(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_object", "strict": True},
        {"type": "text", "schema": SCHEMA},
        "json",
    ],
)
def test_other_response_formats_are_refused(given: Any) -> None:
    with pytest.raises(ConstraintError, match="response_format"):
        constraint_of(response_format=given)


def test_the_other_forms_keep_their_text() -> None:
    assert constraint_of(regex="a+") == Constraint(kind="regex", source="a+")
    assert constraint_of(grammar="start: /a/") == Constraint(kind="lark", source="start: /a/")
    assert constraint_of(choices=["é", "n"]) == Constraint(kind="choices", source=json.dumps(["é", "n"]))
    assert constraint_of() is None


def test_an_answer_has_one_form() -> None:
    with pytest.raises(UsageError, match="schema and regex"):
        constraint_of(schema=SCHEMA, regex="a")
    with pytest.raises(UsageError, match="constraint"):
        Model(FakeEngine()).config(constraint=Constraint(kind="regex", source="a"), regex="b")


@pytest.mark.parametrize(
    "given",
    [
        {"schema": True},
        {"schema": 3},
        {"schema": "{"},
        {"schema": ""},
        {"schema": {"a": {1, 2}}},
        {"schema": {"a": float("nan")}},
        {"schema": object},
        {"choices": "yes"},
        {"choices": [1]},
        {"regex": 3},
        {"grammar": b"x"},
        {"schema": Path("/nowhere/x.json")},
    ],
)
def test_what_is_no_form_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError):
        constraint_of(**given)


def test_a_model_takes_the_forms_as_options() -> None:
    config = Model(FakeEngine()).config(schema="name, age int", max_tokens=9)
    assert config.constraint is not None
    assert (config.max_tokens, config.constraint.kind) == (9, "json_schema")
    assert Model(FakeEngine()).config(schema=None, choices=None).constraint is None


@pytest.mark.parametrize("name", ["no.json", "a/b", "x.schema"])
def test_a_file_that_is_not_there_is_not_taken_for_a_field(name: str) -> None:
    with pytest.raises(ConstraintError, match="no schema file"):
        schema_of_argument(name)


def test_an_argument_longer_than_a_file_name_is_fields() -> None:
    text = ", ".join(f"field{number} int" for number in range(999))
    assert schema_of_argument(text) == text


# ---- fields in a line


def test_fields_are_required_in_their_order_and_no_other_may_come() -> None:
    schema = schema_of_shorthand("name, age int, score float, ok bool")
    assert schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": INT,
            "score": {"type": "number"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "score", "ok"],
        "additionalProperties": False,
    }
    assert list(schema["properties"]) == schema["required"]


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("a: what it is", {"type": "string", "description": "what it is"}),
        ("a int: in years: whole", INT | {"description": "in years: whole"}),
        ("a list[str]", {"type": "array", "items": {"type": "string"}}),
        ("a list[int]{3}", {"type": "array", "items": INT, "minItems": 3, "maxItems": 3}),
        ("a list[int]{1,3}", {"type": "array", "items": INT, "minItems": 1, "maxItems": 3}),
        (
            "a list[list[x|y]]{,3}",
            {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
                "maxItems": 3,
            },
        ),
        ("kind cat|dog", {"type": "string", "enum": ["cat", "dog"]}),
        ("kind: cat|dog", {"type": "string", "enum": ["cat", "dog"]}),
        ("kind: cat | dog", {"type": "string", "enum": ["cat", "dog"]}),
        ("kind: a cat | or a dog", {"type": "string", "description": "a cat | or a dog"}),
        ("a int|null", {"anyOf": [INT, {"type": "null"}]}),
        ("a date", {"type": "string", "format": "date"}),
        ("größe number", {"type": "number"}),
    ],
)
def test_types_of_fields(text: str, schema: dict[str, Any]) -> None:
    assert field(text) == schema
    check(Constraint(kind="json_schema", source=json.dumps(schema_of_shorthand(text))))


def test_lines_may_hold_commas_and_brackets_make_lists() -> None:
    schema = schema_of_shorthand("name: first, then last\n\n age int\n")
    assert schema["properties"]["name"]["description"] == "first, then last"
    assert schema_of_shorthand("[name, tags list[str]{1,2}, n int]")["items"]["required"] == ["name", "tags", "n"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a itn", "did you mean 'int'"),
        ("a foo", "types are"),
        ("a, a", "twice"),
        ("", "no field"),
        (", ,", "no field"),
        (":x", "no field"),
        ("a list", "list"),
        ("a list[foo]", "foo"),
        ("a x|int", "'int'"),
        ('{"a"', "no field"),
        ("a b c", "b c"),
    ],
)
def test_a_field_that_is_none_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        schema_of_shorthand(text)
    assert named in f"{caught.value} {caught.value.hint}"


# ---- classes


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Part:
    name: str
    color: Color
    sub: list[Part] = dataclasses.field(default_factory=list)


class Order(TypedDict):
    id: int
    parts: list[Part]
    when: datetime.date | None
    state: Literal["new", "done"]
    notes: NotRequired[dict[str, str]]


def test_classes_are_objects_whose_defaults_may_be_left_out() -> None:
    schema = schema_of_type(Order)
    order, part = schema["$defs"]["Order"], schema["$defs"]["Part"]
    assert order["required"] == ["id", "parts", "when", "state"]
    assert (part["required"], part["properties"]["sub"]["items"]) == (["name", "color"], {"$ref": "#/$defs/Part"})
    assert part["properties"]["color"] == {"enum": ["red", "blue"]}
    check(Constraint(kind="json_schema", source=json.dumps(schema)))


@pytest.mark.parametrize(
    ("kind", "schema"), [(int, {"type": "integer"}), (list[float], {"type": "array", "items": {"type": "number"}})]
)
def test_plain_types_are_schemas(kind: Any, schema: dict[str, Any]) -> None:
    assert schema_in(constraint_of(schema=kind)) == schema


def test_a_class_that_says_its_schema_is_believed() -> None:
    class Pydantic:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return SCHEMA

    assert schema_in(constraint_of(schema=Pydantic)) == SCHEMA


@pytest.mark.parametrize("kind", [object, set[int], dict[int, str], complex, list])
def test_types_without_a_schema_are_refused(kind: Any) -> None:
    with pytest.raises(ConstraintError, match="no type"):
        schema_of_type(kind)
