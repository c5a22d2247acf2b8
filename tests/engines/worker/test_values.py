"""What travels between the processes arrives as what it was, and nothing else arrives at all."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai import errors
from edgeai.engines.worker.values import DATACLASSES, BrokenValue, from_json, to_json
from edgeai.options import LoadOptions
from edgeai.placement import Placement, Share
from edgeai.plan import Plan
from edgeai.types import Chunk, Constraint, GenerationConfig, Notice, Timings, TokenLogprob, Usage


def travel(value: Any) -> Any:
    raw: list[bytes] = []
    text = json.dumps(to_json(value, raw))
    return from_json(json.loads(text), memoryview(b"".join(raw)))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary()
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.dictionaries(st.sampled_from(["tuple", "map", "error", "Plan"]), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_values_arrive_as_what_they_were(value: Any) -> None:
    assert travel(value) == value


@pytest.mark.parametrize("path", ["/a/é 模型 x.gguf", "relative", "/odd/\udcff"])
def test_paths_arrive_even_with_bytes_that_are_no_text(path: str) -> None:
    assert travel(Path(path)) == Path(path)


@pytest.mark.parametrize("shape", [(0, 384), (2, 3), (), (5,)])
def test_arrays_arrive_with_shape_and_type_and_can_be_written_to(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = travel((array, "beside", array[..., None]))
    assert np.array_equal(found[0], array)
    assert np.array_equal(found[2], array[..., None])
    assert found[0].dtype == np.float32
    found[0][...] = 1


def test_a_number_of_numpy_is_a_number() -> None:
    assert travel([np.int64(3), np.float32(0.5)]) == [3, 0.5]


FULL = (
    GenerationConfig(
        max_tokens=3, seed=1, stop=("a", "b"), logprobs=2, logit_bias={5: -100.0}, adapters=(("x", 0.5),),
        constraint=Constraint(kind="choices", source='["a"]'), max_seconds=1.5,
    ),
    LoadOptions(ctx=64, adapters={"x": Path("/a/b.gguf")}, draft=Path("/d.gguf"), device="cpu"),
    Plan(
        engine="llama.cpp", device="cpu", gpu_layers=0, context=64, batch=64, threads=1, kv_type="f16", extra_bufts=True,
        memory_bytes=1, fits=True, placement=Placement(shares=(Share(device="CPU", layers=3),)), tensor_split=(0.5, 0.5),
        correction={"CPU": 1.5}, why=("because",), notices=(Notice(code="a", message="b"),),
    ),
    Chunk(
        text="é", finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2),
        timings=Timings(load_s=0.1, ttft_s=None, prompt_tok_s=1.0, gen_tok_s=None, total_s=2.0),
        logprobs=(TokenLogprob(id=1, text="a", logprob=-0.5, top=((1, "a", -0.5), (2, "b", -1.0))),),
    ),
)  # fmt: skip


@pytest.mark.parametrize("value", FULL, ids=lambda value: type(value).__name__)
def test_dataclasses_arrive_equal_and_of_the_same_types(value: Any) -> None:
    found = travel(value)
    assert found == value
    for field in fields(value):
        assert type(getattr(found, field.name)) is type(getattr(value, field.name)), field.name


def test_every_dataclass_with_defaults_arrives() -> None:
    for kind in DATACLASSES.values():
        if all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(kind)):  # type: ignore[arg-type]
            assert travel(kind()) == kind()


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "TokenizerMismatch"])
def test_every_error_arrives_as_itself_with_its_hint(name: str) -> None:
    error = getattr(errors, name)("it has 'x'", hint="do y")
    error.extra = (1, "more")
    found = travel(error)
    assert type(found) is type(error)
    assert (str(found), found.hint, found.exit_code, vars(found)) == (str(error), "do y", error.exit_code, vars(error))


def test_the_fields_of_an_error_arrive() -> None:
    assert travel(errors.Busy("x", retry_after_s=7.5)).retry_after_s == 7.5
    assert travel(errors.IncompleteOutput("x", text='{"a')).text == '{"a'


def test_an_error_arrives_even_with_a_field_that_cannot_travel() -> None:
    error = errors.DoesNotFit("x", hint="y")
    error.odd, error.even = object(), 2  # type: ignore[attr-defined]
    assert vars(travel(error)) == {"message": "x", "hint": "y", "even": 2}


def test_an_error_of_another_make_arrives_as_its_base_and_says_where_it_happened() -> None:
    class Odd(errors.ContextExceeded):
        pass

    assert type(travel(Odd("x"))) is errors.ContextExceeded
    try:
        [][1]
    except IndexError as error:
        found = travel(error)
    assert type(found) is IndexError
    assert any("test_values.py" in note for note in found.__notes__)


def test_an_unknown_error_is_named() -> None:
    class Strange(Exception):
        pass

    assert (type(travel(Strange("x"))), str(travel(Strange("x")))) == (RuntimeError, "Strange: x")


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), 1j])
def test_what_may_not_travel_is_refused_at_home(value: object) -> None:
    with pytest.raises(TypeError):
        to_json(value, [])


@pytest.mark.parametrize(
    "broken",
    [
        {"Popen": {"args": "true"}}, {"Path": {}}, {"Literal": {}}, {"read": 1}, {"_take": 1}, {"__init__": []}, {}, {"tuple": 1},
        {"tuple": [], "map": []}, {"map": [1]}, {"map": [[[], 1]]}, {"bytes": 10}, {"bytes": -1}, {"array": ["O", [1], 8]},
        {"array": ["<f4", [3], 4]}, {"array": ["<f4"]}, {"GenerationConfig": {"temperature": -1}}, {"Notice": {"code": "x"}},
        {"Notice": {"code": "x", "message": "y", "other": 1}}, {"error": {}}, {"error": {"kinds": []}}, {"path": 3},
    ],
    ids=str,
)  # fmt: skip
def test_json_that_is_no_value_of_ours_is_broken(broken: Any) -> None:
    with pytest.raises(BrokenValue):
        from_json(broken, memoryview(b"\0" * 8))
