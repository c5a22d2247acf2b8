"""Payment cards and IBANs, by their check digits, their issuers' ranges and their lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeai.routing.privacy.context import CARD, named
from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.text import View

__all__ = ["find_cards", "find_ibans", "luhn"]

LEAST, MOST = 12, 19
"""Digits of a card's number (ISO/IEC 7812-1)."""

ISSUERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (13, 16, 18, 19)),  # Visa
    ("51", "55", (16,)), ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)), ("37", "37", (15,)),  # American Express
    ("300", "305", (14, 16, 19)), ("3095", "3095", (14, 16, 19)), ("36", "36", (14, 16, 19)), ("38", "39", (14, 16, 19)),  # Diners Club
    ("6011", "6011", (16, 19)), ("644", "659", (16, 17, 18, 19)),  # Discover, RuPay, Elo, Troy, Verve
    ("35", "35", (16, 17, 18, 19)), ("1800", "1800", (15,)), ("2131", "2131", (15,)),  # JCB
    ("62", "62", (16, 17, 18, 19)), ("81", "81", (16, 17, 18, 19)),  # UnionPay
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("5018", "5018", (12, 13, 14, 15, 16, 17, 18, 19)), ("5020", "5020", (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
    ("5038", "5038", (12, 13, 14, 15, 16, 17, 18, 19)), ("56", "58", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("63", "63", (12, 13, 14, 15, 16, 17, 18, 19)), ("67", "67", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("5019", "5019", (16,)), ("4571", "4571", (16,)),  # Dankort
    ("60", "60", (16,)), ("82", "82", (16,)), ("508", "508", (16,)), ("353", "356", (16,)),  # RuPay
    ("506099", "506198", (16, 18, 19)), ("507865", "507964", (16, 18, 19)),  # Verve
    ("9792", "9792", (16,)),  # Troy
    ("636", "639", (16, 17, 18, 19)),  # InterPayment, InstaPayment
)  # fmt: skip
"""First digits from, to, and the lengths that their cards have. Source: the tables of issuer identification numbers that ISO/IEC 7812

assigns, as the networks publish them (en.wikipedia.org/wiki/Payment_card_number, read 2026)."""

BEGINNINGS = frozenset(
    f"{number:02}"
    for low, high, _ in ISSUERS
    for number in range(int(low.ljust(2, "0")[:2]), int(high.ljust(2, "9")[:2]) + 1)
)
COMMON = (16, 18, 19)
MAESTRO = ("5018", "5020", "5038", "5893", "6304", "6759", "6761", "6762", "6763")
CALLED_CHARS = 64
"""How far behind the word for a card its number may begin."""
GROUPS = re.compile(r"[0-9]+")
BROKEN = re.compile(
    r"[0-9]{4}(?:[ \-]?[0-9]{4,6}){0,2}[ \-]?[ \t]{0,4}\r?\n[ \t>|#*/]{0,8}[0-9]{3,6}(?:[ \-]?[0-9]{1,6}){0,3}"
)
"""A card's number with a line break between two of its groups."""
FOUR_EACH = re.compile(
    r"(?:[0-9]{4}[ \-]){0,2}[0-9]{4}[ \-]?[ \t]{0,4}\r?\n[ \t>|#*/]{0,8}[0-9]{4}(?:[ \-][0-9]{4}){0,2}"
)
BARCODE = re.compile(r"\b(?:ean|gtin|upc|isbn|barcode|sku)\b")


DOUBLED = str.maketrans("0123456789", "0246813579")
"""Twice a digit, with the digits of the result added up."""


def luhn(digits: str) -> bool:
    """Whether the last of DIGITS is their check digit by ISO/IEC 7812-1, annex B."""
    return (sum(map(int, digits[::-2])) + sum(map(int, digits[-2::-2].translate(DOUBLED)))) % 10 == 0


def is_issued(digits: str) -> bool:
    """Whether DIGITS begin as an issuer's cards do and have one of their lengths."""
    count = len(digits)
    return any(low <= digits[: len(low)] <= high and count in lengths for low, high, lengths in ISSUERS)


def find_cards(view: View) -> Iterator[Hit]:
    """Yield the card numbers in VIEW: in one piece, in groups, or with one line break between groups."""
    text = view.text
    for start, end in view.runs:
        if end - start >= LEAST:
            yield from _in_run(view, start, end)
    if "\n" not in text:
        return
    for match in BROKEN.finditer(text):
        digits = re.sub(r"[^0-9]", "", match[0])
        if not (FOUR_EACH.fullmatch(match[0]) or named(view, *match.span(), CARD)):
            continue  # a column of numbers
        if (
            LEAST <= len(digits) <= MOST
            and is_issued(digits)
            and luhn(digits)
            and _starts(text, match.start())
            and _ends(text, match.end())
        ):
            yield Hit("card", "privacy.card", match.start(), match.end())


def _in_run(view: View, start: int, end: int) -> Iterator[Hit]:
    text = view.text
    groups = [match.span() for match in GROUPS.finditer(text, start, end)]
    called = CALLED_CHARS if named(view, start, start, CARD) else 0
    past = 0
    for first, (begin, stop) in enumerate(groups):
        by_name = begin - start < called
        if begin < past or stop - begin > MOST or (stop - begin < 4 and not by_name) or not _starts(text, begin):
            continue
        if not by_name and 0 < first < len(groups) - 1 and _in_row(text, groups, first):
            continue
        count = 0
        for last in range(first, min(first + MOST, len(groups))):
            size = groups[last][1] - groups[last][0]
            count += size
            if count > MOST:
                break
            if count >= LEAST and _is_one(view, groups, first, last, by_name=by_name):
                past = groups[last][1]
                yield Hit("card", "privacy.card", begin, past)
                break
            if size < 4 and not by_name:
                break


def _is_one(view: View, groups: list[tuple[int, int]], first: int, last: int, *, by_name: bool) -> bool:
    """Whether GROUPS of digits from FIRST to LAST are a card's number; BY_NAME: a word before them says so."""
    text = view.text
    begin, end = groups[first][0], groups[last][1]
    digits = "".join([text[start:stop] for start, stop in groups[first : last + 1]])
    issued = digits[:2] in BEGINNINGS and is_issued(digits)
    if not (issued or by_name or first == last) or not luhn(digits) or len(set(digits)) == 1 or not _ends(text, end):
        return False
    if not issued:  # a range that is not in the table is believed where a word says that it is a card's
        return named(view, begin, end, CARD, BARCODE)
    if first == last:
        if (
            len(digits) not in COMMON and digits[0] in "56" and not digits.startswith(MAESTRO)
        ):  # Maestro has all lengths, so its check digit alone says little
            return named(view, begin, end, CARD)
        return not named(view, begin, end, BARCODE) or named(view, begin, end, CARD)
    marks = {text[groups[index][1] : groups[index + 1][0]].strip() for index in range(first, last)}
    if not marks <= {"", "-", ".", "/"} or ("/" in marks and not by_name):
        return False  # a sum, a division, an area code
    if by_name:
        return True
    # Rows of numbers have such groups too: a card stands alone, in groups of four and more with one mark.
    sizes = [stop - start for start, stop in groups[first : last + 1]]
    if len(marks) > 1 or ("." in marks and len(sizes) < 4):
        return named(view, begin, end, CARD)
    return not _continues(text, groups, first, last, marks.pop()) or named(view, begin, end, CARD)


def _in_row(text: str, groups: list[tuple[int, int]], index: int) -> bool:
    """Whether the group INDEX stands between others, with the same mark on both sides, as in a row of a table."""
    mark = text[groups[index][1] : groups[index + 1][0]]
    return _is_beside(text, groups, index, -1, mark.strip())


def _continues(text: str, groups: list[tuple[int, int]], first: int, last: int, mark: str) -> bool:
    """Whether numbers of four digits and more stand right before FIRST or behind LAST with the same MARK."""
    return _is_beside(text, groups, first, -1, mark) or _is_beside(text, groups, last, 1, mark)


def _is_beside(text: str, groups: list[tuple[int, int]], index: int, step: int, mark: str) -> bool:
    """Whether the group next to INDEX, to the left (STEP -1) or right (1), is one of a row: of four digits, no part of another number."""
    beside, after = index + step, index + 2 * step
    if (
        not 0 <= beside < len(groups)
        or groups[beside][1] - groups[beside][0] < 4
        or _gap(text, groups, index, beside) != mark
    ):
        return False
    return not 0 <= after < len(groups) or _gap(text, groups, beside, after) == mark


def _gap(text: str, groups: list[tuple[int, int]], one: int, other: int) -> str:
    left, right = min(one, other), max(one, other)
    return text[groups[left][1] : groups[right][0]].strip()


def _starts(text: str, start: int) -> bool:
    """Whether what begins at START goes on from no decimal, identifier or UUID."""
    before = text[max(0, start - 2) : start]
    mark = before[-1:]
    if mark == "_" or mark.isalnum():
        return before == "\\n" or mark >= "\u2e80"
    if mark in ("*", "^") or (before[:-1].isdigit() and mark in (".", "/")):
        return False
    if mark == "-":
        word = text[max(0, start - 5) : start - 1]
        return not (word.isalnum() and any(map(str.isdigit, word)))
    return True


def _ends(text: str, end: int) -> bool:
    """Whether what ends at END goes on into no decimal, identifier or percentage."""
    after = text[end : end + 2]
    mark = after[:1]
    if mark in ("_", "%") or (mark.isalpha() and mark < "\u2e80"):
        return False
    return mark not in ("*", "^") and not (mark in (".", "-", "/") and after[1:].isdigit())


# ---- IBAN

LENGTHS = dict(
    pair.split(":")
    for pair in [
        "AD:24",
        "AE:23",
        "AL:28",
        "AT:20",
        "AZ:28",
        "BA:20",
        "BE:16",
        "BG:22",
        "BH:22",
        "BI:27",
        "BR:29",
        "BY:28",
        "CH:21",
        "CR:22",
        "CY:28",
        "CZ:24",
        "DE:22",
        "DJ:27",
        "DK:18",
        "DO:28",
        "EE:20",
        "EG:29",
        "ES:24",
        "FI:18",
        "FK:18",
        "FO:18",
        "FR:27",
        "GB:22",
        "GE:22",
        "GI:23",
        "GL:18",
        "GR:27",
        "GT:28",
        "HN:28",
        "HR:21",
        "HU:28",
        "IE:22",
        "IL:23",
        "IQ:23",
        "IS:26",
        "IT:27",
        "JO:30",
        "KW:30",
        "KZ:20",
        "LB:28",
        "LC:32",
        "LI:21",
        "LT:20",
        "LU:20",
        "LV:21",
        "LY:25",
        "MC:27",
        "MD:24",
        "ME:22",
        "MK:19",
        "MN:20",
        "MR:27",
        "MT:31",
        "MU:30",
        "NI:28",
        "NL:18",
        "NO:15",
        "OM:23",
        "PK:24",
        "PL:28",
        "PS:29",
        "PT:25",
        "QA:29",
        "RO:24",
        "RS:22",
        "RU:33",
        "SA:24",
        "SC:31",
        "SD:18",
        "SE:24",
        "SI:19",
        "SK:24",
        "SM:27",
        "SO:23",
        "ST:25",
        "SV:28",
        "TL:23",
        "TN:24",
        "TR:26",
        "UA:29",
        "VA:22",
        "VG:24",
        "XK:20",
        "YE:30",
    ]
)
"""Characters of an IBAN by country, from SWIFT's IBAN registry, release 99."""
IBAN = re.compile(r"[A-Za-z]{2}[ \-]?[0-9]{2}(?=(?:[ \-.]{0,2}[A-Za-z0-9]){11})")


FOURS = re.compile(r"[A-Za-z]{2}[0-9]{2}(?:[ \-.][A-Za-z0-9]{4}){2,7}(?:[ \-.][A-Za-z0-9]{1,4})?")
COMPACT = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}(?![A-Za-z0-9_])")
"""One of another length than its country's, in one piece: its check digits are right by chance once in 97, or a digit was lost."""


def find_ibans(view: View) -> Iterator[Hit]:
    """Yield the IBANs in VIEW whose length is their country's and whose check digits are right (ISO 13616, mod 97)."""
    text = view.text
    for place in view.words:
        match = IBAN.match(text, place)
        if match is None:
            continue
        wanted = LENGTHS.get(match[0][:2].upper())
        if wanted is None:
            continue
        whole = COMPACT.match(text, match.start())
        end = _take(text, match.start(), int(wanted)) or (whole.end() if whole else None)
        if end is None:
            continue
        written = text[match.start() : end]
        plain = re.sub(r"[ \-.]", "", written).upper()
        if len(plain) < len(written) and written != written.upper() and not FOURS.fullmatch(written):
            continue  # words and numbers of a sentence
        turned = plain[4:] + plain[:4]
        if 3 * sum(map(str.isdigit, plain)) < len(plain):
            continue  # a sentence: every country's IBAN is mostly digits
        if int("".join(str(int(character, 36)) for character in turned)) % 97 == 1:
            yield Hit("iban", "privacy.iban", match.start(), end)


def _take(text: str, start: int, wanted: int) -> int | None:
    """Return where WANTED letters and digits from START on end, with single separators between them, if a word ends there."""
    place = start
    gap = 0
    while wanted:
        character = text[place : place + 1]
        if character.isascii() and character.isalnum():
            wanted, gap = wanted - 1, 0
        elif character in (" ", "-", ".") and gap < 2:
            gap += 1
        else:
            return None
        place += 1
    return None if text[place : place + 1].isalnum() and text[place] < "\u2e80" else place
