"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): merges over the bytes of words, which a splitting expression cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.errors import UnsupportedModel
from converters.pretokenizer import NAMES, PreTokenizer, candidates, normalizer_of, splits_of
from converters.tokenizer.kind import Hazard, Kind
from converters.tokenizer.source import source_tokenizer
from converters.tokenizer.special import Warnings
from converters.tokenizer.table import vocab_table

__all__ = ["byte_level", "merges_of", "merges_reach_every_token"]


def byte_level(spec: Mapping[str, Any], warnings: Warnings) -> Kind:
    """Return what is particular to the byte-level BPE SPEC. Raises UnsupportedModel for what no file can hold."""
    check_model(spec["model"])
    normalizer, doubts = normalizer_of(spec), []
    if normalizer == "NFC":
        message = "the tokenizer brings text into NFC first, which llama.cpp does not know of: "
        message += "edgeai does so, and other runtimes give text in decomposed Unicode other token ids"
        warnings.append(("tokenizer-normalizer", message))
    elif normalizer:
        doubts.append(f"it normalizes text by {normalizer}")
    found = fitting(spec, candidates(spec))
    if not found:
        doubts.append(f"it splits text by {' then '.join(map(repr, splits_of(spec['pre_tokenizer']))) or 'nothing'}")
        if spec["model"].get("ignore_merges"):
            doubts.append("it takes words that are tokens whole (ignore_merges)")
    near = [item.near for item in found if item.near]
    return Kind(
        model="gpt2",
        pre=found[0].name if found else NAMES[0],
        table=vocab_table(spec["model"]),
        merges=merges_of(spec["model"]),
        normalizer=normalizer if normalizer == "NFC" else None,
        choices=tuple(item.name for item in found) if near else () if found else NAMES,
        doubts=tuple(doubts),
        hazards=tuple(Hazard(in_text=is_foreign, reason=reason) for reason in dict.fromkeys(near)),
    )


def is_foreign(text: str) -> bool:
    """Whether TEXT has characters that are not ASCII."""
    return not text.isascii()


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


def fitting(spec: Mapping[str, Any], choices: list[PreTokenizer]) -> list[PreTokenizer]:
    """Return those of CHOICES that treat whole words as the tokenizer does, by their flag or in effect; of exact ones the first."""
    wanted, reach = bool(spec["model"].get("ignore_merges")), None
    found: list[PreTokenizer] = []
    for item in choices:
        if item.ignore_merges != wanted and reach is None:
            reach = merges_reach_every_token(spec)
        if item.ignore_merges == wanted or reach:
            found.append(item)
            if not item.near:
                return found
    return found


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
