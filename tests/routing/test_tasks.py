"""What kind of task a text is, and how hard: rules that know several languages, and weights that are computed as they were fitted."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.routing import marks, tasks
from edgeai.routing.tasks import Weights, difficulty, fitted, rank, score, task_of, terms

KINDS = [
    ("Write a Python function that reverses a list", "code"),
    ("Écris une fonction qui trie une liste en Python", "code"),
    ("用Python写一个函数", "code"),
    ("SELECT name FROM users WHERE id = 3; why is this slow?", "code"),
    ("Traceback (most recent call last):\n  KeyError: 'a'", "code"),
    ("What does this do?\n```\nx = [i for i in y]\n```", "code"),
    ("What is 12 * 7?", "maths"),
    ("What is 3 times 4?", "maths"),
    ("Wie viel ist 3 mal 4?", "maths"),
    ("I have been there 3 times", "chat"),
    ("Solve 3x + 5 = 20", "maths"),
    ("Evaluate \\frac{1}{2} of the sum", "maths"),
    ("Berechne 15 Prozent von 80", "maths"),
    ("计算 25 乘以 4", "maths"),
    ("Реши уравнение x + 2 = 5", "maths"),
    ("A train travels 60 miles in 2 hours. How fast does it go?", "maths"),
    ("Extract all names from the following email: …", "extraction"),
    ("Return the invoice number and the due date as JSON", "extraction"),
    ("Classify this review as positive or negative: great food", "extraction"),
    ("Extrahiere die Namen aus dem Text", "extraction"),
    ("Find all dates mentioned in the text below", "extraction"),
    ("Hello, how are you?", "chat"),
    ("Why is the sky blue?", "chat"),
    ("Schreibe ein Gedicht über den Herbst", "chat"),
    ("Summarise this: the war began in 1914 and ended in 1918", "chat"),
    ("From my point of view this is good", "chat"),
    ("My class starts at 9", "chat"),
    ("It costs $20, or $30 with tax", "chat"),
    ("", "chat"),
]


@pytest.mark.parametrize(("text", "kind"), KINDS)
def test_texts_are_of_the_kind_that_a_reader_says(text: str, kind: str) -> None:
    assert task_of(text) == kind


def test_without_marks_everything_is_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "LEAST", 1e9)
    assert {task_of(text) for text, _ in KINDS} == {"chat"}


def test_a_long_text_is_known_by_its_end() -> None:
    assert task_of("word " * 100_000 + "Extract all names from the text above.") == "extraction"


@pytest.mark.parametrize(
    "unit", ["1", "1+", " ", "{\n", "how many ", "find the ", "$a", "return ", "class a", "\\frac", "(", "x="]
)
def test_no_text_takes_long(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    began = time.process_time()
    task_of(text)
    difficulty(text)
    assert time.process_time() - began < 0.2  # measured: 5 ms; a pattern that is quadratic takes seconds


def test_every_mark_weighs_something_and_compiles() -> None:
    assert set(marks.MARKS) == {"code", "maths", "extraction"}
    assert all(weight > 0 for found in marks.MARKS.values() for weight, _ in found)


# ---- difficulty


@given(st.text(max_size=300))
def test_difficulty_is_a_share_and_the_same_each_time(text: str) -> None:
    assert 0 <= difficulty(text) <= 1
    assert difficulty(text) == difficulty(text)


def test_terms_are_words_digits_marks_and_pairs() -> None:
    assert terms("Is it 12?") == {"is", "it", "1", "2", "?", "is it", "it 1", "1 2", "2 ?"}


def test_a_score_is_the_weights_of_a_unit_vector() -> None:
    assert score("a b z", {"a": 1.0, "b": 3.0, "c": 9.0}) == pytest.approx(4 / 2**0.5)
    assert score("", {"a": 1.0}) == 0.0


def test_a_rank_is_linear_between_quantiles() -> None:
    quantiles = [0.0, 1.0, 3.0]
    assert [rank(value, quantiles) for value in (-1, 0, 0.5, 1, 2, 3, 9)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_longer_text_is_harder_and_so_is_one_with_heavier_words() -> None:
    quantiles = [0.0, 1.0, 2.0]
    known = Weights({"prove": 1.0}, quantiles, [0.0, 5.0, 10.0], quantiles)
    assert difficulty("x" * 99, known) > difficulty("x" * 9, known)
    assert difficulty("prove", known) > difficulty("write", known)


def test_the_weights_that_come_along_are_small_name_their_source_and_rise() -> None:
    record = json.loads(tasks.FILE.read_bytes())
    assert tasks.FILE.stat().st_size < 100_000
    assert "lm-sys/RouteLLM" in record["source"]
    assert "Apache-2.0" in record["source"]
    for quantiles in (fitted().of_terms, fitted().of_length, fitted().of_sum):
        assert all(low < high for low, high in itertools.pairwise(quantiles))
