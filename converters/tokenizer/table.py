"""Which id has which text and type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from converters.errors import BrokenCheckpoint
from converters.tokenizer.source import AGAIN
from converters.tokenizer.vocabulary import CONTROL, NORMAL, PHANTOM, UNKNOWN, UNUSED, USER_DEFINED

__all__ = ["Table", "add_tokens", "check_size", "drop_modalities", "pad", "vocab_table"]

MODALITY = re.compile(r"^<\W*[\w ]*(?:image|img|audio|speech|video|vision)\w*\W*>$", re.IGNORECASE)
Table = dict[int, tuple[str, int]]
"""id → (text, type)."""


def vocab_table(model: Mapping[str, Any]) -> Table:
    """Return the table of a tokenizer.json model whose vocabulary is token → id, all of them ordinary."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(token) is int and token >= 0 for token in vocab.values()):
        raise BrokenCheckpoint("tokenizer.json has no vocabulary of token → id", hint=AGAIN)
    table = {token: (text, NORMAL) for text, token in vocab.items()}
    if len(table) != len(vocab):
        raise BrokenCheckpoint("tokenizer.json gives one id to two tokens", hint=AGAIN)
    return table


def add_tokens(table: Table, spec: Mapping[str, Any]) -> None:
    """Put the added tokens of SPEC into TABLE, where they stand or behind it.

    The unknown token keeps its type. One that is a piece with spaces (Gemma's runs of them) stays a piece: libllama would look for it
    before it writes spaces as U+2581, and merging finds it anyway.
    """
    for item in spec["added_tokens"]:
        token = check_added(item, table)
        old = table.get(token, ("", NORMAL))[1]
        if old != UNKNOWN and not (PHANTOM in item["content"] and token in table and not item.get("special")):
            table[token] = (str(item["content"]), CONTROL if item.get("special") else USER_DEFINED)


def check_added(item: Any, table: Table) -> int:
    """Return the id of one added token after checking it against the vocabulary."""
    if not isinstance(item, dict) or type(item.get("id")) is not int or item["id"] < 0 or not item.get("content"):
        raise BrokenCheckpoint(f"tokenizer.json has the added token {item!r}", hint=AGAIN)
    token, text = int(item["id"]), str(item["content"])
    if token in table and table[token][0] != text:
        raise BrokenCheckpoint(
            f"the added token {text!r} has the id {token}, which is {table[token][0]!r} in the vocabulary"
        )
    return token


def drop_modalities(spec: dict[str, Any], vocab_size: int) -> list[str]:
    """Take the added tokens behind VOCAB_SIZE that stand for pictures or sound out of SPEC, and return their texts.

    Gemma 3's tokenizer has `<image_soft_token>` as 262144, which the text model has no row for.
    """
    items = [item for item in spec["added_tokens"] if isinstance(item, dict) and type(item.get("id")) is int]
    gone = [item for item in items if item["id"] >= vocab_size and MODALITY.search(str(item.get("content")))]
    spec["added_tokens"] = [item for item in spec["added_tokens"] if item not in gone]
    for item in gone:
        vocab = spec["model"].get("vocab")
        if isinstance(vocab, dict):
            vocab.pop(item["content"], None)
    return [str(item["content"]) for item in gone]


def check_size(table: Table, vocab_size: int) -> int:
    """Return the number of ids that the tokenizer can give; raises BrokenCheckpoint when the model has fewer."""
    real_size = max(table) + 1
    if real_size > vocab_size:
        raise BrokenCheckpoint(
            f"the tokenizer gives ids up to {real_size - 1} ({table[real_size - 1][0]!r}), and config.json has vocab_size {vocab_size}",
            hint="tokens were added without model.resize_token_embeddings(): resize and save the model again",
        )
    return real_size


def pad(table: Table, vocab_size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the texts and the types of all VOCAB_SIZE ids; those that no token has are unused."""
    taken = {text for text, _ in table.values()}
    if len(taken) != len(table):
        raise BrokenCheckpoint("the tokenizer has one text under two ids", hint=AGAIN)
    for token in range(vocab_size):
        if token not in table:
            table[token] = (padding_text(token, taken), UNUSED)
    ordered = [table[token] for token in range(vocab_size)]
    return tuple(text for text, _ in ordered), tuple(kind for _, kind in ordered)


def padding_text(token: int, taken: set[str]) -> str:
    """Return a text for an id that no token has; libllama wants each text once."""
    text = f"[PAD{token}]"
    while text in taken:
        text = f"[{text}]"
    taken.add(text)
    return text
