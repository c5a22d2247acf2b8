"""Which of the runtime's pre-tokenizers splits text as a tokenizer.json does.

A GGUF file does not carry the splitting expression, only a name (`tokenizer.ggml.pre`) that libllama knows. The name is decided from
the expression itself, by exact comparison with the table below, and is then proved by execution (`converters.tokenizer`). The
expressions are those of the model families the names come from; what libllama does for each name is in llama-vocab.cpp
(`llm_tokenizer_bpe`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.errors import UnsupportedModel

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "Split", "candidates", "normalizer_of", "splits_of"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression built into the ByteLevel pre-tokenizer of the `tokenizers` library."""
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = WORDS + r"\p{N}{1,3}" + REST
QWEN2 = WORDS + r"\p{N}" + REST
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = "digits"
"""Digits(individual_digits=true): each digit by itself."""

Split = tuple[str, ...]
"""The expressions, in the order in which they are applied; the whole splitting of a tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """A name libllama knows: how it splits, and whether a whole word that is in the vocabulary is taken without merging."""

    name: str
    splits: Split
    ignore_merges: bool = False


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(name="gpt-2", splits=(GPT2,)),
    PreTokenizer(name="smollm", splits=(DIGITS, GPT2)),
    PreTokenizer(name="llama-bpe", splits=(LLAMA3,), ignore_merges=True),
    PreTokenizer(name="dbrx", splits=(LLAMA3,)),
    PreTokenizer(name="qwen2", splits=(QWEN2,)),
    PreTokenizer(name="qwen35", splits=(QWEN35,)),
)


def candidates(spec: Mapping[str, Any]) -> list[PreTokenizer]:
    """Return the names whose splitting is that of the tokenizer.json SPEC, the usual one first.

    Raises UnsupportedModel that shows the splitting when there is none.
    """
    splits = splits_of(spec.get("pre_tokenizer"))
    found = [item for item in PRE_TOKENIZERS if item.splits == splits]
    if not found:
        known = ", ".join(dict.fromkeys(item.name for item in PRE_TOKENIZERS))
        raise UnsupportedModel(
            f"the tokenizer splits text in a way that is not known: {' then '.join(map(repr, splits)) or 'not at all'}",
            hint=f"known splittings: {known}; the expression must be exactly the same",
        )
    return found


def splits_of(node: Any) -> Split:
    """Return the expressions of a tokenizer.json `pre_tokenizer`, which must end in the byte-level alphabet."""
    steps = list(flatten(node))
    if not steps or steps[-1].get("type") != "ByteLevel":
        kinds = ", ".join(str(step.get("type")) for step in steps) or "none"
        raise UnsupportedModel(
            f"the tokenizer's pre_tokenizer is {kinds}, and only byte-level BPE is known",
            hint="tokenizers of GPT-2, Llama 3, SmolLM2 and Qwen2 are byte-level BPE",
        )
    return tuple(split for step in steps for split in step_splits(step))


def flatten(node: Any) -> list[Mapping[str, Any]]:
    """Return the steps of NODE, with sequences inside sequences unrolled."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        return [step for item in node.get("pretokenizers") or [] for step in flatten(item)]
    return [node]


def step_splits(step: Mapping[str, Any]) -> Split:
    """Return the expressions of one step; raises UnsupportedModel for a step or an option without a twin in the runtime."""
    kind = step.get("type")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise UnsupportedModel(
                "the tokenizer puts a space before the text (ByteLevel add_prefix_space)",
                hint="the runtime cannot: train or save the tokenizer with add_prefix_space false",
            )
        return (GPT2,) if step.get("use_regex", True) else ()
    if kind == "Digits" and step.get("individual_digits"):
        return (DIGITS,)
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            expression: str = pattern["Regex"]
            return (DIGITS,) if expression == r"\p{N}" else (expression,)
    raise UnsupportedModel(f"the tokenizer's pre_tokenizer has a step that is not known: {dict(step)!r}")


def normalizer_of(spec: Mapping[str, Any]) -> str | None:
    """Return "NFC" or None; any other normalizer has no twin in the runtime and raises UnsupportedModel."""
    node = spec.get("normalizer")
    if isinstance(node, dict) and node.get("type") == "Sequence":
        items = [item for item in node.get("normalizers") or [] if item]
        node = items[0] if len(items) == 1 else (None if not items else node)
    if node is None:
        return None
    if isinstance(node, dict) and node.get("type") == "NFC":
        return "NFC"
    raise UnsupportedModel(
        f"the tokenizer normalizes text in a way that is not known: {node!r}", hint="known: none, NFC"
    )
