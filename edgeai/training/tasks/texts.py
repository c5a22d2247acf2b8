"""Texts → token ids: with a tokenizer that is trained here, or with the one that an encoder came with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from converters.checkpoint import open_checkpoint
from converters.errors import ConvertError
from converters.families.pooling import pooling, read_modules
from edgeai.errors import RecipeError
from edgeai.store import Store, looks_like_path
from edgeai.training import settings
from edgeai.training import tokenizer as bpe
from edgeai.training.export import file_sha256
from edgeai.training.settings import TokenizerSettings
from edgeai.training.tasks.text_networks import BertShape
from edgeai.types import Notice

__all__ = ["Encoder", "dump", "encode", "own_tokenizer", "read_encoder"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A sentence-transformers model of the BERT family: its shape, its tokenizer, and where its weights are."""

    shape: BertShape
    pooling: str
    normalize: bool
    tokenizer: Tokenizer
    weights: Path
    sha256: str
    notices: tuple[Notice, ...] = ()


def own_tokenizer(texts: Sequence[str], wanted: TokenizerSettings) -> Tokenizer:
    """Return a byte-level BPE trained on TEXTS, which puts its BOS before every text."""
    return bpe.train(texts, pre=wanted.pre, vocab_size=wanted.vocab_size)


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> tuple[Ids, Ids]:
    """Return ids and mask (rows, length) of TEXTS: cut to MAX_TOKENS, filled up to the longest with 0 in the mask.

    Special tokens that a text spells out are text.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    tokenizer.encode_special_tokens = True
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    length = max(map(len, rows))
    ids = np.full((len(rows), length), padding_id(tokenizer), dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def padding_id(tokenizer: Tokenizer) -> int:
    """Return the id that padding has; which one it is changes nothing, for the mask is 0 there."""
    found = (tokenizer.token_to_id(token) for token in (bpe.PAD, "[PAD]", "<pad>"))
    return next((number for number in found if number is not None), 0)


def dump(tokenizer: Tokenizer) -> str:
    """Return the contents of tokenizer.json, without a length to cut or to fill up to: the schema has that."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return bpe.dump(tokenizer)


def read_encoder(ref: str, folder: Path, max_tokens: int) -> Encoder:
    """Return the encoder that REF stands for: a path relative to FOLDER, or a pulled model.

    Raises ModelNotFound, and RecipeError for a folder that is no sentence-transformers model of the BERT family.
    """
    path = folder / Path(ref).expanduser() if looks_like_path(ref) else Store.open().find(ref)
    config = _config(path, ref)
    if config.get("model_type") != "bert":
        raise RecipeError(
            f"model.encoder {ref!r} is a {config.get('model_type')!r}",
            hint="a head is trained on models of the BERT family alone, such as minilm",
        )
    known = BertShape.__dataclass_fields__
    shape: BertShape = settings.RECIPE.build(BertShape, {key: config[key] for key in known if key in config}, "encoder")
    if max_tokens > shape.max_position_embeddings:
        raise RecipeError(
            f"model.max_tokens {max_tokens!r} is not possible",
            hint=f"{ref!r} reads at most {shape.max_position_embeddings} tokens",
        )
    try:
        way, warnings = pooling(open_checkpoint(path))
        modules = read_modules(path / "modules.json") or []
    except ConvertError as error:
        raise RecipeError(f"model.encoder {ref!r} cannot be used: {error.message}", hint=error.hint) from error
    if way not in ("mean", "cls"):
        raise RecipeError(f"model.encoder {ref!r} pools by {way!r}", hint="known here: mean, cls")
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise RecipeError(
            f"model.encoder {ref!r} has no model.safetensors", hint="nothing is unpickled: save it as safetensors"
        )
    return Encoder(
        shape=shape,
        pooling=way,
        normalize=any(kind == "Normalize" for kind, _ in modules),
        tokenizer=_tokenizer(path / "tokenizer.json", ref),
        weights=weights,
        sha256=file_sha256(weights),
        notices=tuple(Notice(code=code, message=message) for code, message in warnings),
    )


def _config(path: Path, ref: str) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"model.encoder {ref!r} has no config.json that can be read",
            hint="name a folder, or a pulled model: minilm",
        ) from error
    return config if isinstance(config, dict) else {}


def _tokenizer(path: Path, ref: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise RecipeError(
            f"model.encoder {ref!r} has no tokenizer.json that can be read: {error}", hint="copy or download it again"
        ) from error
