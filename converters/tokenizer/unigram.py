"""Unigram (XLM-RoBERTa, multilingual-e5, bge-m3, T5): the likeliest way to cut a text into pieces with log probabilities.

libllama (llama-vocab.cpp, `llm_tokenizer_ugm_session`) does as SentencePiece does, with the same precompiled table of replacements.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.pretokenizer import flatten, flatten_normalizer
from converters.tokenizer.kind import Hazard, Kind
from converters.tokenizer.source import AGAIN
from converters.tokenizer.special import Warnings
from converters.tokenizer.table import Table
from converters.tokenizer.vocabulary import NORMAL, UNKNOWN

__all__ = ["unigram"]


def has_marks(text: str) -> bool:
    """Whether TEXT has combining marks."""
    return any(unicodedata.category(char)[0] == "M" for char in text)


HAZARDS = (
    Hazard(in_text=has_marks, reason="llama.cpp composes letters with several combining marks otherwise"),
    Hazard(
        in_text=re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]").search,
        reason="llama.cpp takes some control characters for letters",
    ),
)
"""`normalize_prefix` in llama-vocab.cpp goes by the longest entry, the tokenizers library by whole letters with their marks."""
UNUSED_SCORE = -10000.0
"""What the reference converter gives ids without a piece; no text is ever cut there."""


def unigram(spec: Mapping[str, Any], warnings: Warnings) -> Kind:
    """Return what is particular to the Unigram tokenizer SPEC. Raises UnsupportedModel for what the runtime has no twin of."""
    del warnings
    model = spec["model"]
    if model.get("byte_fallback"):
        raise UnsupportedModel("the tokenizer is Unigram with byte_fallback, which the runtime cannot do")
    table, scores = pieces_of(model)
    charsmap, merge_spaces = normalizer_facts(spec)
    prefix, splits = space_facts(spec)
    return Kind(
        model="t5",
        table=table,
        scores=scores,
        unk=model.get("unk_id"),
        hazards=HAZARDS,
        other_score=UNUSED_SCORE,
        fields={
            "add_space_prefix": prefix,
            "remove_extra_whitespaces": merge_spaces or splits,
            "precompiled_charsmap": charsmap,
        },
        embeds=True,
    )


def pieces_of(model: Mapping[str, Any]) -> tuple[Table, dict[int, float]]:
    """Return id → (piece, type) and id → score."""
    vocab, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocab, list) or not all(is_piece(item) for item in vocab):
        raise BrokenCheckpoint("tokenizer.json has no vocabulary of [piece, score]", hint=AGAIN)
    table = {token: (item[0], UNKNOWN if token == unknown else NORMAL) for token, item in enumerate(vocab)}
    return table, {token: float(item[1]) for token, item in enumerate(vocab)}


def is_piece(item: Any) -> bool:
    """Whether ITEM is a [piece, score]."""
    return (
        isinstance(item, list)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], (int, float))
        and abs(item[1]) < 1e30
    )


def normalizer_facts(spec: Mapping[str, Any]) -> tuple[bytes | None, bool]:
    """Return the table of replacements, and whether runs of spaces become one."""
    charsmap, merge = None, False
    for step in flatten_normalizer(spec.get("normalizer")):
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Precompiled":
            charsmap = decode(step.get("precompiled_charsmap"))
        elif kind == "Replace" and pattern == {"Regex": " {2,}"} and step.get("content") in (" ", "▁"):
            merge = True
        elif kind != "Strip":  # at the ends: what merging of spaces does too
            raise UnsupportedModel(
                f"the tokenizer normalizes text in a way that is not known: {dict(step)!r}",
                hint="known for Unigram: Precompiled, Replace of runs of spaces, Strip",
            )
    return charsmap, merge


def decode(text: Any) -> bytes | None:
    """Return the bytes of a precompiled table, which libllama reads with no check of what its offsets point to."""
    if not text:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise BrokenCheckpoint("tokenizer.json has a precompiled_charsmap that is not base64", hint=AGAIN) from error
    if len(data) < 5 or int.from_bytes(data[:4], "little") + 4 >= len(data):
        raise BrokenCheckpoint("tokenizer.json has a precompiled_charsmap that ends too early", hint=AGAIN)
    return data


def space_facts(spec: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether a space goes before the text, and whether words are cut at spaces, which then count as one."""
    prefix, splits = False, False
    for step in flatten(spec.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "WhitespaceSplit":
            splits = True
        elif kind == "Metaspace" and step.get("replacement", "▁") == "▁":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = scheme != "never"
        else:
            raise UnsupportedModel(
                f"the tokenizer's pre_tokenizer has a step that is not known: {dict(step)!r}",
                hint="known for Unigram: WhitespaceSplit, Metaspace",
            )
    return prefix, splits
