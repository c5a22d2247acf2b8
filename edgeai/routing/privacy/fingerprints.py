"""Fingerprints of texts that survive another layout, and find a part of a text again: winnowing (Schleimer, Wilkerson, Aiken 2003).

A text is reduced to its letters and digits in small form. Of every run of GRAM of them a hash is rolled, and of every WINDOW hashes that
follow each other the least is kept. So any span of GRAM + WINDOW - 1 = 36 letters that two texts share (about eight words, or 43 characters
of English) is found, and none that is shorter than 28.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

__all__ = ["GRAM", "SPAN", "WINDOW", "fingerprints", "plain"]

GRAM, WINDOW = 28, 9
SPAN = GRAM + WINDOW - 1
"""Letters and digits that must be the same in a row to be found for certain."""
LEAST_WHOLE = 12
"""A text or a line of fewer letters is a word or two that anybody may write, and leaves no mark."""
WIDE = 0x2E80
"""From here on the scripts write a word in one or two characters; each counts as three."""
REST = re.compile(r"[\W_]+")


def plain(text: str) -> str:
    """Return the letters and digits of TEXT in one small form, without anything between them."""
    return REST.sub("", text.casefold())


def fingerprints(text: str, salt: bytes) -> set[int]:
    """Return the fingerprints of TEXT under SALT, as whole numbers of 64 bits.

    They are those of its spans; of a text that is too short for one, and of its lines, those of the whole. BLAKE2 with the salt as key
    makes them: they cannot be turned back, nor tried out on another machine.
    """
    found: set[int] = set()
    letters = plain(text)
    if len(letters) >= GRAM // 3:  # so many wide characters are enough
        found.update(_spans(letters, salt))
    for line in {text, *text.splitlines()} if len(text) <= 4 * SPAN or "\n" in text else ():
        whole = plain(line) if len(line) <= 4 * SPAN else ""
        if LEAST_WHOLE <= len(whole) < SPAN:
            found.add(_digest(whole.encode("utf-8", "surrogatepass"), salt))
    return found


def _spans(letters: str, salt: bytes) -> list[int]:
    import numpy as np

    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if not letters.isascii():
        codes = np.repeat(codes, np.where(codes >= WIDE, 3, 1))
    if len(codes) < GRAM:
        return []
    base = np.uint64(int.from_bytes(salt[:8], "little") | 1)
    with np.errstate(over="ignore"):
        powers = {1: ((codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15), base)}
        for size in (
            1,
            2,
            4,
            8,
        ):  # the hash of twice as many letters is made of two that are there: h(2n) = h(n)·bⁿ + h(n)
            half, factor = powers[size]
            powers[2 * size] = (half[:-size] * factor + half[size:], factor * factor)
        count = len(codes) - GRAM + 1
        (sixteen, _), (eight, by_eight), (four, by_four) = powers[16], powers[8], powers[4]
        rolled = (sixteen[:count] * by_eight + eight[16 : 16 + count]) * by_four + four[24 : 24 + count]
        # The lowest bits of such a hash depend on few letters: mix before they are compared.
        rolled = (rolled ^ (rolled >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    if len(rolled) >= WINDOW:
        least: Any = rolled[: len(rolled) - WINDOW + 1]
        for shift in range(1, WINDOW):
            least = np.minimum(least, rolled[shift : len(rolled) - WINDOW + 1 + shift])
    else:
        least = rolled.min(keepdims=True)
    return [_digest(int(value).to_bytes(8, "little"), salt) for value in np.unique(least)]


def _digest(value: bytes, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8, key=salt).digest(), "little", signed=True)
