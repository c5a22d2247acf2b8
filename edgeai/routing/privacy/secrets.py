"""Keys, tokens, passwords: by the prefixes of providers, by their form, and by the name that they are assigned to."""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.placeholders import is_placeholder
from edgeai.routing.privacy.providers import PROVIDERS
from edgeai.routing.privacy.text import View

__all__ = ["find_keys", "find_private_keys", "find_secrets"]

LONG = re.compile(r"[A-Za-z0-9_\-+/=.~:](?<![A-Za-z0-9_\-+/=.~:].)[A-Za-z0-9_\-+/=.~:]{13,}+")
"""What may hold a key: a word of fourteen characters and more. Most texts have few."""
JWT = re.compile(
    r"(?<![A-Za-z0-9_-])(ey[A-Za-z0-9_-]{14,4000})\.(ey[A-Za-z0-9_-]{2,12000}|[A-Za-z0-9_-]{8,12000})\.([A-Za-z0-9_-]{0,2000})"
)
FILLER = re.compile(r"(?i)x{5,}|\*{3,}|\.{4,}|your|<|_here|-here|placeholder|0{12,}")

NAME = re.compile(
    r"(?:pass(?:words?|wd|phrase|wort|code)?(?![a-z])|pwd|secret|token|credential|passwort|kennwort|contrase[nñ]a|mot de passe|senha"
    r"|пароль|密码|密碼|パスワード|비밀번호"
    r"|api[_\- ]?key|apikey|access[_\-]?key|auth[_\-]?key|account[_\-]?key|private[_\-]?key"
    r"|signing[_\-]?key|encryption[_\-]?key|client[_\-]?key|secret[_\-]?key|_key|\bpin)"
    r"[\w\-]{0,24}+[\"'`*]{0,3}\]?[\"']?"
    r"(?:\s{0,3}(?:=>|:=|==|[:=：])\s{0,3}|\s(?:is|was|ist|lautet|est|es|è|is now|set to|changed to)[: ]\s?|</?\w{0,20}>|>)"
)
VALUE = re.compile(r"(?:[\"'`]|b[\"']|u[\"'])?([^\s\"'`,;<>()]{6,256})")
STRONG = ("pass", "pwd", "senha", "contrase", "mot de passe", "kennwort", "пароль", "密", "パス", "비밀")
"""Names of what a person chose; shorter and plainer values are believed to be one."""
BEARER = re.compile(
    r"\b(?:bearer|basic|token|apikey|api-key|digest)\s{1,3}[\"']?([\w\-.~+/]{16,2000}={0,2})|x-api-key[\"']?\s{0,2}[:=]\s{0,2}[\"']?([\w\-.~+/]{12,400})"
    r"|\s(?:-u|--user|--proxy-user)[ =][\"']?[\w.@\-]{1,64}:([^\s\"'`$]{4,128})"
)
"""What is sent as an authorization: the headers, and the user and password that curl is given."""
IDENTIFIER = re.compile(r"[A-Za-z_$@&*!-][\w$]*(?:(?:\.|->|::|\[)[\w$\]]*)*[?!]?")
CALL = re.compile(r"[\w.]{1,64}[(\[{]")
FORMULA = re.compile(r"[\w.]{1,40}[|&+*/%^][\w.]{1,40}")

PRIVATE = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]")
BODY = re.compile(r"(?:[A-Za-z0-9+/=\s\\:,.\-\"'|>#]|Proc-Type|DEK-Info|Comment|Version){1,16000}+")
MOST_PRIVATE = 16_000


@functools.cache
def _keys() -> re.Pattern[str]:
    """Return one pattern for the keys of all providers; it takes 10 ms to compile."""
    return re.compile("(?<![A-Za-z0-9])(?=[A-Za-z0-9])(?:" + "|".join(pattern for _, pattern in PROVIDERS) + ")")


def find_keys(view: View) -> Iterator[Hit]:
    """Yield the keys of providers and the JSON Web Tokens in VIEW."""
    text = view.text
    for word in LONG.finditer(text):
        start, end = word.span()
        for match in _keys().finditer(text, start, end):
            if not FILLER.search(match[0]) and len(set(match[0])) > 6:
                yield Hit("api_key", f"privacy.api_key.{_provider(match[0])}", *match.span())
        if text.find("ey", start, end) >= 0:
            for match in JWT.finditer(text, start, end):
                if _is_jose(match[1]):
                    yield Hit("jwt", "privacy.jwt", *match.span())


def _provider(key: str) -> str:
    return next((name for name, pattern in PROVIDERS if re.match(pattern, key)), "other")


def _is_jose(part: str) -> bool:
    """Whether PART is the header of a JWT: JSON with `alg`, as RFC 7515 section 4.1.1 demands."""
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and ("alg" in header or "typ" in header)


def find_secrets(view: View) -> Iterator[Hit]:
    """Yield what in VIEW is assigned to a name like `password` or `api_key`, or sent as an authorization, and is no placeholder."""
    text, lower = view.text, view.lower
    place = 0
    while match := NAME.search(lower, place):
        place = match.end()
        value = VALUE.match(text, place)
        if value is None:
            continue
        if value.start(1) == value.start() and text[value.end() : value.end() + 1] == "(":
            continue  # a call
        if lower.endswith(("public", "publickey"), 0, match.start()):
            continue
        if len(value[0]) > 64:
            place = value.end()  # so that names in a long value are not all read to its end
        quoted = value.start(1) > value.start()
        word = value[1].rstrip("\\").rstrip(".?") if not quoted else value[1].rstrip("\\")
        strong = match[0].startswith(STRONG)
        if _is_secret(
            word,
            strong=strong,
            quoted=quoted,
            prose=match[0][-1] == " " and not match[0].rstrip().endswith(("=", ":", ">")),
        ):
            yield Hit("api_key", "privacy.api_key.assigned", value.start(1), value.start(1) + len(word))
    for match in BEARER.finditer(lower):
        group = match.lastindex or 1
        word = text[match.start(group) : match.end(group)]
        if (group == 3 or _is_random(word, 3.0)) and not is_placeholder(word):
            yield Hit("api_key", "privacy.api_key.bearer", match.start(group), match.end(group))


def _is_secret(word: str, *, strong: bool, quoted: bool, prose: bool) -> bool:
    """Whether WORD, the value of a name, looks like a secret instead of code or prose."""
    if len(word) < 6 or is_placeholder(word) or CALL.match(word) or "://" in word:
        return False
    digits, letters = any(map(str.isdigit, word)), any(map(str.isalpha, word))
    marks = any(not character.isalnum() and character not in "_-./:\\" for character in word)
    if not quoted and not strong and (IDENTIFIER.fullmatch(word) and not digits):
        return False
    if strong:
        mixed = word.lower() != word and word.upper() != word and not word.istitle() and not IDENTIFIER.fullmatch(word)
        if prose or not quoted:
            if FORMULA.fullmatch(word) and not digits:
                return False
            return (
                letters
                and (digits or marks)
                and not (word.count(".") > 1 and not marks)
                and (digits or len(word) >= 8)
                and not _is_code(word)
            )
        return letters and (digits or marks or (mixed and len(word) >= 8)) and not _is_code(word)
    return len(word) >= 16 and digits and letters and not _is_code(word) and _is_random(word, 3.0)


def _is_code(word: str) -> bool:
    """Whether WORD is a path, a name with parts or a template rather than a value: `self.token1`, `/etc/x`, `tokens[0]`."""
    if word.startswith(
        ("/", "./", "~/", "self.", "this.", "$", "&", "%", "@", "--", "\\", "\\x", "0x", "u'", "^", "(?")
    ):
        return True
    return (
        any(mark in word for mark in ("[", "]", "{", "}", "()", "->", "::", "==", "\\"))
        or (re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", word) is not None)
        or (
            re.fullmatch(
                r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[a-z]+(?:_[a-z0-9]+)+|[a-z]+(?:-[a-z]+)+[0-9]?|[a-z]+[0-9]?", word
            )
            is not None
            and not re.fullmatch(r"[a-z]+[0-9]", word)
        )
    )


def _is_random(word: str, least_bits: float) -> bool:
    """Whether WORD has digits and letters, and at least LEAST_BITS of entropy a character."""
    if not (any(map(str.isdigit, word)) and any(map(str.isalpha, word))):
        return False
    count = len(word)
    return -sum(times / count * math.log2(times / count) for times in Counter(word).values()) >= least_bits


def find_private_keys(view: View) -> Iterator[Hit]:
    """Yield the private keys in VIEW: PEM blocks, also cut off or with line breaks written as backslash and n, and those of PuTTY."""
    text = view.text
    if "PRIVATE KEY" not in text and "PuTTY-User-Key" not in text:
        return
    place = 0
    while match := PRIVATE.search(text, place):
        end = text.find("-----END", match.end(), match.end() + MOST_PRIVATE)
        if end >= 0:
            close = text.find("-----", end + 8, end + 80)
            end = close + 5 if close >= 0 else end + 8
        else:
            body = BODY.match(text, match.end())
            end = body.end() if body else match.end()
            end = match.start() + len(text[match.start() : end].rstrip(" \n\r\t\"'\\,."))
        place = max(end, match.end())
        if end > match.end() + 16:  # the bare line names a format
            yield Hit("private_key", "privacy.private_key", match.start(), end)
