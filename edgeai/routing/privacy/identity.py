"""National identity numbers, by the table in identity_rules.py."""

from __future__ import annotations

import datetime
import functools
import importlib
import re
from collections.abc import Iterator
from typing import Any

from edgeai.routing.privacy.finance import luhn
from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.identity_rules import LETTERED, NUMBERED, TAILED, Lettered, Rule
from edgeai.routing.privacy.text import View

__all__ = ["find_national_ids"]

BEFORE_CHARS, AFTER_CHARS = 56, 24
MOST_GROUPS = 7
ANY_CASE = frozenset({"it_codice_fiscale", "mx_curp", "es_nie", "cl_rut", "cn_ric"})
"""Numbers whose check is strong enough that small letters are believed too."""
GROUPS = re.compile(r"[0-9]+")
TAIL = re.compile(
    r"[0-9](?<![A-Za-z0-9_.\-].)(?=[0-9. ]{1,22}+[\-+]?[A-Za-z0-9])(?=[0-9. ]{1,22}[\-+]?[A-Za-z]|[0-9.]{5,12}-[0-9])"
)
"""Digits, perhaps in groups, and then a letter or a dash with a digit."""
NUMBER_WORD = re.compile(
    r"(?:order|invoice|ticket|tracking|serial|isbn|ean|commit|build)\w{0,8}\W{0,4}(?:(?:no|nr|number|id)\W{0,3})?$"
)


@functools.cache
def _forms() -> dict[str, list[tuple[Rule, bool]]]:
    """Return the rules by the form that they have; whether the form needs no word."""
    found: dict[str, list[tuple[Rule, bool]]] = {}
    for rule in NUMBERED:
        for forms, alone in ((rule.alone, True), (rule.named, False)):
            for form in filter(None, forms.split("|")):
                found.setdefault(form, []).append((rule, alone))
    return found


def _possible(view: View, form: str) -> list[tuple[Rule, bool]]:
    """Return the rules for FORM that anything in VIEW can speak for."""
    return view.once(form, lambda: [(rule, alone) for rule, alone in _forms()[form] if alone or view.says(rule.words)])


@functools.cache
def _prefixes() -> frozenset[str]:
    """Return every beginning of a form, so that groups that lead to none are left at once."""
    return frozenset(form[: match.end()] for form in _forms() for match in GROUPS.finditer(form))


def find_national_ids(view: View) -> Iterator[Hit]:
    """Yield the identity numbers in VIEW."""
    for start, end in view.runs:
        yield from _in_run(view, start, end)
    text = view.text
    lettered, tailed = _patterns()
    for pattern, table, places in ((lettered, LETTERED, view.words), (tailed, TAILED, _tails(text))):
        for place in places:
            match = pattern.match(text, place)
            if match is None and table is LETTERED and text[place - 4 : place - 1].isalpha():
                match = pattern.match(text, place - 4)  # RSS MRA 85T10 A562S
            id_ = None if match is None else _with_letters(view, match, table)
            if match is not None and id_ is not None:
                yield Hit("national_id", f"privacy.national_id.{id_}", *match.span())


def _with_letters(view: View, match: re.Match[str], table: tuple[Lettered, ...]) -> str | None:
    """Return the id of the number of TABLE that MATCH is: by the pattern that fitted, or by another that a word near it names."""
    value = match[0].upper()
    row = table[int((match.lastgroup or "r0")[1:])]
    if row.alone and (value == match[0] or row.id in ANY_CASE) and (not row.check or _checked(row.check, value)):
        return row.id
    for row in table:
        if row.alone or not _named(view, *match.span(), row.words):
            continue
        if re.fullmatch(row.pattern, value) and (not row.check or _checked(row.check, value)):
            return row.id
    return None


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    behind = r"(?![A-Za-z0-9_]|[.\-/][A-Za-z0-9])"
    lettered = "|".join(
        f"(?P<r{index}>(?:{_unnumbered(row.pattern, index)}){behind})" for index, row in enumerate(LETTERED)
    )
    tailed = "|".join(f"(?P<r{index}>(?:{row.pattern}){behind})" for index, row in enumerate(TAILED))
    return (
        re.compile(rf"(?<![A-Za-z0-9_.])(?:{lettered})", re.IGNORECASE),
        re.compile(tailed),
    )


def _tails(text: str) -> Iterator[int]:
    for match in TAIL.finditer(text):
        yield match.start()


def _unnumbered(pattern: str, index: int) -> str:
    """Return PATTERN with its one back-reference by a name of its own, for use inside of another."""
    return pattern.replace(r"([ \-]?)", rf"(?P<s{index}>[ \-]?)").replace(r"\1", rf"(?P=s{index})")


def _in_run(view: View, start: int, end: int) -> Iterator[Hit]:
    text = view.text
    groups = [match.span() for match in GROUPS.finditer(text, start, end)]
    if len(groups) > 24 and all(stop - begin <= 3 for begin, stop in groups):
        return  # a row of a matrix
    forms, prefixes = _forms(), _prefixes()
    first = 0
    spoken = view.once("", lambda: any(view.says(rule.words) for rule in NUMBERED if rule.words))
    while first < len(groups):
        form, best = "", None
        continues = first > 0 and text[groups[first - 1][1] : groups[first][0]] == " "
        if continues and text[groups[first][1] : groups[first][1] + 1] == " " and not spoken:
            first += 1
            continue
        for last in range(first, min(first + MOST_GROUPS, len(groups))):
            begin, stop = groups[last]
            if last > first:
                form += text[groups[last - 1][1] : begin]
            form += str(stop - begin)
            if form not in prefixes:
                break
            if form not in forms:
                continue
            # Rows of numbers have such groups too: a form with spaces shows something only where it stands alone.
            in_row = " " in form and (continues or (last + 1 < len(groups) and text[stop : groups[last + 1][0]] == " "))
            for rule, alone in _possible(view, form):
                if alone and in_row and not _named(view, groups[first][0], stop, rule.words or rule.id):
                    continue
                if _is_one(view, groups[first][0], stop, rule, alone=alone):
                    best = (rule.id, last)
                    break
        if best is not None:
            yield Hit("national_id", f"privacy.national_id.{best[0]}", groups[first][0], groups[best[1]][1])
            first = best[1]
        first += 1


def _is_one(view: View, start: int, end: int, rule: Rule, *, alone: bool) -> bool:
    """Whether the digits from START to END are the number of RULE: nothing joined to them, a word where one is needed, the check."""
    text = view.text
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if before[-1:].isalnum() and before[-1] < "\u2e80" and before != "\\n":
        return False
    if before[-1:] in ("_", "$", "€", "*", "^", "/") or (before[-1:] in (".", "-", "/", "+") and before[:-1].isalnum()):
        return False
    if (
        after[:1] in ("_", "*", "^")
        or (after[:1].isalpha() and after[:1] < "\u2e80")
        or (after[:1] in (".", "-", "/", ":") and after[1:].isalnum())
    ):
        return False
    if not alone and not _named(view, start, end, rule.words):
        return False
    value = text[start:end]
    if alone and len(set(value) - set(" .-/+")) < 3:
        return False
    return not rule.check or _checked(rule.check, value)


def _named(view: View, start: int, end: int, words: str) -> bool:
    pattern = _compiled(words)
    if view.near(words, start - BEFORE_CHARS, end + AFTER_CHARS):
        before = view.before(start, BEFORE_CHARS)
        if NUMBER_WORD.search(before[-24:]):
            return False
        if pattern.search(before) or pattern.search(view.after(end, AFTER_CHARS).partition("\n")[0]):
            return True
    return bool(view.tables) and pattern.search(view.column(start)) is not None


@functools.cache
def _compiled(words: str) -> re.Pattern[str]:
    return re.compile(words)


# ---- checks


def _checked(check: str, value: str) -> bool:
    """Whether VALUE passes CHECK: a function below, or a module of stdnum."""
    if check.startswith(":"):
        digits = re.sub(r"[ .\-/]", "", value)
        return bool(globals()[f"_{check[1:]}"](digits))
    return bool(_module(check).is_valid(value))


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"stdnum.{name}")


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1 (a SIN that begins with 0 is kept for examples: canada.ca)."""
    return luhn(digits)


def _us_ssn(digits: str) -> bool:
    """SSA: no area 000, 666 or 900–999, no group 00, no serial 0000 (ssa.gov/employer/randomization.html)."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def _dk_cpr(digits: str) -> bool:
    """A date first; the check digit is not kept since 2007 (cpr.dk)."""
    return _is_date(digits[4:6], digits[2:4], digits[:2])


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        datetime.date(2000 + int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def _in_aadhaar(digits: str) -> bool:
    """Verhoeff's check digit, first digit 2 to 9 (uidai.gov.in); three years in a row are none."""
    if all(digits[index : index + 2] in ("19", "20") for index in (0, 4, 8)):
        return False
    return bool(_module("in_.aadhaar").is_valid(digits))


def _cn_ric(digits: str) -> bool:
    """A birthday, and ISO 7064's MOD 11-2 (GB 11643-1999). Region codes are not compared: old ones stay on cards."""
    total = sum(int(digit) * pow(2, 17 - index, 11) for index, digit in enumerate(digits[:17])) % 11
    born = "19" <= digits[6:8] <= "20" and _is_date(digits[8:10], digits[10:12], digits[12:14])
    return born and digits[0] in "12345678" and "10X98765432"[total] == digits[17].upper()


def _jp_my_number(digits: str) -> bool:
    """Weights 2 to 7 and 2 to 6, modulo 11 (order 85 of the Ministry of Internal Affairs, 2014)."""
    total = sum(
        int(digit) * weight for digit, weight in zip(digits[10::-1], (2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6), strict=True)
    )
    rest = total % 11
    return int(digits[11]) == (0 if rest <= 1 else 11 - rest)


def _hu_taj(digits: str) -> bool:
    """Weights 3 and 7 in turn, modulo 10 (act XX of 1996, annex 3)."""
    return sum(int(digit) * (3, 7)[index % 2] for index, digit in enumerate(digits[:8])) % 10 == int(digits[8])


def _uy_ci(digits: str) -> bool:
    """Weights 2987634, modulo 10 (dnic.gub.uy)."""
    padded = digits.zfill(8)
    return -sum(int(digit) * int(weight) for digit, weight in zip(padded, "2987634", strict=False)) % 10 == int(
        padded[7]
    )


def _id_nik(digits: str) -> bool:
    """Province, then a birthday whose day is 40 more for women (kemendagri.go.id)."""
    day = int(digits[6:8])
    return "11" <= digits[:2] <= "96" and _is_date(digits[10:12], digits[8:10], f"{day - 40 if day > 40 else day:02}")


def _au_medicare(digits: str) -> bool:
    """First digit 2 to 6; weights 1, 3, 7, 9 modulo 10 for the ninth digit (servicesaustralia.gov.au)."""
    if digits[0] not in "23456":
        return False
    return sum(
        int(digit) * weight for digit, weight in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9), strict=False)
    ) % 10 == int(digits[8])


def _ru_snils(digits: str) -> bool:
    """Weights 9 to 1, modulo 101 (order of the Pension Fund 192p, 2006)."""
    total = sum(int(digit) * weight for digit, weight in zip(digits, range(9, 0, -1), strict=False)) % 101
    return total % 100 == int(digits[9:])


def _kz_iin(digits: str) -> bool:
    """A birthday, and weights 1 to 11 modulo 11 (law 223-III of 2007)."""
    rest = sum(int(digit) * weight for digit, weight in zip(digits, range(1, 12), strict=False)) % 11
    if rest == 10:
        rest = (
            sum(int(digit) * weight for digit, weight in zip(digits, (3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2), strict=False))
            % 11
        )
    return _is_date(digits[:2], digits[2:4], digits[4:6]) and rest == int(digits[11])


def _sg_nric(value: str) -> bool:
    """Weights 2765432, an offset by the first letter, and a letter of its table (ica.gov.sg)."""
    total = sum(int(digit) * int(weight) for digit, weight in zip(value[1:8], "2765432", strict=True))
    total += {"T": 4, "G": 4, "M": 3}.get(value[0], 0)
    table = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}[
        value[0]
    ]
    return table[total % 11 if value[0] != "M" else 10 - total % 11] == value[8]


def _hk_hkid(value: str) -> bool:
    """Letters count from 10, a missing first one 36; weights 9 to 1 modulo 11 (immd.gov.hk)."""
    plain = value.replace("(", "").replace(")", "").rjust(9)
    numbers = [36 if character == " " else int(character, 36) for character in plain]
    return sum(number * weight for number, weight in zip(numbers, range(9, 0, -1), strict=True)) % 11 == 0


def _tw_id(value: str) -> bool:
    """The letter is a number of two digits; weights 1, 9 to 1, 1 modulo 10 (ris.gov.tw)."""
    number = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(value[0]) + 10
    digits = [number // 10, number % 10, *map(int, value[1:])]
    return (
        sum(digit * weight for digit, weight in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0
    )
