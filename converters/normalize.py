"""What a tokenizer does to a text before it cuts it, where libllama cannot be told to; the runtime here does it first.

The name goes into the file as `edgeai.tokenizer.normalizer`. Other runtimes do not know it, which a warning at conversion says.
"""

from __future__ import annotations

import unicodedata

__all__ = ["NORMALIZERS", "SPACE_ALWAYS", "SPACE_FIRST", "normalize"]

SPACE_FIRST, SPACE_ALWAYS = "space-first", "space-always"
NORMALIZERS = ("NFC", SPACE_FIRST, SPACE_ALWAYS)
SPACES = (" ", "\u2581")


def normalize(text: str, name: str | None, *, first: bool) -> str:
    """Return TEXT, a stretch without special tokens, as the tokenizer with the normalizer NAME sees it. FIRST: nothing stands before it.

    SPACE_FIRST and SPACE_ALWAYS are the Metaspace step of the tokenizers library with prepend_scheme "first" and "always": a space
    goes before the text unless it begins with one. With the first, libllama adds none itself; with the second it adds one always, so
    that one of those that are there is taken away. Raises KeyError for a name that is not known.
    """
    if name is None or not text:
        return text
    if name == "NFC":
        return unicodedata.normalize("NFC", text)
    if name == SPACE_FIRST:
        return f" {text}" if first and not text.startswith(SPACES) else text
    if name == SPACE_ALWAYS:
        return text[1:] if text.startswith(SPACES) and len(text) > 1 else text
    raise KeyError(name)
