"""Telephone numbers: those that say so by their form, and bare ones where a word beside them does."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from edgeai.routing.privacy.context import BEFORE_CHARS, COUNTED, NO_PHONE, PHONE, PHONE_BEHIND, PHONE_CLOSE, named
from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.text import View

__all__ = ["find_phones"]

LEAST_DIGITS, MOST_DIGITS = 7, 15
"""Of a whole number; E.164 has at most 15."""
REACH = 14
"""How far an extension may go on behind the digits."""

NUMBER = re.compile(
    r"(?:\+[ ]?|(?<![0-9A-Za-z])00[ .\-]?(?=[1-9]))?"
    r"(?:\([ ]?\+?[0-9]{1,6}[ ]?\)|[0-9]{1,16}+)"
    r"(?:(?:[ ]?[.\-/ ][ ]?)?(?:\([ ]?[0-9]{1,5}[ ]?\)|(?<![0-9])[0-9]{1,16}+)){0,8}"
)
"""The groups of one number. Its separators are one character with spaces around it at most."""
EXTENSION = re.compile(
    r"[ ,;]{0,2}(?:[xX]|ext\.?|Ext\.?|EXT|extension|#|доб\.?|Durchwahl|poste|int\.?)[ .:]{0,2}[0-9]{1,6}(?![0-9A-Za-z])"
)
NANP = re.compile(
    r"(?:1[ .\-]?)?(?:\([2-9][0-9]{2}\)[ \-.]?[0-9]{3}[ .\-]?[0-9]{4}"
    r"|[2-9][0-9]{2}([.\-])[0-9]{3}\1[0-9]{4}|[2-9][0-9]{2}[/ ][2-9][0-9]{2}-[0-9]{4})"
)
"""The North American plan: an area and an exchange, whose first digit is 2 to 9 (nationalnanpa.com)."""
SPACED = re.compile(r"(?:1 )?[2-9][0-9]{2} [2-9][0-9]{2} [0-9]{4}")
UNGROUPED = re.compile(r"0[1-9][0-9]{8,10}")
NUMBERED = re.compile(
    r"(?:num[eéè]ro|n[uú]mero|nummer|number|номер|numer|numara|číslo)\W{0,4}(?:is|est|es|ist|è)?\W{0,3}$"
)
"""One with a trunk prefix in one piece, and the word that is enough beside it."""
PARENTHESIS = re.compile(r"\(0?[1-9][0-9]{0,4}\)[ \-]?[0-9]{2,5}(?:[ .\-/]?[0-9]{2,5}){1,3}")
TRUNK = re.compile(r"0[1-9][0-9]{0,5}(?:[ ]?[.\-/ ][ ]?[0-9]{2,8}){1,5}")
"""A number with the trunk prefix 0, as most countries outside of America write it."""
DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}[.\-/ ][01]?[0-9][.\-/ ][0-3]?[0-9]|[0-3]?[0-9][.\-/ ][0-3]?[0-9][.\-/ ](?:19|20)?[0-9]{2})(?![0-9]|[.\-/ ][0-9])"
)
HEX_PAIR = re.compile(r"-[0-9A-Fa-f]{2}(?![0-9A-Za-z])")
"""The rest of a MAC address."""
YEARS = re.compile(r"(?:1[5-9]|20)[0-9]{2}\s?[-–/]\s?(?:(?:1[5-9]|20)[0-9]{2}|[0-9]{2})")
REGIONS = (
    "GB", "DE", "FR", "IT", "AU", "JP", "KR", "ZA", "NL", "BE", "CH", "AT", "SE", "FI", "CN", "TR", "IN", "IE", "NZ", "PH", "VN", "IL",
    "ID", "RO", "UA", "EG", "NG",
)  # fmt: skip
"""Whose national numbers begin with a trunk 0."""


def find_phones(view: View) -> Iterator[Hit]:
    """Yield the telephone numbers in VIEW, with their extensions."""
    text = view.text
    for start, end in view.runs:
        begin = start
        while begin > max(0, start - 3) and text[begin - 1] in "+( ":
            begin -= 1
        place = begin
        if end - start > 60 and _is_matrix(text[start:end]):
            continue
        while match := NUMBER.search(text, place, end):
            place = match.end()
            found = _one(view, match.start(), match.end())
            if found is not None:
                first, last = found
                place = max(last, match.start() + 1)
                extension = EXTENSION.match(text, last, last + REACH)
                yield Hit("phone", "privacy.phone", first, extension.end() if extension else last)


def _is_matrix(run: str) -> bool:
    """Whether RUN is a long row of short numbers."""
    groups = re.findall(r"[0-9]+", run)
    return len(groups) > 24 and max(map(len, groups)) <= 3


def _one(view: View, start: int, end: int) -> tuple[int, int] | None:
    """Return where in START to END of VIEW a number is, if its form or a word beside it says so."""
    text = view.text
    value = text[start:end]
    while value.startswith("(") and ")" not in value:
        start, value = start + 1, value[1:]
    stripped = value.rstrip(" .-/(")
    end, value = start + len(stripped), stripped
    if sum(map(str.isdigit, value)) < LEAST_DIGITS or not _stands_alone(text, start, end):
        return None
    if value.startswith(("+", "(+")) or (value.startswith("00") and len(value) > 9):
        return _international(view, start, end) or (None if "+" in value else _bare(view, start, end))
    return _formed(view, start, end) or _bare(view, start, end)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether what is at START to END is no part of a longer word, number, decimal or path."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    if before and (
        (before.isalnum() and before < "\u2e80")
        or before in "_$€£¥#^*%@\\"
        or (before in ".,-/=:~" and _joined(text, start))
    ):
        return before == "n" and text[start - 2 : start] == "\\n"  # the line break of a JSON text
    if after in ("_", "%", "°", "^", "*", "=", "$", "€"):
        return False
    if after.isalpha() and not EXTENSION.match(text, end) and after < "\u2e80":  # scripts without spaces begin there
        return False
    if after == "-" and HEX_PAIR.match(text, end):
        return False
    return not (after in (".", ":", "-", "/", "+") and text[end + 1 : end + 2].isdigit())


def _joined(text: str, start: int) -> bool:
    """Whether the separator before START joins what follows to a word or a number."""
    mark, before = text[start - 1], text[start - 2 : start - 1] if start > 1 else ""
    if mark in ":=":
        return before.isdigit()
    if mark == ",":
        return False
    return before.isalnum() if mark in ".-" else before != " "


def _international(view: View, start: int, end: int) -> tuple[int, int] | None:
    """Return the longest number after + or 00 of which the library says that it can be one."""
    text = view.text
    value = text[start:end]
    ends = [len(value), *(match.start() for match in reversed(list(re.finditer(r"[ .\-/(]", value))))]
    before = text[start - 1 : start]
    if before and ((before.isalnum() and before < "\u2e80") or before == ")"):
        return None
    if value.startswith("+ ") and text[max(0, start - 4) : start].rstrip()[-1:] not in (
        "",
        ":",
        "(",
        ",",
        ";",
        ".",
        "|",
        "-",
    ):
        return None  # a sum
    for stop in ends:
        part = value[:stop].rstrip(" .-/(")
        count = sum(map(str.isdigit, part))
        if count < LEAST_DIGITS:
            break
        if count > MOST_DIGITS + 3:
            continue
        number = _parsed("+" + part[2:].lstrip(" .-") if part.startswith("00") else part.replace("(+", "+", 1), None)
        if number is None:
            continue
        if _library().is_valid_number(number) or (
            len(re.findall(r"[0-9]+", part)) > 2
            and _library().is_possible_number(number)
            and (part[0] in "+(" or named(view, start, end, PHONE, NO_PHONE))
        ):
            return start, start + len(part)
        if named(view, start, end, PHONE, NO_PHONE) and count >= 9:
            return start, start + len(part)
    return None


def _formed(view: View, start: int, end: int) -> tuple[int, int] | None:
    """Return the number that its form alone shows: North American, or with a trunk prefix and of a length that some country has."""
    text = view.text
    if match := NANP.match(text, start, end):
        if match.end() == end or (
            text[match.end()] == " " and text[match.end() + 1 : match.end() + 2] in "(+0123456789"
        ):
            return start, match.end()
        return None
    if SPACED.fullmatch(text, start, end) and not COUNTED.match(view.after(end, 24)):
        alone = (
            not text[max(0, start - 2) : start].strip(" ,").isdigit()
            and not text[end : end + 3].strip(" ,")[:1].isdigit()
        )
        return (
            (start, end) if alone and _valid_somewhere(text[start:end], ("US",)) and not _counted(view, start) else None
        )
    if UNGROUPED.fullmatch(text, start, end):
        close = NUMBERED.search(view.before(start, 16))
        return (
            (start, end) if close and not _counted(view, start) and _valid_somewhere(text[start:end], REGIONS) else None
        )
    if match := PARENTHESIS.match(text, start, end):
        if match.end() == end and _valid_somewhere(text[start:end], ("BR", "MX", "AR", *REGIONS)):
            return start, end
        return None
    match = TRUNK.match(text, start, end)
    if match is None or match.end() != end or DATE.match(text, start, end) or set(text[start:end]) <= set("01 .-/"):
        return None
    value = text[start:end]
    count = sum(map(str.isdigit, value))
    groups = re.findall(r"[0-9]+", value)
    if not 9 <= count <= 12 or (len(groups) < 3 and not (4 <= len(groups[0]) <= 6 or "/" in value)):
        return None
    if named(view, start, end, NO_PHONE) and not named(view, start, end, PHONE, NO_PHONE):
        return None
    return (start, end) if _valid_somewhere(value, REGIONS) else None


def _counted(view: View, start: int) -> bool:
    """Whether a word before START says that the number is an order's, an invoice's or the like."""
    return NO_PHONE.search(view.before(start, BEFORE_CHARS)) is not None


def _bare(view: View, start: int, end: int) -> tuple[int, int] | None:
    """Return a number of no special form that a word near it calls a telephone's."""
    text = view.text
    value = text[start:end]
    groups = re.findall(r"[0-9]+", value)
    if (
        DATE.match(value)
        or YEARS.fullmatch(value)
        or (value.count(".") > 1 and len(set(map(len, groups))) == 1 and len(groups[0]) < 2)
    ):
        return None
    if ("." in value and len(groups) == 2) or " / " in value:
        return None  # a decimal, or a division
    count = sum(map(len, groups))
    if count > MOST_DIGITS or sum(len(group) < 2 for group in groups[1:]) > 1 or (len(groups) == 1 and count > 13):
        return None
    if COUNTED.match(view.after(end, 24)):
        return None
    close = PHONE_CLOSE.search(view.before(start, 16)) or PHONE_BEHIND.match(view.after(end, 14))
    if (close and len(groups) > 1) or named(view, start, end, PHONE, NO_PHONE):
        return start, end
    return None


@functools.cache
def _library() -> Any:
    import phonenumbers

    return phonenumbers


def _parsed(value: str, region: str | None) -> Any:
    library = _library()
    try:
        return library.parse(value, region)
    except library.NumberParseException:
        return None


def _valid_somewhere(value: str, regions: tuple[str, ...]) -> bool:
    """Whether VALUE is a number of one of REGIONS. The library's first call for a region reads its facts."""
    library = _library()
    for region in regions:
        number = _parsed(value, region)
        if number is not None and library.is_valid_number_for_region(number, region):
            return True
    return False
