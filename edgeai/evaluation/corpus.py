"""The text on which the measures of a quantized file are taken, cut into windows of token ids."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from converters.families import ModelPlan
from converters.stress import PROSE, STRESS
from converters.tokenizer import Vocabulary, source_tokenizer
from edgeai.errors import UsageError
from edgeai.evaluation.prompts import BLOCK, window_tokens

__all__ = [
    "MOST_TOKENS",
    "calibration_texts",
    "corpus_sha256",
    "default_text",
    "default_tokens",
    "read_text",
    "windows",
]

FEWEST_TOKENS, MOST_TOKENS = 512, 1280
WORK = 3e11
"""Parameters times tokens: what a proof may cost decides how many tokens of the bundled text a larger model gets."""
GIVEN_TOKENS = 8192
"""Of a text that the user names; the rest is left out."""
LEAST = 2 * BLOCK
"""Fewer tokens than this say nothing about a quantized file."""
MAX_TEXT_BYTES = 64 << 20
PROVED_ON = ("for", "numbers", "assignment", "class", "strings", "naming")
"""The topics of Python's documentation that are in the default text."""
LEAST_CHARS = 60
SHORT = 4
"""A text of the stress list with fewer words is a case for tokenizers, not for models."""


def read_text(path: Path) -> str:
    """Return the text of the file PATH.

    Raises UsageError for one that is no regular file of UTF-8 text, has NUL bytes, is empty or absurdly large.
    """
    hint = "name a file of plain text, such as the model will meet"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            what = "is a folder" if path.is_dir() else "is no regular file"
            raise UsageError(f"{str(path)!r} {what}", hint=hint)
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise UsageError(
                f"{str(path)!r} has {path.stat().st_size} bytes, and at most {MAX_TEXT_BYTES} are read", hint=hint
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(path)!r} is not UTF-8 text: byte {error.start}: {error.reason}", hint=hint) from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror or error}", hint=hint) from error
    if "\0" in text:
        raise UsageError(
            f"{str(path)!r} is no text: it has NUL bytes, the first after {text.index(chr(0))} characters", hint=hint
        )
    if not text.strip():
        raise UsageError(f"{str(path)!r} is empty", hint=hint)
    return text


def calibration_texts(count: int) -> list[str]:
    """Return COUNT texts like those that `default_text` has, and none of those, to see on what values a model usually computes."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    parts = [part.strip() for name in sorted(topics) if name not in PROVED_ON for part in topics[name].split("\n\n")]
    long = [" ".join(part.split()) for part in parts if len(part) >= LEAST_CHARS]
    step = max(1, len(long) // max(1, count - len(STRESS)))
    short = [text for text in STRESS if text.strip()][: count // 2]
    return [*short, *long[::step]][:count] or list(PROSE)


def default_text(*, scripts: bool = True) -> str:
    """Return prose, lines in many SCRIPTS, and then Python's own documentation, which is wherever Python is."""
    lines = [text for text in STRESS if scripts and len(text.split()) >= SHORT]
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # distributions may leave it out
        topics = {}
    documentation = [topics[name] for name in PROVED_ON if name in topics]
    return "\n\n".join([*PROSE, *lines, *documentation])


def default_tokens(plan: ModelPlan) -> int:
    """Return how many tokens of the bundled text a model is compared on: fewer for a large one."""
    return max(FEWEST_TOKENS, min(MOST_TOKENS, int(WORK / plan.parameters)))


def windows(
    plan: ModelPlan, vocabulary: Vocabulary, text: str | None = None, tokens: int | None = None
) -> list[list[int]]:
    """Return the windows of TEXT (None: the bundled one): token ids, each with BOS first where the tokenizer adds it.

    TOKENS is how many at most: of the bundled text then windows from all over it, so that each of its kinds has its share. Raises
    UsageError where a given text is too short to say anything.
    """
    budget = tokens or (GIVEN_TOKENS if text is not None else default_tokens(plan))
    spread = text is None and tokens is not None
    before = list(vocabulary.before)
    # no token has more than some tens of characters, and a text that is given is cut before it is tokenized
    whole = text[: budget * 64] if text is not None else default_text()
    ids = source_tokenizer(vocabulary.spec).encode(whole, add_special_tokens=False).ids
    size = window_tokens(plan) - len(before)
    if spread and len(ids) > budget >= size:
        count = budget // size
        starts = [index * (len(ids) - size) // max(1, count - 1) for index in range(count)]
    else:
        ids = ids[:budget]
        starts = list(range(0, len(ids), size))
    found = [[*before, *ids[at : at + size]] for at in starts]
    if len(found) > 1 and len(found[-1]) < min(BLOCK, size):  # too short to be a block of its own
        found.pop()
    if text is not None and len(ids) < LEAST:
        raise UsageError(
            f"the text has {len(ids)} tokens, and a comparison needs at least {LEAST}", hint="name a longer text"
        )
    return found


def corpus_sha256(found: list[list[int]]) -> str:
    """Return a hash of the token ids, so that two passports can be compared."""
    return hashlib.sha256("\n".join(" ".join(map(str, ids)) for ids in found).encode()).hexdigest()
