"""Options that take several numbers, written as llama-bench takes them."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

__all__ = ["numbers", "parse"]

MOST = 64
_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?:([+*])([0-9]{1,9}))?)?")


def numbers(low: int, high: int) -> Callable[..., tuple[int, ...] | None]:
    """Return an option's callback that reads `512`, `512,1024`, `1-4`, `1-9+2` (steps of 2), `1-16*2` (doubling).

    The numbers are whole ones from LOW to HIGH, each once, in their order.
    """

    def read(_ctx: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        return None if value is None else parse(value, low, high)

    return read


def parse(value: str, low: int, high: int) -> tuple[int, ...]:
    """Return the numbers of VALUE. Raises click.BadParameter for what is none, too many, or not from LOW to HIGH."""
    found: list[int] = []
    for part in value.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter(f"{value!r} is not a list of numbers like 512, 128,256, 1-4 or 1-16*2")
        first, last = int(match[1]), int(match[2] or match[1])
        found += _range(first, last, match[3] or "+", int(match[4] or 1))
    if not found or len(set(found)) > MOST:
        raise click.BadParameter(f"{value!r} names {f'more than {MOST} numbers' if found else 'no number'}")
    if wrong := [number for number in found if not low <= number <= high]:
        raise click.BadParameter(f"{wrong[0]} is not between {low} and {high}")
    return tuple(dict.fromkeys(found))


def _range(first: int, last: int, sign: str, step: int) -> list[int]:
    """Return the numbers from FIRST to LAST; a step that leads nowhere ends it, and MOST + 1 of them are too many anyway."""
    found: list[int] = []
    while first <= last and len(found) <= MOST:
        found.append(first)
        after = first + step if sign == "+" else first * step
        if after <= first:
            break
        first = after
    return found
