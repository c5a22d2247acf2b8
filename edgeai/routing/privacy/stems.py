"""Plain texts that a pattern of words cannot match without: they are looked for first, at a tenth of the time."""

from __future__ import annotations

import functools
import re

__all__ = ["stems_of"]

SPECIAL = re.compile(r"\\w(?:\{[^}]*\})?|\\b|\\\.\??|\[[^\]]*\]\??|\((?:[^()])*\)\??|.\?|\.")
"""What in the patterns of words is no plain letter, with the letter before a question mark."""


@functools.cache
def stems_of(words: str) -> tuple[str, ...]:
    """Return for each alternative of the pattern WORDS a text that it cannot match without."""
    alternatives = re.split(r"\|(?![^(]*\))", words)
    return tuple(dict.fromkeys(max(SPECIAL.split(alternative), key=len) for alternative in alternatives))
