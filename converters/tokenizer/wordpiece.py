"""WordPiece (BERT, MiniLM, BGE): the longest known piece from the left, in words that are cut at spaces, punctuation and ideographs.

libllama (llama-vocab.cpp, `llm_tokenizer_wpm_session`) holds pieces in the "phantom space" form: U+2581 before a piece that begins a
word, nothing before one that goes on (`##`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from converters.errors import UnsupportedModel
from converters.tokenizer.kind import Hazard, Kind
from converters.tokenizer.special import Warnings
from converters.tokenizer.table import Table, vocab_table
from converters.tokenizer.vocabulary import CONTROL, NORMAL, PHANTOM

__all__ = ["word_piece"]

PREFIX = "##"


def has_wide_marks(text: str) -> bool:
    """Whether TEXT has marks that are not Mn, which alone BERT strips."""
    return any(unicodedata.category(char) in ("Mc", "Me") for char in unicodedata.normalize("NFD", text))


HAZARDS = (
    Hazard(
        in_text=re.compile("[\u1100-\u11ff\uac00-\ud7a3]").search,
        reason="llama.cpp keeps only the first letter of a Korean syllable",
    ),
    Hazard(
        in_text=has_wide_marks,
        reason="llama.cpp drops the vowel signs that take up space, as Hindi and Tamil have them",
    ),
    Hazard(
        in_text=re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]").search,
        reason="llama.cpp reads some control characters as spaces",
    ),
    Hazard(in_text=re.compile(r"\S{101}").search, reason="llama.cpp takes words of more than 100 characters apart"),
)
"""See `unicode_cpts_normalize_nfd`, `flags.is_accent_mark` (every mark, not Mn alone) and `preprocess` in llama-vocab.cpp."""

DOTTED = Hazard(
    in_text=re.compile("\u0130").search, reason="llama.cpp drops the dot of a capital \u0130 that becomes small"
)
"""`unicode_tolower` gives one character, and Unicode two; where accents are stripped, the dot goes in any case."""


def word_piece(spec: Mapping[str, Any], warnings: Warnings) -> Kind:
    """Return what is particular to the WordPiece tokenizer SPEC. Raises UnsupportedModel for what the runtime has no twin of."""
    del warnings
    model, normalizer, step = spec["model"], only(spec.get("normalizer")), only(spec.get("pre_tokenizer"))
    prefix = model.get("continuing_subword_prefix", PREFIX)
    if prefix != PREFIX:
        raise UnsupportedModel(f"the tokenizer has continuing_subword_prefix {prefix!r}, and {PREFIX!r} is known")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        raise UnsupportedModel(
            f"the tokenizer normalizes text in a way that is not known: {normalizer!r}", hint="known: BertNormalizer"
        )
    if not isinstance(step, dict) or step.get("type") != "BertPreTokenizer":
        raise UnsupportedModel(f"the tokenizer's pre_tokenizer is {step!r}", hint="known: BertPreTokenizer")
    lowercase = bool(normalizer.get("lowercase", True))
    accents = normalizer.get("strip_accents")
    strips = lowercase if accents is None else bool(accents)
    control = {str(item["content"]) for item in spec["added_tokens"] if item.get("special")}
    return Kind(
        model="bert",
        table=phantom_table(vocab_table(model), control),
        fields={
            "lowercase": lowercase,
            "strip_accents": strips,
            "add_sep": True,
        },
        unk=model["vocab"].get(model.get("unk_token")),
        hazards=(*HAZARDS, DOTTED) if lowercase and not strips else HAZARDS,
        embeds=True,
    )


def only(node: Any) -> Any:
    """Return the one step of a sequence of one, and anything else as it is."""
    steps = node.get("normalizers", node.get("pretokenizers")) if isinstance(node, dict) else None
    return only(steps[0]) if isinstance(steps, list) and len(steps) == 1 else node


def phantom_table(table: Table, control: set[str]) -> Table:
    """Return TABLE with its texts in the form of libllama; CONTROL tokens keep theirs."""
    return {
        token: (text, CONTROL) if text in control else (phantom(text), NORMAL) for token, (text, _) in table.items()
    }


def phantom(text: str) -> str:
    """Return a piece in libllama's form."""
    return text[len(PREFIX) :] if text.startswith(PREFIX) and text != PREFIX else PHANTOM + text
