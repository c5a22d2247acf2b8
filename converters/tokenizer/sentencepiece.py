"""SentencePiece BPE (Llama 2, Mistral, Gemma, Phi-3): merges over characters, with bytes for what is in no piece.

libllama (llama-vocab.cpp, `llm_tokenizer_spm_session`) joins whichever two neighbours make the piece with the highest score. A
tokenizer.json has a list of merges instead; the score of a piece is the rank of the first merge that makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.normalize import SPACE_ALWAYS, SPACE_FIRST
from converters.pretokenizer import flatten, flatten_normalizer
from converters.tokenizer.kind import Hazard, Kind
from converters.tokenizer.source import AGAIN
from converters.tokenizer.special import Warnings
from converters.tokenizer.table import Table, vocab_table
from converters.tokenizer.vocabulary import BYTE, NORMAL, PHANTOM, UNKNOWN

__all__ = ["sentence_piece"]

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
OTHER_SCORE = -1000.0
"""Of added and padding tokens, which no merge makes: that of the reference converter."""


def sentence_piece(spec: Mapping[str, Any], warnings: Warnings) -> Kind:
    """Return what is particular to the SentencePiece BPE SPEC. Raises UnsupportedModel for what the runtime has no twin of."""
    model = spec["model"]
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedModel(f"the tokenizer has {option} {model[option]!r}, which the runtime cannot do")
    table = piece_table(model)
    prefix, normalizer, doubts = space_facts(spec)
    doubts += behind_spaces(spec)
    if normalizer:
        message = "the tokenizer puts a space before a text in a way that llama.cpp does not know of "
        message += f"({normalizer}): edgeai does so, and other runtimes may read the first word of a text otherwise"
        warnings.append(("tokenizer-normalizer", message))
    return Kind(
        model="llama",
        table=table,
        scores=merge_scores(model, table),
        other_score=OTHER_SCORE,
        unk=next((token for token, (_, kind) in table.items() if kind == UNKNOWN), None),
        normalizer=normalizer,
        doubts=tuple(doubts),
        hazards=(lone_space(spec),) if normalizer == SPACE_ALWAYS else (),
        fields={"add_space_prefix": prefix, "remove_extra_whitespaces": False},
    )


def piece_table(model: Mapping[str, Any]) -> Table:
    """Return id → (piece, type): byte pieces and the unknown one have types of their own."""
    unknown, table = model.get("unk_token"), vocab_table(model)
    for token, (text, _) in table.items():
        if BYTE_PIECE.fullmatch(text):
            table[token] = (text, BYTE)
        elif text == unknown:
            table[token] = (text, UNKNOWN)
    if missing := 256 - sum(kind == BYTE for _, kind in table.values()):
        raise UnsupportedModel(
            f"the tokenizer is SentencePiece BPE (Metaspace) and has no pieces for {missing} of the 256 bytes",
            hint="the runtime would end with an abort at the first character that is in no piece",
        )
    return table


def merge_scores(model: Mapping[str, Any], table: Table) -> dict[int, float]:
    """Return id → score: the later the first merge that makes a piece, the lower. Characters, which no merge makes, come last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or []):
        ranks.setdefault(joined(merge), rank)
    order = {rank: place for place, rank in enumerate(sorted(set(ranks.values())))}  # float32 counts up to 2^24
    last = float(len(order))
    kinds = (NORMAL,)
    return {
        token: -float(order[ranks[text]]) if text in ranks else -last
        for token, (text, kind) in table.items()
        if kind in kinds or text in ranks
    } | {token: 0.0 for token, (_, kind) in table.items() if kind in (BYTE, UNKNOWN)}


def joined(merge: Any) -> str:
    """Return what a merge makes; tokenizer.json has "left right" or a pair."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise BrokenCheckpoint(f"tokenizer.json has the merge {merge!r}", hint=AGAIN)
    return f"{parts[0]}{parts[1]}"


def space_facts(spec: Mapping[str, Any]) -> tuple[bool, str | None, list[str]]:
    """Return whether libllama shall put a space before a text, the normalizer that does it here, and steps that are not known."""
    prefix, normalizer, doubts = False, None, list[str]()
    for step in flatten_normalizer(spec.get("normalizer")):
        if step.get("type") == "Prepend" and step.get("prepend") == PHANTOM:
            prefix = True
        elif not is_escape(step):
            doubts.append(f"it normalizes text by {json.dumps(step, ensure_ascii=False)}")
    for step in flatten(spec.get("pre_tokenizer")):
        if step.get("type") == "Metaspace" and step.get("replacement", PHANTOM) == PHANTOM:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            normalizer = {"first": SPACE_FIRST, "always": SPACE_ALWAYS}.get(scheme) if not prefix else None
            if step.get("split", True):
                doubts.append("it cuts text at spaces before it merges")
        elif step.get("type") != "Split" or step.get("pattern") != {"String": " "}:
            doubts.append(f"it splits text by {json.dumps(step, ensure_ascii=False)}")
    return prefix or normalizer == SPACE_ALWAYS, normalizer, doubts


def behind_spaces(spec: Mapping[str, Any]) -> list[str]:
    """Return why added tokens are not found everywhere: Prepend puts a space before those with the flag `normalized` too."""
    steps = flatten_normalizer(spec.get("normalizer"))
    if not any(step.get("type") == "Prepend" for step in steps):
        return []
    found = [str(item["content"]) for item in spec["added_tokens"] if isinstance(item, dict) and item.get("normalized")]
    names = ", ".join(map(repr, found[:4])) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return [f'it finds {names} only behind a space, for want of "normalized": false'] if found else []


def lone_space(spec: Mapping[str, Any]) -> Hazard:
    """Return the hazard of SPACE_ALWAYS: libllama puts a space before a space too, and a text of one space cannot be one less."""
    special = tuple(f"{item['content']} " for item in spec["added_tokens"] if isinstance(item, dict))

    def found(text: str) -> bool:
        return text.startswith((" ", PHANTOM)) or any(token in text for token in special)

    return Hazard(in_text=found, reason="llama.cpp puts a space before a space that stands by itself")


def is_escape(step: Mapping[str, Any]) -> bool:
    """Whether STEP writes spaces as U+2581, as libllama always does."""
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == PHANTOM
