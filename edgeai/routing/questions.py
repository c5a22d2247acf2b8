"""Questions with known answers, one JSON object a line: read, checked, and used to grade what a model says.

{"prompt": "What is 2 + 3?", "answer": 5}
{"messages": [{"role": "user", "content": "…"}], "answer": ["Paris", "paris, france"], "match": "contains"}
{"prompt": "Hot or cold: fire?", "answer": "hot", "choices": ["hot", "cold"], "strong_correct": true}
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgeai.errors import UsageError
from edgeai.types import Message, Prompt

__all__ = ["Match", "Question", "is_right", "read_questions"]

Match = Literal["exact", "contains", "number", "choice", "regex"]
KEYS = ("prompt", "messages", "answer", "match", "choices", "strong_correct")
MAX_LINE_CHARS = 1 << 20
NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question and the answers that are right, any of them. `choices`: the forms that an answer may have, () for any.

    `strong_correct`: whether a stronger model was right, None where nobody asked it. `line` is its place in the file.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    match: Match
    choices: tuple[str, ...] = ()
    strong_correct: bool | None = None
    line: int = 0

    @property
    def text(self) -> str:
        """What the user wrote last."""
        return self.messages[-1]["content"]

    def prompt(self, *, chat: bool) -> Prompt:
        """Return it for a model: messages for one that has a chat template, else its texts as one to be continued."""
        return self.messages if chat else "\n".join(message["content"] for message in self.messages)


def is_right(question: Question, said: str) -> bool:
    """Whether SAID, the answer of a model, is one of those that are right.

    `exact`: the same text, but for spaces around it. `contains`: it stands there as whole words, in any case. `number`: the last number
    that was said. `choice`: the first of the choices that was said. `regex`: it is found.
    """
    return any(GRADERS[question.match](question, answer, said) for answer in question.answers)


def _contains(_question: Question, answer: str, said: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", said, re.IGNORECASE) is not None


def _number(_question: Question, answer: str, said: str) -> bool:
    found = NUMBER.findall(said)
    return bool(found) and math.isclose(_value(found[-1]), _value(answer), rel_tol=1e-9, abs_tol=1e-12)


def _value(text: str) -> float:
    return float(text.strip().replace(",", ""))


def _choice(question: Question, answer: str, said: str) -> bool:
    places = []
    for choice in question.choices:
        found = re.search(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", said, re.IGNORECASE)
        if found is not None:
            places.append((found.start(), -len(choice), choice))
    return bool(places) and min(places)[2].strip().lower() == answer.strip().lower()


GRADERS: Mapping[Match, Callable[[Question, str, str], bool]] = {
    "exact": lambda _question, answer, said: said.strip() == answer.strip(),
    "contains": _contains,
    "number": _number,
    "choice": _choice,
    "regex": lambda _question, answer, said: re.search(answer, said) is not None,
}


# ---- reading


def read_questions(path: Path) -> list[Question]:
    """Return the questions in the file PATH. Raises UsageError with the line of the first that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(path)!r} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror or error}", hint="check its path") from error
    return [_read(line, number, path.name) for number, line in enumerate(lines, start=1) if line.strip()]


def _read(line: str, number: int, name: str) -> Question:
    where = f"line {number} of {name!r}"
    if len(line) > MAX_LINE_CHARS:
        raise UsageError(f"{where} has {len(line)} characters", hint=f"at most {MAX_LINE_CHARS} are read")
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", hint='{"prompt": "…", "answer": "…"}, one a line') from error
    if not isinstance(given, dict):
        raise UsageError(f"{where} is no object: {line!r:.60}", hint='{"prompt": "…", "answer": "…"}, one a line')
    for key in given:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(KEYS)}"
            raise UsageError(f"{where} has {key!r}, which is not known", hint=hint)
    choices = _texts(given.get("choices", []), f"choices of {where}")
    answers = _texts(given.get("answer"), f"answer of {where}")
    if not answers or not all(answer.strip() for answer in answers):
        raise UsageError(f"{where} has no answer", hint='add "answer": a text, a number, or a list of them')
    strong = given.get("strong_correct")
    if not isinstance(strong, bool | None):
        raise UsageError(f"strong_correct {strong!r} of {where} is not possible", hint="it must be true or false")
    match = _match(given.get("match"), answers, choices, where)
    return Question(
        messages=_messages(given, where), answers=answers, match=match, choices=choices, strong_correct=strong, line=number
    )  # fmt: skip


def _messages(given: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    hint = 'give either "prompt": "…" or "messages": [{"role": "user", "content": "…"}]'
    if ("prompt" in given) == ("messages" in given):
        raise UsageError(f"{where} has {'both a' if 'prompt' in given else 'neither'} prompt and messages", hint=hint)
    if "prompt" in given:
        if not isinstance(given["prompt"], str) or not given["prompt"].strip():
            raise UsageError(f"prompt {given['prompt']!r:.60} of {where} is not possible", hint=hint)
        return (Message(role="user", content=given["prompt"]),)
    messages = given["messages"]
    good = isinstance(messages, list) and messages and all(_is_message(message) for message in messages)
    if not good or messages[-1]["role"] != "user":
        raise UsageError(f"messages {messages!r:.60} of {where} are not possible", hint=f"{hint}, the last of the user")
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and value["role"] in ("system", "user", "assistant")
        and isinstance(value["content"], str)
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """Return VALUE, a text, a number or a list of them, as texts."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for item in listed:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise UsageError(f"{item!r:.60} in {where} is not possible", hint="texts and numbers can be answers")
    return tuple(item if isinstance(item, str) else repr(item) for item in listed)


def _match(given: Any, answers: Sequence[str], choices: Sequence[str], where: str) -> Match:
    numbers = all(NUMBER.fullmatch(answer.strip()) for answer in answers)
    if given is None:
        given = "choice" if choices else "number" if numbers else "contains"
    if given not in get_args(Match):
        raise UsageError(
            f"match {given!r} of {where} is not possible", hint=f"it must be one of: {', '.join(get_args(Match))}"
        )
    if given == "number" and not numbers:
        raise UsageError(f"the answer {answers[0]!r} of {where} is no number", hint='use "match": "contains"')
    if given == "choice" and not {one.strip().lower() for one in answers} <= {one.strip().lower() for one in choices}:
        raise UsageError(f"the answer {answers[0]!r} of {where} is none of its choices", hint="add it to them")
    if given == "regex":
        for answer in answers:
            try:
                re.compile(answer)
            except re.error as error:
                raise UsageError(
                    f"the regex {answer!r} of {where} is wrong: {error}", hint="see Python's re"
                ) from error
    matched: Match = given
    return matched
