"""What users write of a goal: sizes to the byte, and no goal that nothing could meet."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.quantmap import TENSOR_TYPES
from edgeai.bounds.goal import Goal
from edgeai.bounds.goals import BOUNDS, MOST_BYTES, check_goal, parse_size, type_name
from edgeai.errors import RecipeError, UsageError

GOAL = Goal(max_kl=0.02)
DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
REAL = ("target_bpw", "max_kl", "min_top1", "min_cosine")
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("90MB", 90_000_000),
        ("90M", 90_000_000),
        ("90 mb", 90_000_000),
        (" 1.5GB ", 1_500_000_000),
        ("85MiB", 89_128_960),
        ("85Mi", 89_128_960),
        ("12kB", 12_000),
        ("12KiB", 12_288),
        ("90000000", 90_000_000),
        ("1B", 1),
        ("0.1MB", 100_000),
        ("1.1TB", 1_100_000_000_000),
    ],
)
def test_a_size_is_the_bytes_that_its_unit_says(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@given(st.integers(1, 10**6), st.integers(0, 999), st.sampled_from([*DECIMAL.items(), *BINARY.items()]))
def test_a_size_with_decimals_is_exact_and_rounded_down(whole: int, part: int, unit: tuple[str, int]) -> None:
    name, nbytes = unit
    assert parse_size(f"{whole}.{part:03}{name}") == math.floor(Fraction(whole * 1000 + part, 1000) * nbytes)


@pytest.mark.parametrize(
    "text",
    ["", "MB", "90 potatoes", "-90MB", "90,5MB", "1e3", "0x10", "9 0MB", "90MBB", "90iB", "٣MB", "nan", "inf", "1.MB", ".5MB"],
)  # fmt: skip
def test_what_is_no_size_is_named_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(text))) as caught:
        parse_size(text)
    assert "90MB" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["0MB", "0.4B", "9" * 15 + "GB", "1" * 5000])
def test_a_size_that_no_file_has_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_the_largest_size_is_the_largest_whole_number_of_a_float() -> None:
    assert parse_size(f"{MOST_BYTES}") == 2**53
    with pytest.raises(UsageError, match="too large"):
        parse_size(f"{MOST_BYTES + 1}")


@pytest.mark.parametrize(
    "goal",
    [
        GOAL,
        Goal(target_bytes=1),
        Goal(target_bpw=32),
        Goal(target_bpw=0.001),
        Goal(min_top1=0.95, max_kl=0.1),
        Goal(min_cosine=0.99),
        Goal(target_bytes=10**9, max_kl=0.02, prefer="speed", rounds=1),
    ],
)
def test_a_goal_that_can_be_met_stays_as_it_is(goal: Goal) -> None:
    assert check_goal(goal) == goal


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in REAL for value in (0, -1.0, math.nan, math.inf, True, "1")),
        *((name, 1.0) for name in ("min_top1", "min_cosine")),
        ("min_top1", 95),
        ("target_bpw", 32.01),
        ("target_bytes", 0),
        ("target_bytes", 1.5),
        ("target_bytes", 2**53 + 1),
        ("rounds", 0),
        ("rounds", None),
        ("prefer", "fast"),
        ("prefer", None),
    ],
)  # fmt: skip
def test_a_value_that_no_file_could_meet_is_named(field: str, value: Any) -> None:
    goal = Goal(**{"max_kl": 0.02, field: value}) if field != "min_cosine" else Goal(min_cosine=value)
    with pytest.raises(UsageError) as caught:
        check_goal(goal)
    assert f"{field} {value!r}" in caught.value.message
    assert field in (caught.value.hint or "")


def test_without_a_bound_there_is_no_goal() -> None:
    with pytest.raises(UsageError, match="no bound") as caught:
        check_goal(Goal(prefer="speed", only=("Q4_K",)))
    assert all(f"`{name}`" in (caught.value.hint or "") for name in BOUNDS)


@pytest.mark.parametrize(
    ("one", "other"), [("target_bytes", "target_bpw"), ("max_kl", "min_cosine"), ("min_top1", "min_cosine")]
)
def test_two_bounds_that_exclude_each_other_are_both_named(one: str, other: str) -> None:
    values = {"target_bytes": 10**8, "target_bpw": 4.5, "max_kl": 0.02, "min_top1": 0.9, "min_cosine": 0.99}
    with pytest.raises(UsageError, match=f"{one} .* and {other} ") as caught:
        check_goal(Goal(**{one: values[one], other: values[other]}))
    assert one in (caught.value.hint or "")


def test_types_are_read_in_any_writing_and_kept_once() -> None:
    found = check_goal(replace(GOAL, only=("q4_k", "Q4-K", " iq4_nl "), exclude=["tq1_0"]))
    assert found.only == ("Q4_K", "IQ4_NL")
    assert found.exclude == ("TQ1_0",)


@given(st.sampled_from(TENSOR_TYPES))
def test_every_type_that_libggml_writes_is_known(kind: str) -> None:
    assert type_name(kind.lower(), "the type") == kind


@pytest.mark.parametrize(("word", "meant"), [("q4_k_m", "q4_k"), ("q4k", "q4_k"), ("iq4_n", "iq4_nl"), ("f17", "f16")])
@pytest.mark.parametrize("field", ["only", "exclude"])
def test_an_unknown_type_is_named_with_what_was_meant(field: str, word: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(word))) as caught:
        check_goal(replace(GOAL, **{field: ("q6_k", word)}))
    assert repr(meant) in (caught.value.hint or "")
    assert field in caught.value.message


@pytest.mark.parametrize("kind", ["Q8_K", "I8", "F64", ""])
def test_a_type_that_no_tensor_is_written_in_is_refused(kind: str) -> None:
    with pytest.raises(UsageError):
        check_goal(replace(GOAL, only=(kind,)))


@pytest.mark.parametrize("value", ["q4_k", (1,), (None,)])
def test_types_are_a_list_of_texts(value: Any) -> None:
    with pytest.raises(UsageError, match="only"):
        check_goal(replace(GOAL, only=value))


def test_a_type_is_not_wanted_and_unwanted_at_once() -> None:
    with pytest.raises(UsageError, match="'q4_k' is in only and in exclude"):
        check_goal(replace(GOAL, only=("q4_k", "q6_k"), exclude=("Q4_K",)))


def test_some_type_is_left() -> None:
    check_goal(replace(GOAL, exclude=TENSOR_TYPES[1:]))
    with pytest.raises(UsageError, match="all"):
        check_goal(replace(GOAL, exclude=TENSOR_TYPES))


def test_the_error_is_that_of_the_caller() -> None:
    for goal in (Goal(), Goal(max_kl=-1.0), replace(GOAL, only=("x",)), replace(GOAL, exclude=TENSOR_TYPES)):
        with pytest.raises(RecipeError):
            check_goal(goal, RecipeError)
