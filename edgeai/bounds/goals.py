"""What users write of a goal, read and checked: sizes as text, limits that can be met by something, types that there are."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from converters.quantmap import TENSOR_TYPES
from edgeai.bounds.goal import Goal
from edgeai.errors import UsageError
from edgeai.types import check_numbers

__all__ = ["BOUNDS", "check_goal", "parse_size", "type_name"]

BOUNDS = ("target_bytes", "target_bpw", "max_kl", "min_top1", "min_cosine")
"""The fields of a goal of which one must be given."""
EXCLUSIVE = (
    ("target_bytes", "target_bpw", "both say how large the file may be"),
    ("max_kl", "min_cosine", "an embedding model gives vectors and no tokens, any other no vectors"),
    ("min_top1", "min_cosine", "an embedding model gives vectors and no tokens, any other no vectors"),
)
"""Two fields of which only one can be given, and why."""
PREFERENCES = ("quality", "speed")
MOST_BYTES = 2**53
"""Every whole number up to here is a float too, which JSON needs."""
UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}{end}": 1000**power for power, letter in enumerate("KMGT", 1) for end in ("", "B")},
    **{f"{letter}I{end}": 1024**power for power, letter in enumerate("KMGT", 1) for end in ("", "B")},
}
"""Unit in capitals → bytes; those without an i are decimal, as on disks and model hubs."""
SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})")
Rule = tuple[Callable[[Any], bool], str]
Failure = type[UsageError]

RULES: dict[str, Rule] = {
    "target_bytes": (lambda value: 1 <= value <= MOST_BYTES, "at least 1"),
    "target_bpw": (lambda value: 0 < value <= 32, "above 0 and at most 32, such as 4.5"),
    "max_kl": (lambda value: 0 < value < math.inf, "a mean KL in nats above 0, such as 0.02"),
    "min_top1": (lambda value: 0 < value < 1, "between 0 and 1, such as 0.95 for 95 %"),
    "min_cosine": (lambda value: 0 < value < 1, "between 0 and 1, such as 0.995"),
    "rounds": (lambda value: value >= 1, "at least 1"),
    "prefer": (lambda value: value in PREFERENCES, f"one of {', '.join(PREFERENCES)}"),
}
"""Field → what its value must be, in code and in words; None is right where it is the default."""


def parse_size(text: str) -> int:
    """Return the bytes of a size as people write it: `90MB`, `1.2 GB`, `85MiB`, `90M`, `90000000`; raises UsageError."""
    match = SIZE.fullmatch(text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    hint = "write a number and a unit: 90MB, 1.2GB, 85MiB (1 MB is 1000000 bytes, 1 MiB 1048576), or plain bytes"
    if match is None or unit is None:
        raise UsageError(f"{text!r:.60} is not a size", hint=hint)
    count = int(Fraction(match[1]) * unit)
    if not 1 <= count <= MOST_BYTES:
        raise UsageError(f"the size {text!r} is {'too large' if count else 'less than a byte'}", hint=hint)
    return count


def check_goal(goal: Goal, error: Failure = UsageError) -> Goal:
    """Return GOAL with its types as the tables of `converters` name them; raises ERROR for what no search could fulfil."""
    check_numbers(goal, whole=("target_bytes", "rounds"), real=("target_bpw", "max_kl", "min_top1", "min_cosine"))
    for name, (holds, rule) in RULES.items():
        value = getattr(goal, name)
        if not ((value is None and name in BOUNDS) or holds(value)):
            raise error(f"{name} {value!r} is not possible", hint=f"`{name}` must be {rule}")
    given = [name for name in BOUNDS if getattr(goal, name) is not None]
    if not given:
        raise error(
            "no bound is given",
            hint="say how large the file may be, with `target_bytes` or `target_bpw`, or what it must keep, with `max_kl`, `min_top1` or "
            "`min_cosine`",
        )
    for one, other, why in EXCLUSIVE:
        if one in given and other in given:
            raise error(
                f"{one} {getattr(goal, one)!r} and {other} {getattr(goal, other)!r} exclude each other: {why}",
                hint=f"leave `{one}` or `{other}` out",
            )
    only, exclude = (known_types(getattr(goal, name), name, error) for name in ("only", "exclude"))
    check_left(only, exclude, error)
    return replace(goal, only=only, exclude=exclude)


def known_types(names: Iterable[str], where: str, error: Failure) -> tuple[str, ...]:
    """Return NAMES, the types of the field WHERE, each once and in the usual writing."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise error(f"{where} {names!r} is not possible", hint=f"`{where}` must be types, such as q4_k and q6_k")
    return tuple(dict.fromkeys(type_name(name, f"{where}: the type", error) for name in names))


def type_name(name: str, what: str, error: Failure = UsageError) -> str:
    """Return the tensor type NAME as the tables name it; raises ERROR for one that libggml cannot write. WHAT begins the message."""
    word = name.strip().upper().replace("-", "_")
    if word in TENSOR_TYPES:
        return word
    close = difflib.get_close_matches(word, TENSOR_TYPES, n=1)
    meant = f"did you mean {close[0].lower()!r}? " if close else ""
    known = ", ".join(kind.lower() for kind in TENSOR_TYPES)
    raise error(f"{what} {name!r} is not known", hint=f"{meant}one tensor has one of: {known}")


def check_left(only: tuple[str, ...], exclude: tuple[str, ...], error: Failure) -> None:
    """Raise ERROR where a type is both wanted and not, and where none is left."""
    if both := [kind.lower() for kind in only if kind in exclude]:
        raise error(
            f"the type {both[0]!r} is in only and in exclude",
            hint=f"take {both[0]} out of `only` or out of `exclude`",
        )
    if not set(TENSOR_TYPES) - set(exclude):
        raise error(f"exclude names all {len(TENSOR_TYPES)} types that there are", hint="leave some out of `exclude`")
