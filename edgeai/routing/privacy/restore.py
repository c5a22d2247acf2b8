"""Values put back in the place of their placeholders, in a stream whose chunks end anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["PLACEHOLDER", "Restorer"]

PLACEHOLDER = re.compile(
    r"(?:\\?<|&lt;)[ ]?(?P<kind>[A-Za-z]{2,15}(?:\\?[_ ][A-Za-z]{2,15}){0,2})\\?[_ \-]?(?P<number>[0-9]{1,6})[ ]?(?:\\?>|&gt;)"
)
"""A placeholder as models repeat it: in another case, with a space, escaped for Markdown or HTML."""
BEGUN = re.compile(
    r"(?:\\?<|&lt;)(?:[ ]?(?:[A-Za-z]{1,15}(?:\\?(?:[_ ][A-Za-z]{0,15})?){0,2}(?:\\?[_ \-]?[0-9]{0,6}[ ]?(?:\\|&(?:g(?:t)?)?)?)?)?)?\Z"
    r"|\\\Z|&(?:l(?:t)?)?\Z"
)
"""The beginning of one at the end of what is there."""
MOST_HELD = 64


class Restorer:
    """Puts VALUES (placeholder → value) back: `feed` chunks, then `flush`. Holds back no more than what may be half a placeholder."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {_key(name): value for name, value in values.items()}
        self._labels = {label for label, _ in self._values}
        self._held = ""

    def __repr__(self) -> str:
        return f"<Restorer of {len(self._values)} values>"

    def feed(self, text: str) -> str:
        """Return what can be said after TEXT came."""
        if not self._values:
            return text
        text = self._held + text
        begun = BEGUN.search(text, max(0, len(text) - MOST_HELD))
        cut = begun.start() if begun and self._may_be(begun[0]) else len(text)
        self._held = text[cut:]
        return PLACEHOLDER.sub(self._value, text[:cut])

    def flush(self) -> str:
        """Return what was held back."""
        text, self._held = self._held, ""
        return PLACEHOLDER.sub(self._value, text)

    def _may_be(self, begun: str) -> bool:
        """Whether BEGUN can still become a placeholder that stands for something: `<div` cannot."""
        if begun in ("&", "&l", "&lt"):
            return True
        letters = re.sub(r"[^A-Za-z_ ]", "", begun.removeprefix("&lt;")).strip().upper().replace(" ", "_")
        return any(label.startswith(letters) or letters.startswith(label) for label in self._labels)

    def _value(self, match: re.Match[str]) -> str:
        return self._values.get((_label(match["kind"]), int(match["number"])), match[0])


def _label(kind: str) -> str:
    return kind.replace("\\", "").replace(" ", "_").upper()


def _key(name: str) -> tuple[str, int]:
    match = PLACEHOLDER.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return _label(match["kind"]), int(match["number"])
