"""Random JSON schemas of all that can be enforced."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "né", "日本", 'q"\n', "a b", "", "ab"])
PATTERNS = st.sampled_from(
    ["^a+$", "b", "^[a-z]{2,4}$", "^(cat|dog)", "[^a]$", "^\\d{3}-\\d{2}$", "^\\w+@\\w+\\.com$", "^x|y$", "é", '^"+$']
)
FORMATS = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri", "duration"])
VALUES = st.sampled_from([None, True, False, 0, 1, -3, 1.5, "", "a", "b", 'q"\\\n', "日本", [], [1, "a"], {}, {"a": 1}])
SIZES = st.integers(0, 4)


def some(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any choice of KEYWORDS."""
    return st.fixed_dictionaries({}, optional=keywords)


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


def typed(kind: str, **keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return merged(st.just({"type": kind}), some(**keywords))


BOUNDS = st.one_of(st.integers(-200, 200), st.floats(-50, 50).map(lambda value: round(value, 2)))
LEAVES = st.one_of(
    typed("string", minLength=SIZES, maxLength=st.integers(2, 9)),
    typed("string", pattern=PATTERNS, maxLength=st.integers(4, 20)),
    typed("string", format=FORMATS),
    typed("integer", minimum=BOUNDS, maximum=BOUNDS, multipleOf=st.sampled_from([1, 3, 7, 10])),
    typed("number", minimum=BOUNDS, exclusiveMaximum=BOUNDS),
    typed("number", exclusiveMinimum=BOUNDS, maximum=BOUNDS, multipleOf=st.sampled_from([0.5, 0.01, 2])),
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"type": ["integer", "boolean"]}]
    ),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.just({}),
    st.booleans(),
    st.just({"$ref": "#/$defs/one"}),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(NAMES, inner, max_size=3)
    return st.one_of(
        typed(
            "array",
            items=inner,
            minItems=st.integers(0, 2),
            maxItems=st.integers(1, 4),
            prefixItems=st.lists(inner, min_size=1, max_size=2),
        ),
        typed("object", properties=properties, required=st.lists(NAMES, max_size=2), additionalProperties=inner),
        typed(
            "object",
            patternProperties=st.dictionaries(st.sampled_from(["^a", "b$", "^[cd]"]), inner, max_size=2),
            additionalProperties=inner,
        ),
        typed("object", properties=properties, minProperties=st.integers(0, 2), maxProperties=st.integers(0, 3)),
        some(properties=properties, required=st.lists(NAMES, max_size=1), items=inner, minLength=SIZES, minimum=BOUNDS),
        st.lists(inner, min_size=1, max_size=3).map(lambda cases: {"anyOf": cases}),
        st.lists(inner, min_size=1, max_size=2).map(lambda cases: {"allOf": cases}),
        st.lists(inner, min_size=1, max_size=2).map(lambda cases: {"oneOf": cases}),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of up to about a dozen parts, with a definition that references lead to."""
    body = st.recursive(LEAVES, _nested, max_leaves=8).map(
        lambda schema: schema if isinstance(schema, dict) else {"anyOf": [schema]}
    )
    return st.tuples(body, LEAVES.filter(lambda schema: schema != {"$ref": "#/$defs/one"})).map(
        lambda parts: {**parts[0], "$defs": {"one": parts[1]}}
    )
