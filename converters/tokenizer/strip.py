"""Added tokens that swallow the spaces beside them, or are only seen between spaces: flags that a GGUF file cannot hold.

libllama sets them for some tokens of some models by name (llama-vocab.cpp, "Handle per token attributes"); where those are the ones of
the tokenizer, the name is written. What is left is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.tokenizer.kind import Hazard, Kind

__all__ = ["PHI3", "plain_name", "with_strips"]

PHI3 = "phi-3"
PHI3_PLAIN = {"<unk>", "<s>", "<|endoftext|>"}
NAMES_WITH_EFFECT = ("phi-3", "phi3", "modern-bert")
FLAGS = ("lstrip", "rstrip", "single_word")


def with_strips(kind: Kind, spec: Mapping[str, Any]) -> Kind:
    """Return KIND with the names and hazards that come from the flags of the added tokens."""
    flagged = {
        flag: {str(item["content"]) for item in spec["added_tokens"] if isinstance(item, dict) and item.get(flag)}
        for flag in FLAGS
    }
    if not any(flagged.values()):
        return kind
    everything = {str(item["content"]) for item in spec["added_tokens"]}
    alone = not flagged["lstrip"] and not flagged["single_word"]
    if alone and "</s>" in everything >= PHI3_PLAIN and flagged["rstrip"] == everything - PHI3_PLAIN:
        return replace(kind, fields={**kind.fields, "needs_name": PHI3})
    masks = flagged["lstrip"] == {"<mask>"} and not flagged["rstrip"] and not flagged["single_word"]
    if masks and kind.pre == "gpt-2":
        return replace(
            kind, pre="jina-v2-code"
        )  # splits as gpt-2, and knows that <mask> swallows what stands before it
    return replace(kind, hazards=(*kind.hazards, hazard(flagged)))


def hazard(flagged: Mapping[str, set[str]]) -> Hazard:
    """Return the hazard of texts where the flags of tokens take effect."""
    parts = []
    for flag, form in (("lstrip", r"\s(?:{})"), ("rstrip", r"(?:{})\s"), ("single_word", r"\w(?:{0})|(?:{0})\w")):
        if flagged[flag]:
            parts.append(form.format("|".join(map(re.escape, sorted(flagged[flag])))))
    some = sorted(set().union(*flagged.values()))
    names = ", ".join(map(repr, some[:4])) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
    reason = (
        f"llama.cpp does not know that {names} {'swallows' if len(some) == 1 else 'swallow'} the spaces beside them"
    )
    return Hazard(in_text=re.compile("|".join(parts)).search, reason=reason)


def plain_name(name: str, needs: str | None) -> str:
    """Return the model's NAME with what libllama must find in it, and without what it must not, because it goes by the name."""
    if needs:
        return name if needs in name.lower() else f"{needs} {name}"
    for word in NAMES_WITH_EFFECT:
        name = re.sub(re.escape(word), word.replace("-", " ") if "-" in word else "phi 3", name, flags=re.IGNORECASE)
    return name
