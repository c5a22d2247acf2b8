"""A byte-level BPE whose split is one that llama.cpp knows by name, so that the converted model splits text alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edgeai.errors import RecipeError

__all__ = ["BOS", "EOS", "PAD", "config", "dump", "encode", "sha256", "train"]

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

# The tails that llama-bpe and qwen2 share. Both regexes are written exactly as in the tokenizer.json of Llama 3 and
# Qwen2; llama.cpp (src/llama-vocab.cpp) runs the same ones for the names below, with (?i:…) spelled out.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Mapping[str, str] = {
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",
}


def train(documents: Iterable[str], *, pre: str, vocab_size: int) -> Tokenizer:
    """Train a tokenizer with the split PRE and exactly VOCAB_SIZE tokens on DOCUMENTS.

    Ids 0, 1 and 2 are BOS, EOS and PAD. A text too small for VOCAB_SIZE merges is filled up with `<|unused…|>`
    tokens, so that the tokenizer and the model's embedding always have the same size.
    """
    # There is no normaliser: llama.cpp applies none for these names. Its llama-bpe takes a whole word that
    # is in the vocabulary without merging; the others always merge.
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(f"<|unused{index}|>", special=True) for index in range(missing)])
    if tokenizer.get_vocab_size() != vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {vocab_size!r}",
            hint="choose another tokenizer.vocab_size",
        )
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """Return the split that llama.cpp calls PRE, in the form in which the converter recognises it."""
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return BOS, the ids of TEXT and EOS; a `<|eos|>` written in the text is text, not a control token."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    assert bos is not None  # noqa: S101 - `train` put both there
    assert eos is not None  # noqa: S101
    return [bos, *ids, eos]


def sha256(tokenizer: Tokenizer) -> str:
    """Return the hash of the tokenizer's vocabulary, merges and settings."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def config(*, context: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],  # a Llama refuses the token_type_ids of the default
    }


def dump(tokenizer: Tokenizer) -> str:
    """Return the contents of tokenizer.json."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1) + "\n"
