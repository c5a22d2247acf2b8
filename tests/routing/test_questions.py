"""Questions with known answers: what is read, how an answer is graded, and the line of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeai.errors import UsageError
from edgeai.routing.questions import Question, is_right, read_questions


def read(tmp_path: Path, *lines: dict[str, Any] | str) -> list[Question]:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return read_questions(path)


GRADED: list[tuple[dict[str, Any], str, bool]] = [
    ({"answer": 5}, "2 + 3 = 5", True),
    ({"answer": 5}, "5 is what 2 and 4 give", False),
    ({"answer": 5}, "It is 5.0.", True),
    ({"answer": -1234.5}, "about -1,234.5", True),
    ({"answer": "1,000"}, "1000", True),
    ({"answer": 5}, "10-5", True),
    ({"answer": 5}, "no idea", False),
    ({"answer": "Paris"}, "The capital is PARIS.", True),
    ({"answer": "Paris"}, "Parisian", False),
    ({"answer": ["NYC", "New York"]}, "It is new york!", True),
    ({"answer": "C++"}, "I like C++ most", True),
    ({"answer": "Paris", "match": "exact"}, " Paris\n", True),
    ({"answer": "Paris", "match": "exact"}, "paris", False),
    ({"answer": r"^\d{4}$", "match": "regex"}, "1914", True),
    ({"answer": r"^\d{4}$", "match": "regex"}, "in 1914", False),
    ({"answer": "hot", "choices": ["hot", "cold"]}, "hot, not cold", True),
    ({"answer": "hot", "choices": ["hot", "cold"]}, "cold, not hot", False),
    ({"answer": "hot", "choices": ["hot", "hot tub"]}, "hot tub", False),
    ({"answer": "hot", "choices": ["hot", "cold"]}, "warm", False),
]


@pytest.mark.parametrize(("row", "said", "right"), GRADED)
def test_answers_are_graded_as_the_row_says(row: dict[str, Any], said: str, right: bool, tmp_path: Path) -> None:
    (question,) = read(tmp_path, {"prompt": "?", **row})
    assert is_right(question, said) is right


def test_a_row_becomes_messages_and_empty_lines_are_nothing(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    one, other = read(
        tmp_path, {"prompt": "Hello", "answer": "x"}, "", {"messages": messages, "answer": 3, "strong_correct": True}
    )
    assert one.prompt(chat=True) == ({"role": "user", "content": "Hello"},)
    assert one.prompt(chat=False) == "Hello"
    assert other.prompt(chat=True) == tuple(messages)
    assert (other.text, other.line, other.match, other.strong_correct) == ("Hi", 3, "number", True)


WRONG: list[tuple[dict[str, Any] | str, str]] = [
    ("{", "line 2 of 'q.jsonl' is not JSON"),
    ("[1]", "line 2 of 'q.jsonl' is no object"),
    ({"prompt": "?", "anwser": 1}, "line 2 of 'q.jsonl' has 'anwser', which is not known"),
    ({"prompt": "?"}, "line 2 of 'q.jsonl' has no answer"),
    ({"prompt": "?", "answer": []}, "has no answer"),
    ({"prompt": "?", "answer": " "}, "has no answer"),
    ({"prompt": "?", "answer": True}, "True in answer of line 2"),
    ({"answer": 1}, "has neither prompt and messages"),
    ({"prompt": "?", "messages": [], "answer": 1}, "has both a prompt and messages"),
    ({"prompt": "", "answer": 1}, "prompt '' of line 2"),
    ({"messages": [], "answer": 1}, "messages \\[\\] of line 2"),
    ({"messages": [{"role": "assistant", "content": "x"}], "answer": 1}, "of line 2 of 'q.jsonl' are not possible"),
    ({"messages": [{"role": "user"}], "answer": 1}, "are not possible"),
    ({"prompt": "?", "answer": 1, "match": "fuzzy"}, "match 'fuzzy' of line 2"),
    ({"prompt": "?", "answer": "a", "match": "number"}, "the answer 'a' of line 2 of 'q.jsonl' is no number"),
    ({"prompt": "?", "answer": "a", "choices": ["b"]}, "is none of its choices"),
    ({"prompt": "?", "answer": "(", "match": "regex"}, "the regex '\\(' of line 2"),
    ({"prompt": "?", "answer": 1, "strong_correct": "yes"}, "strong_correct 'yes' of line 2"),
]


@pytest.mark.parametrize(("row", "said"), WRONG)
def test_what_is_wrong_is_an_error_with_its_line(row: dict[str, Any] | str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read(tmp_path, {"prompt": "?", "answer": 1}, row)
    assert error.value.hint


def test_a_file_that_is_no_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_questions(tmp_path / "b.jsonl")
