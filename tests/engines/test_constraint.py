"""Masks hold an answer to its form whatever the logits say, and what they could not hold it to is refused by name."""

from __future__ import annotations

import json
import random
import re
import threading
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer, TokenizerWrapper
from llguidance.numpy import apply_token_bitmask_inplace

from edgeai.engines.constraint import Grammars, TokenMask, check, incomplete, narrowed
from edgeai.engines.schema_check import set_operation
from edgeai.errors import ConstraintError
from edgeai.types import Constraint
from tests.engines.masked_walk import ENDS, VOCABULARY, answer, grammars
from tests.engines.real_schemas import REAL
from tests.engines.schema_reference import valid
from tests.engines.schemas import schemas

GRAMMARS = grammars()
LETTER = {bytes([byte]): byte for byte in range(256)}


def of_schema(schema: Any) -> Constraint:
    return Constraint(kind="json_schema", source=schema if isinstance(schema, str) else json.dumps(schema))


def mask_of(kind: Any, source: str) -> TokenMask:
    return GRAMMARS.compile(Constraint(kind=kind, source=source))


def allowed(mask: TokenMask) -> set[int]:
    logits = np.zeros(len(VOCABULARY.tokens), np.float32)
    mask.apply(logits)
    return set(np.flatnonzero(logits == 0).tolist())


def feed(mask: TokenMask, text: str) -> TokenMask:
    for byte in text.encode():
        mask.accept(byte)
    return mask


# ---- schemas


@pytest.mark.parametrize("name", REAL)
def test_random_logits_give_answers_of_the_schema(name: str) -> None:
    ended = 0
    for seed in range(6):
        text, whole = answer(GRAMMARS.compile(of_schema(REAL[name])), seed)
        if whole:
            ended += 1
            assert valid(json.loads(text), REAL[name]), text
            assert GRAMMARS.compile(of_schema(REAL[name])).allows(text)
    assert ended >= 3


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas(), st.integers(0, 2**20))
def test_whatever_the_schema_an_answer_follows_it_or_it_is_refused(schema: dict[str, Any], seed: int) -> None:
    try:
        mask = GRAMMARS.compile(of_schema(schema))
    except ConstraintError:
        return
    text, whole = answer(mask, seed)
    if whole:
        assert valid(json.loads(text), schema)


def test_without_the_mask_the_first_wrong_token_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenMask, "apply", lambda *_: None)
    with pytest.raises(ConstraintError, match="cannot go on"):
        answer(GRAMMARS.compile(of_schema(REAL["person"])), seed=1)


def test_without_mask_and_check_the_answers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = GRAMMARS.compile(of_schema(REAL["person"]))
    monkeypatch.setattr(TokenMask, "apply", lambda *_: None)
    monkeypatch.setattr(TokenMask, "accept", lambda *_: None)
    text, _ = answer(mask, seed=1)
    assert not mask.allows(text)
    assert incomplete(mask, text, "stop")[0].code == "incomplete-output"


REFUSED = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "a"}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {}}},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "unevaluatedItems": {"unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#x"},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "string"},
    "propertis": {"type": "object", "propertis": {}},
    "nullable": {"type": "string", "nullable": True},
    "minLenght": {"type": "object", "properties": {"a": {"minLenght": 3}}},
    "minProperties": {"type": "object", "minProperties": 2},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "foo": {"type": "string", "format": "foo"},
    "strin": {"type": "strin"},
    "anyOf": {"anyOf": {"type": "string"}},
    "required": {"type": "object", "required": "a"},
    "#/properties/b": {"properties": {"a": {}, "b": 3}},
    "http://example.com/s": {"$ref": "http://example.com/s"},
    "#/$defs/none": {"$ref": "#/$defs/none"},
    "requires itself": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "requires itself: an answer": {
        "anyOf": [{"$ref": "#/$defs/loop"}, {}],
        "$defs": {"loop": {"$ref": "#/$defs/loop"}},
    },
    "greater than": {"type": "integer", "minimum": 3, "maximum": 2},
    "minLength (5)": {"type": "string", "minLength": 5, "maxLength": 3},
    "look-around": {"type": "string", "pattern": "^(?=a)b$"},
    "backreferences": {"type": "string", "pattern": "(a)\\1"},
    "unclosed": {"type": "string", "pattern": "["},
    "'&&'": {"type": "string", "pattern": "^[a-z&&b]$"},
    "http://example.com/dialect": {"$schema": "http://example.com/dialect"},
    "anyOf is empty": {"enum": []},
    "multiple": {"type": "integer", "multipleOf": 0},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(named: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(named)):
        check(of_schema(REFUSED[named]))
    with pytest.raises(ConstraintError, match=re.escape(named)):
        GRAMMARS.compile(of_schema(REFUSED[named]))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "false", '{"type": NaN}', "[" * 100_000, '"x"', '{"type": "string"} x', "\ud800"],
)
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ConstraintError):
        check(of_schema(text))


def test_a_schema_that_is_too_large_is_refused() -> None:
    with pytest.raises(ConstraintError, match="1200010 characters"):
        check(of_schema('{"a": "' + "x" * 1_200_000 + '"} '))


def test_a_deep_schema_is_refused_or_enforced_but_breaks_nothing() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    with pytest.raises(ConstraintError, match="recursion"):
        check(of_schema(schema))


@pytest.mark.parametrize(
    "keywords",
    [
        {
            "title": "t",
            "description": "d",
            "default": 1,
            "examples": [1],
            "deprecated": True,
            "readOnly": True,
            "$comment": "c",
        },
        {"contentMediaType": "text/html", "contentEncoding": "base64"},
        {"$id": "https://example.com/s", "$schema": "https://json-schema.org/draft/2020-12/schema", "$anchor": "top"},
        {"x-order": 1, "xml": {}, "externalDocs": {}},
        {"uniqueItems": False},
        {"$defs": {"unused": {"not": {}}}},
    ],
)
def test_annotations_change_nothing(keywords: dict[str, Any]) -> None:
    assert GRAMMARS.compile(of_schema({"type": "integer", **keywords})).allows("12")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "string", "format": "date"},
            ['"2024-02-29"', '"2000-02-29"', '"0400-02-29"'],
            ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"'],
        ),
        (
            {"type": "string", "format": "time"},
            ['"23:59:59Z"', '"00:00:00.5+01:00"'],
            ['"12:00:60Z"', '"24:00:00Z"', '"12:00:00"'],
        ),
        ({"type": "string", "format": "date", "pattern": "^2"}, ['"2024-01-31"'], ['"1999-01-31"']),
        ({"type": "string", "format": "hostname"}, ['"a.b"'], ['"' + ".".join(["a" * 60] * 5) + '"']),
        ({"type": "integer", "format": "uint8"}, ["0", "255"], ["-1", "256"]),
        ({"type": "integer", "format": "int32", "minimum": 5}, ["5", str(2**31 - 1)], ["4", str(2**31)]),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}},
            ['{"a":"x"}', '{"b":2}'],
            ['{"\\u0061":2}', '{"a":2}', '{"a": "x"}'],
        ),
        ({"type": "string"}, ['"\\n\\"\\\\"', '"日😀"'], ['"\\ud800"', '"\\u0041"', '"\n"', '"\x00"']),
        (
            {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a"]},
            ['{"b":1,"a":2}', '{"a":1}'],
            ['{"a":1,"b":2}', "{}"],
        ),
        ({"type": "string", "pattern": "^\\d\\w$"}, ['"1a"'], ['"٣a"', '"1é"']),
    ],
)
def test_edges_of_schemas(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    mask = GRAMMARS.compile(of_schema(schema))
    assert [mask.allows(text) for text in good + bad] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("[a&&b]", "&&"), ("[a--b]", "--"), ("[[:alpha:]]", "["), ("[a~~b]", "~~"), (r"[\[a-z&]&&", None), ("a--b", None)],
)
def test_operations_in_classes_are_found(pattern: str, found: str | None) -> None:
    assert set_operation(pattern) == found


# ---- regex, grammar, choices


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [
            r"\d{3}-\d{4}",
            r"[A-Z][a-z]+( [A-Z][a-z]+)*",
            r"(yes|no)[.!]?",
            r"a{2,4}b*",
            r"[^\d]{3}",
            r".{0,5}é",
            r"^x|y$",
            r"\s\w+",
        ]
    ),
    st.integers(0, 999),
)
def test_an_answer_matches_its_regex_in_python_too(regex: str, seed: int) -> None:
    text, whole = answer(mask_of("regex", regex), seed)
    newer = any(unicodedata.category(char) == "Cn" for char in text)  # than the Unicode of this Python
    assert not whole or newer or re.fullmatch(regex, text)


@pytest.mark.parametrize(
    ("regex", "plain"),
    [(r"\d", "[0-9]"), (r"[\d.]", "[0-9.]"), (r"[^\d]", r"[^\d]"), (r"\\d", r"\\d"), (r"[\]\d]\D", r"[\]0-9]\D")],
)
def test_classes_are_narrowed_where_that_is_less(regex: str, plain: str) -> None:
    assert narrowed(regex) == plain


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(?=a)", "look-around"),
        (r"(a)\1", "backreferences"),
        ("a(", "unclosed group"),
        ("", "empty"),
        (r"[^\s\S]", "no text"),
        ("(" * 999 + ")" * 999, "nest"),
        ("a^b", "lookarounds"),
    ],
)
def test_a_regex_that_cannot_be_enforced_says_why(regex: str, reason: str) -> None:
    with pytest.raises(ConstraintError, match=reason) as caught:
        mask_of("regex", regex)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "choices",
    [["yes", "no"], ["a", "ab", "abc"], ["日本", "日", "😀"], ['q"\n', "\\", "\x7f\u2028"], ["1", "11", "1 1"]],
)
def test_every_choice_can_be_the_answer_and_nothing_else(choices: list[str]) -> None:
    found = {answer(mask_of("choices", json.dumps(choices)), seed) for seed in range(80)}
    assert {text for text, whole in found if whole} == set(choices)


def test_a_thousand_choices_that_begin_one_another_are_all_allowed() -> None:
    mask = mask_of("choices", json.dumps([f"choice {number}" for number in range(1000)]))
    assert all(mask.allows(f"choice {number}") for number in range(1000))
    assert not mask.allows("choice 1000")


@pytest.mark.parametrize("source", ["[]", '[""]', "[1]", "{}", "", "yes"])
def test_choices_that_are_none_are_refused(source: str) -> None:
    with pytest.raises(ConstraintError):
        mask_of("choices", source)


def test_a_grammar_is_followed() -> None:
    grammar = 'start: "sum: " expr\nexpr: NUMBER | "(" expr "+" expr ")"\nNUMBER: /[0-9]{1,3}/'
    for seed in range(20):
        text, whole = answer(mask_of("lark", grammar), seed)
        inner = text.removeprefix("sum: ")
        while "(" in inner:
            inner, before = re.sub(r"\([0-9]{1,3}\+[0-9]{1,3}\)", "1", inner), inner
            assert inner != before
        assert not whole or re.fullmatch("[0-9]{1,3}", inner)


def test_a_schema_inside_a_grammar_is_held_to_the_same_rules() -> None:
    schema = '{"type": "object", "properties": {"d": {"format": "date", "type": "string"}}}'
    grammar = f'start: "%json {{" /x/ "}}" %json {schema} # %json {{'
    mask = mask_of("lark", grammar)
    assert mask.allows('%json {x}{"d":"2024-02-29"}')
    assert not mask.allows('%json {x}{"d":"2023-02-29"}')
    assert not mask.allows('%json {x}{"\\u0064":1}')
    with pytest.raises(ConstraintError, match="propertis"):
        mask_of("lark", 'start: %json {"propertis": {}}')
    with pytest.raises(ConstraintError, match="x-guidance"):
        mask_of("lark", 'start: %json {"x-guidance": {"lenient": true}, "not": {}}')


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "empty"),
        ('begin: "x"', "start"),
        ('start: "x', "lexer"),
        ("start: y", "y"),
        ("start: <|nope|>", "nope"),
        ("start: @other", "other"),
        ("start: t\nt[temperature=0.3]: /a/", "temperature"),
        ("start: %json {", "JSON"),
        ("start: A\nA: /[0-9]/ & /[a-z]/", "no text"),
    ],
)
def test_a_grammar_that_cannot_be_enforced_says_why(grammar: str, reason: str) -> None:
    with pytest.raises(ConstraintError, match=reason):
        mask_of("lark", grammar)


# ---- masks


class Letters:
    """A vocabulary of a and b."""

    eos_token_id, bos_token_id = 2, None

    def __init__(self) -> None:
        self.tokens, self.special_token_ids = [b"a", b"b", b"\xff<end>"], [2]

    def __call__(self, text: bytes) -> list[int]:
        return [self.tokens.index(bytes([byte])) for byte in text]


def test_a_mask_is_applied_as_llguidance_says() -> None:
    source = random.Random(5)
    for name in ("tree by reference", "person", "any JSON"):
        mask = GRAMMARS.compile(of_schema(REAL[name]))
        for _ in range(30):
            bits = np.frombuffer(mask._matcher.compute_bitmask(), np.int32).copy()
            expected = np.random.default_rng(1).standard_normal(len(VOCABULARY.tokens)).astype(np.float32)
            given = expected.copy()
            apply_token_bitmask_inplace(expected, bits)
            mask.apply(given)
            np.testing.assert_array_equal(given, expected)
            mask.accept(source.choice(np.flatnonzero(given > -np.inf).tolist()))
            if mask.finished or mask._matcher.is_stopped():
                break


def test_logits_beyond_the_vocabulary_are_masked() -> None:
    logits = np.zeros(len(VOCABULARY.tokens) + 40, np.float32)
    mask_of("regex", "a").apply(logits)
    assert np.flatnonzero(logits == 0).tolist() == [LETTER[b"a"]]


def test_every_end_marker_may_end_a_whole_answer_and_none_ends_another() -> None:
    mask = mask_of("regex", "a+")
    assert not allowed(mask) & set(ENDS)
    assert allowed(feed(mask, "a")) >= set(ENDS)
    for end in ENDS:
        ended = feed(mask_of("regex", "a+"), "a")
        ended.accept(end)
        assert ended.whole


def test_an_answer_that_only_can_end_is_finished_without_its_end_marker() -> None:
    mask = GRAMMARS.compile(of_schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 1}))
    assert [(feed(mask, part).finished, mask.whole) for part in ("[", "true", "]")] == [
        (False, False),
        (False, False),
        (True, True),
    ]


def test_what_is_forced_is_what_the_schema_leaves_no_choice_in() -> None:
    mask = GRAMMARS.compile(of_schema(REAL["weather call"]))
    forced = mask.forced()
    text = b"".join(VOCABULARY.tokens[token] for token in forced)
    assert text in (b'{"location":', b'{"location":"')  # the last quote may be part of a longer token
    for token in forced:
        mask.accept(token)
    assert len(allowed(mask)) > 1


def test_a_half_character_inside_a_text_must_be_completed() -> None:
    mask = GRAMMARS.compile(of_schema({"type": "string"}))
    for byte in b'"' + "日".encode()[:2]:
        mask.accept(byte)
    assert allowed(mask) == set(range(0x80, 0xC0))


def test_end_markers_inside_a_text_are_not_allowed() -> None:
    mask = feed(GRAMMARS.compile(of_schema({"type": "string"})), '"abc')
    assert not allowed(mask) & set(ENDS)
    assert mask.allows('"<end><turn>"')


def test_logits_that_ban_all_that_is_allowed_end_in_an_error() -> None:
    mask = mask_of("regex", "a")
    with pytest.raises(ConstraintError, match="cannot go on"):
        mask.accept(LETTER[b"b"])


def test_a_vocabulary_that_cannot_write_it_is_an_error_and_no_loop() -> None:
    poor = Grammars(lambda: LLTokenizer(TokenizerWrapper(Letters())))
    with pytest.raises(ConstraintError, match="no text"):
        poor.compile(Constraint(kind="regex", source="x+"))
    dead_end = poor.compile(Constraint(kind="regex", source="[ab](x|y)"))
    dead_end.accept(0)
    with pytest.raises(ConstraintError, match="cannot go on"):
        dead_end.apply(np.zeros(3, np.float32))


def test_threads_share_one_vocabulary_and_their_answers_do_not_mix() -> None:
    built = []

    def build() -> Any:
        built.append(threading.get_ident())
        return GRAMMARS.tokenizer

    shared, found = Grammars(build), {}

    def run(number: int) -> None:
        schema = {"type": "array", "items": {"const": number % 3}, "minItems": 2, "maxItems": 5}
        found[number] = (answer(shared.compile(of_schema(schema)), number)[0], schema)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(valid(json.loads(text), schema) for text, schema in found.values())
    assert len(found) == 12


def test_the_text_of_a_cut_answer_is_told_from_a_whole_one() -> None:
    mask = GRAMMARS.compile(of_schema(REAL["person"]))
    assert incomplete(mask, '{"name":"A","age":3}', "length") == ()
    assert [incomplete(mask, text, "length")[0].code for text in ("", '{"name":"A","age":3', "{}")] == [
        "incomplete-output"
    ] * 3
    assert incomplete(None, "anything", "length") == ()


@pytest.mark.parametrize(
    "schema",
    [
        {"const": -(2**63)},
        {"enum": [1, {"a": [2**53]}]},
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3},
        {"type": "number", "exclusiveMaximum": -(10**30)},
    ],
)
def test_a_number_that_would_be_rounded_is_refused_by_its_place(schema: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError, match=r"at #/\w+ cannot be enforced: numbers are exact up to 2\*\*53"):
        GRAMMARS.compile(of_schema(schema))


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["0", "-5", str(2**53 - 1)], [str(2**53 + 1)]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}, ["0.1", "0.00001"], ["0", "0.0", "0.2"]),
        ({"type": "number", "minimum": -13.1, "exclusiveMaximum": -13.0}, ["-13.1", "-13.01"], ["-13", "-13.0"]),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.0000001}, ["1.00000005"], ["1", "1.0"]),
        ({"type": ["integer", "null"], "format": "int32"}, ["null", "2147483647"], ["2147483648", "9" * 98]),
        ({"type": "number", "format": "int8"}, ["127"], ["128", "1.5"]),
    ],
)
def test_ranges_hold_to_the_last_digit(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    mask = GRAMMARS.compile(of_schema(schema))
    assert [text for text in right if not mask.allows(text)] == []
    assert [text for text in wrong if mask.allows(text)] == []


def test_a_number_that_was_cut_is_another_number() -> None:
    mask = GRAMMARS.compile(of_schema({"type": "integer"}))
    assert incomplete(mask, "10", "stop") == ()
    assert [notice.code for notice in incomplete(mask, "10", "length")] == ["incomplete-output"]


def test_a_choice_with_half_a_character_is_refused() -> None:
    with pytest.raises(ConstraintError, match="not valid Unicode"):
        GRAMMARS.compile(Constraint(kind="choices", source='["\\ud800"]'))
