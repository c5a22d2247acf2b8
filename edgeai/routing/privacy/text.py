"""A text as the detectors read it: one form for digits, dashes and spaces of every script, and the way back to the original characters."""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from edgeai.routing.privacy.stems import stems_of
from edgeai.routing.privacy.tables import Table

__all__ = ["View", "views"]

T = TypeVar("T")

SLICE_CHARS = 16_384
LEFT_CHARS, RIGHT_CHARS = 256, 2048
"""What of its surroundings a slice of a long text is read with: more than any context word is away, and than any bounded match is long."""

INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\u20e3\ufe00-\ufe0f\ufeff"
"""Characters without width, and the two that make a keycap of a digit."""
SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58\ufe63\uff0d"
DOTS = "\u00b7\u2024\u3002\uff61\u30fb\uff65"

RUN = re.compile(r"[0-9](?=(?:[ \t()./\-+]{0,4}[0-9]){6})[0-9]*+(?:[ \t()./\-+]{1,4}+[0-9]++)*+")
"""A run of at least seven digits on one line with what may separate the groups of a number. Linear: each part is possessive."""


ANCHOR = re.compile(r"[0-9](?:(?<=[^\W\d_].)|(?<=[^\W\d_][ \-].))[0-9]")
"""Two digits right behind a letter, or behind one space or dash after it."""


@dataclass(slots=True)
class View:
    """A slice of a text in its plain form. `text` and `lower` have the same length; `origin` is where each character was in the slice.

    `base` is where the slice begins in the whole text, and only what begins from `first` up to `last` (in `text`) belongs to it.
    """

    text: str
    lower: str
    base: int = 0
    first: int = 0
    last: int = 0
    origin: Sequence[int] | None = None
    tables: Sequence[Table] = ()
    whole: str = ""
    _runs: list[tuple[int, int]] | None = field(default=None)
    _words: list[int] | None = field(default=None)
    _active: dict[str, Any] = field(default_factory=dict)
    _stems: dict[str, list[int]] = field(default_factory=dict)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The places of long runs of digits, which most numbers that matter are in."""
        if self._runs is None:
            self._runs = [match.span() for match in RUN.finditer(self.text)]
        return self._runs

    @property
    def words(self) -> list[int]:
        """Where words begin that digits follow directly or after one separator, as in most numbers with letters."""
        if self._words is None:
            text, found = self.text, []
            for match in ANCHOR.finditer(text):
                place = match.start() - (not text[match.start() - 1].isalpha())
                least = max(0, place - 7)
                while place > least and text[place - 1].isalpha():
                    place -= 1
                if not (place and (text[place - 1].isalnum() or text[place - 1] in "_.")):
                    found.append(place)
            self._words = found
        return self._words

    def says(self, words: str) -> bool:
        """Whether a stem of the pattern WORDS is anywhere in this view or in the headings of a table that reaches into it."""
        return bool(self._spots(words)) or any(
            stem in heading for table in self.tables for heading in table.headings for stem in stems_of(words)
        )

    def near(self, words: str, start: int, end: int) -> bool:
        """Whether a stem of the pattern WORDS begins between START and END."""
        spots = self._spots(words)
        index = bisect_left(spots, start)
        return index < len(spots) and spots[index] < end

    def _spots(self, words: str) -> list[int]:
        """Return where in this view the stems of the pattern WORDS begin."""
        if words not in self._stems:
            found: list[int] = []
            for stem in stems_of(words):
                place = self.lower.find(stem)
                while place >= 0:
                    found.append(place)
                    place = self.lower.find(stem, place + 1)
            self._stems[words] = sorted(found)
        return self._stems[words]

    def once(self, key: str, find: Callable[[], T]) -> T:
        """Return what FIND gives, found once for this view by KEY."""
        if key not in self._active:
            self._active[key] = find()
        return cast(T, self._active[key])

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Return where the characters START to END of this view are in the whole text."""
        if self.origin is None:
            return self.base + start, self.base + end
        return self.base + self.origin[start], self.base + self.origin[end - 1] + 1

    def before(self, start: int, count: int) -> str:
        """Return up to COUNT characters before START, in lower case."""
        return self.lower[max(0, start - count) : start]

    def after(self, end: int, count: int) -> str:
        """Return up to COUNT characters from END on, in lower case."""
        return self.lower[end : end + count]

    def column(self, start: int) -> str:
        """Return the heading, in lower case, of the table's column that START is in; empty outside of a table."""
        if not self.tables:
            return ""
        place = self.place(start, start + 1)[0]
        index = bisect_left(self.tables, place, key=lambda table: table.start) - 1
        return self.tables[index].heading(self.whole, place) if index >= 0 else ""


def views(text: str, tables: Sequence[Table] = ()) -> Iterator[View]:
    """Yield TEXT in slices that overlap, so that nothing at a border is lost and a caller can look at the clock between them."""
    length = len(text)
    for begin in range(0, max(length, 1), SLICE_CHARS):
        end = min(begin + SLICE_CHARS, length)
        left, right = max(0, begin - LEFT_CHARS), min(length, end + RIGHT_CHARS)
        yield _view(text, left, begin, end, right, tables)


def _view(whole: str, left: int, begin: int, end: int, right: int, tables: Sequence[Table]) -> View:
    raw = whole[left:right]
    origin: list[int] | None = None
    first, last = begin - left, end - left
    if raw.isascii():
        text, lower = raw, raw.lower()
    else:
        if _invisible().search(raw):
            gone = _gone()
            origin = [index for index, character in enumerate(raw) if ord(character) not in gone]
            first, last = bisect_left(origin, first), bisect_left(origin, last)
        text = raw.translate(_plain())
        lower = text.lower()
        if len(lower) != len(text):
            lower = "".join(small if len(small := character.lower()) == 1 else character for character in text)
    return View(text=text, lower=lower, base=left, first=first, last=last, origin=origin, tables=tables, whole=whole)


@functools.cache
def _invisible() -> re.Pattern[str]:
    return re.compile(f"[{INVISIBLE}]")


@functools.cache
def _gone() -> frozenset[int]:
    return frozenset(code for code in range(0x10000) if _invisible().match(chr(code)))


@functools.cache
def _plain() -> dict[int, str | None]:
    """Return what becomes of each character that has a plainer form: another digit, dash or space, or none at all."""
    table: dict[int, str | None] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table.update(dict.fromkeys(map(ord, SPACES), " "))
    table.update(dict.fromkeys(map(ord, DASHES), "-"))
    table.update(dict.fromkeys(map(ord, DOTS), "."))
    table.update({0xFE6B: "@", 0x2044: "/", 0x2215: "/", 0x0130: "I", 0xFE55: ":", 0x207A: "+"})
    for code in (*range(0x0660, 0xABFA), *range(0xFF10, 0xFF1A), *range(0x104A0, 0x1FBFA)):
        digit = unicodedata.decimal(chr(code), None)
        if digit is not None:
            table[code] = str(digit)
    table.update(dict.fromkeys(_gone()))
    return table
