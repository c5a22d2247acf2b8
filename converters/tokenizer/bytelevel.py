"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): merges over the bytes of words, which a splitting expression cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.errors import UnsupportedModel
from converters.pretokenizer import PreTokenizer, candidates, normalizer_of
from converters.tokenizer.kind import Kind
from converters.tokenizer.source import source_tokenizer
from converters.tokenizer.special import Warnings
from converters.tokenizer.table import vocab_table

__all__ = ["byte_level", "merges_of", "merges_reach_every_token"]


def byte_level(spec: Mapping[str, Any], warnings: Warnings) -> Kind:
    """Return what is particular to the byte-level BPE SPEC. Raises UnsupportedModel for what the runtime has no twin of."""
    normalizer, choices = normalizer_of(spec), candidates(spec)
    check_model(spec["model"])
    if normalizer:
        message = f"the tokenizer brings text into {normalizer} first, which llama.cpp does not know of: "
        message += "edgeai does so, and other runtimes give text in decomposed Unicode other token ids"
        warnings.append(("tokenizer-normalizer", message))
    return Kind(
        model="gpt2",
        pre=choose(spec, choices).name,
        table=vocab_table(spec["model"]),
        merges=merges_of(spec["model"]),
        normalizer=normalizer,
    )


def check_model(model: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel unless MODEL is byte-level BPE without options that the runtime has no twin of."""
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedModel(f"the tokenizer has {option} {model[option]!r}, which the runtime cannot do")


def merges_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the merges as "left right"; tokenizer.json has either that or pairs."""
    merges = []
    for merge in model.get("merges") or []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(isinstance(part, str) and part and " " not in part for part in parts):
            raise UnsupportedModel(f"the tokenizer has the merge {merge!r}, which a GGUF file cannot hold")
        merges.append(f"{parts[0]} {parts[1]}")
    return tuple(merges)


def choose(spec: Mapping[str, Any], choices: list[PreTokenizer]) -> PreTokenizer:
    """Return the first of CHOICES that treats whole words as the tokenizer does, by its flag or in effect."""
    wanted = bool(spec["model"].get("ignore_merges"))
    for item in choices:
        if item.ignore_merges == wanted or merges_reach_every_token(spec):
            return item
    raise UnsupportedModel(
        f"the tokenizer has ignore_merges {wanted}, and the runtime's {choices[0].name!r} is the other way",
        hint="its vocabulary has tokens that merges do not reach, so the two would give different ids",
    )


def merges_reach_every_token(spec: Mapping[str, Any]) -> bool:
    """Whether merging alone gives each token of the vocabulary for its own text; then `ignore_merges` changes nothing."""
    plain = {**spec, "model": {**spec["model"], "ignore_merges": False}}
    tokenizer = source_tokenizer(plain)
    added = {str(item["content"]) for item in spec["added_tokens"]}
    for text, token in spec["model"]["vocab"].items():
        if text in added and len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) != 1:
            continue  # never one word, so it is only ever found as an added token
        found = tokenizer.model.tokenize(text)
        if len(found) != 1 or found[0].id != token:
            return False
    return True
