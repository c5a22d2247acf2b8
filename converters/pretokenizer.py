"""Which of the runtime's pre-tokenizers splits text as a tokenizer.json does.

A GGUF file does not carry the splitting expression, only a name (`tokenizer.ggml.pre`) that libllama knows. The name is decided from
the expression itself, by exact comparison with the table below, and is then proved by execution (`converters.tokenizer`). The
expressions are those of the model families the names come from; what libllama does for each name is in llama-vocab.cpp
(`llm_tokenizer_bpe`).
"""

from __future__ import annotations

import json
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
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def cased(ending: str, digits: str) -> str:
    """Return the expression that cuts words where their case changes."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{UPPER}*{LOWER}+{ending}|{first}{UPPER}+{LOWER}*{ending}|{digits}{REST_SLASH}"


O200K = cased(CONTRACTIONS + "?", r"\p{N}{1,3}")
TEKKEN = cased("", r"\p{N}")
CJK = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
CASCADE = (
    "|".join(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")) + r"|\s{1}"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
COVERING = frozenset({GPT2, LLAMA3, QWEN2, QWEN35, O200K, TEKKEN})
"""Expressions that leave no character of any text out. OLMo 2, Phi-4-mini and others that came from tiktoken remove what is between the
matches (behavior Removed, invert true), which is nothing here."""
DIGITS = "digits"
"""Digits(individual_digits=true): each digit by itself."""
NUMBERS = r"\p{N}+"
"""What Digits(individual_digits=false) does."""
PUNCTUATION = "punctuation"
"""Punctuation(behavior=Contiguous): runs of punctuation, as the `tokenizers` library knows it."""
BYTES = "bytes"
"""Stands before the steps that come after the ByteLevel step, and see its characters for bytes instead of the text."""

Split = tuple[str, ...]
"""The expressions, in the order in which they are applied; the whole splitting of a tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """A name libllama knows: how it splits, and whether a whole word that is in the vocabulary is taken without merging.

    Where libllama only comes near the expression, `near` says what it does otherwise.
    """

    name: str
    splits: Split
    ignore_merges: bool = False
    near: str | None = None


MARKS = "llama.cpp knows of no combining marks and of no case beyond A to Z where it cuts words"
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(name="gpt-2", splits=(GPT2,)),
    PreTokenizer(name="smollm", splits=(DIGITS, GPT2)),
    PreTokenizer(name="llama-bpe", splits=(LLAMA3,), ignore_merges=True),
    PreTokenizer(name="dbrx", splits=(LLAMA3,)),
    PreTokenizer(name="qwen2", splits=(QWEN2,)),
    PreTokenizer(name="qwen35", splits=(QWEN35,)),
    PreTokenizer(name="gpt-4o", splits=(O200K,), near=MARKS),
    PreTokenizer(name="granite-embed-multi-97m", splits=(O200K,), ignore_merges=True, near=MARKS),
    PreTokenizer(name="tekken", splits=(TEKKEN,), ignore_merges=True, near=MARKS),
    PreTokenizer(name="deepseek-v3", splits=(r"\p{N}{1,3}", CJK, DEEPSEEK3)),
    PreTokenizer(name="jais-2", splits=(WORDS + r"\p{N}{1,3}" + REST.partition(r"|\s+(?!")[0] + "|" + CASCADE,)),
    PreTokenizer(
        name="seed-coder",
        splits=(WORDS + "\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",),
    ),
    PreTokenizer(name="minicpm5", splits=(r"\p{N}{1,3}", WORDS + r"\p{N}+" + REST), ignore_merges=True),
    PreTokenizer(name="ufakzeka", splits=(QWEN2.removeprefix(CONTRACTIONS + "|"),)),
    PreTokenizer(name="laguna", splits=(r"[^\n]+|[\n]+", QWEN2)),
    PreTokenizer(
        name="bailingmoe",
        splits=(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(name="bloom", splits=(BLOOM,)),
    PreTokenizer(name="viking", splits=(BLOOM, DIGITS)),
)
NAMES: tuple[str, ...] = (
    *dict.fromkeys(item.name for item in PRE_TOKENIZERS),
    *("falcon", "deepseek-llm", "deepseek-coder", "exaone-moe", "youtu", "spark2_5", "default"),
)
"""One name for each way of splitting in llama-vocab.cpp: what is tried for a splitting that is not in the table."""


ALIASES: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (
        *("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum"),
        *("modern-bert", "roberta-bpe", "jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de"),
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0", "jina-v5-nano"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
}
"""Further names that split in the same way (llama-vocab.cpp): what other converters may have written."""


def by_name(name: str) -> PreTokenizer:
    """Return the entry of the table that splits as the runtime's NAME does. Raises KeyError where there is none."""
    usual = next((known for known, others in ALIASES.items() if name in others), name)
    return {item.name: item for item in PRE_TOKENIZERS}[usual]


def node_of(splits: Split) -> dict[str, Any]:
    """Return the `pre_tokenizer` of a tokenizer.json that splits by SPLITS."""
    before, after = (
        (splits[: splits.index(BYTES)], splits[splits.index(BYTES) + 1 :]) if BYTES in splits else (splits, ())
    )
    own = bool(before) and before[-1] == GPT2
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own}
    steps = [*map(split_node, before[:-1] if own else before), letters, *map(split_node, after)]
    return {"type": "Sequence", "pretokenizers": steps}


def split_node(split: str) -> dict[str, Any]:
    """Return the step of a tokenizer.json that splits by one expression."""
    if split in (DIGITS, NUMBERS):
        return {"type": "Digits", "individual_digits": split == DIGITS}
    if split == PUNCTUATION:
        return {"type": "Punctuation", "behavior": "Contiguous"}
    return {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}


def candidates(spec: Mapping[str, Any]) -> list[PreTokenizer]:
    """Return the entries of the table whose splitting is that of the tokenizer.json SPEC, the usual one first.

    Raises UnsupportedModel when SPEC is no byte-level BPE; a splitting that is not in the table gives an empty list.
    """
    splits = splits_of(spec.get("pre_tokenizer"))
    return [item for item in PRE_TOKENIZERS if item.splits == splits]


def splits_of(node: Any) -> Split:
    """Return the expressions of a tokenizer.json `pre_tokenizer`, which must have the byte-level alphabet."""
    steps = list(flatten(node))
    places = [place for place, step in enumerate(steps) if step.get("type") == "ByteLevel"]
    if not places:
        kinds = ", ".join(str(step.get("type")) for step in steps) or "none"
        raise UnsupportedModel(
            f"the tokenizer's pre_tokenizer is {kinds}, and only byte-level BPE is known",
            hint="tokenizers of GPT-2, Llama 3, SmolLM2 and Qwen2 are byte-level BPE",
        )
    before, after = steps[: places[0] + 1], steps[places[0] + 1 :]
    splits = [split for step in before for split in step_splits(step)]
    if after:
        splits += [BYTES, *(split for step in after for split in step_splits(step))]
    return tuple(splits)


def flatten(node: Any) -> list[Mapping[str, Any]]:
    """Return the steps of NODE, with sequences inside sequences unrolled."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        return [step for item in node.get("pretokenizers") or [] for step in flatten(item)]
    return [node]


def flatten_normalizer(node: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a tokenizer.json `normalizer`, with sequences inside sequences unrolled."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        return [step for item in node.get("normalizers") or [] for step in flatten_normalizer(item)]
    return [node]


def step_splits(step: Mapping[str, Any]) -> Split:
    """Return the expressions of one step; one that stands for a step which nothing in the table has."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return (GPT2,) if step.get("use_regex", True) else ()
    if kind == "Digits":
        return (DIGITS,) if step.get("individual_digits") else (NUMBERS,)
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return (PUNCTUATION,)
    if kind == "Split" and isinstance(step.get("pattern"), dict) and isinstance(step["pattern"].get("Regex"), str):
        expression: str = step["pattern"]["Regex"]
        kept = step.get("behavior") == "Removed" and step.get("invert") is True and expression in COVERING
        if kept or step.get("behavior") == "Isolated":  # then `invert` changes nothing
            return (DIGITS,) if expression == r"\p{N}" else (expression,)
    return (f"step {json.dumps(step, ensure_ascii=False)}",)


def normalizer_of(spec: Mapping[str, Any]) -> str | None:
    """Return "NFC", None, or the JSON of a normalizer that has no twin here."""
    steps = flatten_normalizer(spec.get("normalizer"))
    if not steps:
        return None
    kinds = [step.get("type") for step in steps]
    return "NFC" if kinds == ["NFC"] else json.dumps(spec["normalizer"], ensure_ascii=False)
