"""A Hugging Face tokenizer folder made back from the vocabulary of a GGUF file: real vocabularies without a hub."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from converters import pretokenizer
from converters.tokenizer.extract import merges_by_score

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NAMES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "cls": "cls",
    "mask": "mask",
}


class Keys:
    """The keys of a GGUF file as Python values."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.fields = GGUFReader(path).fields

    def get(self, key: str) -> Any:
        """Return the value of tokenizer.ggml.KEY, or None."""
        field = self.fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()


def folder_from_gguf(path: Path, folder: Path, *, space_prefix: bool = True) -> int:
    """Write tokenizer.json, tokenizer_config.json and config.json for the vocabulary of PATH; return its size."""
    keys = Keys(path)
    tokens, types = keys.get("tokens"), keys.get("token_type")
    if keys.get("model") == "llama":  # the reference converter writes spaces into user-defined tokens
        tokens = [text.replace(" ", "▁") for text in tokens]
    named = {f"{name}_token": keys.get(f"{key}_token_id") for name, key in NAMES.items()}
    if keys.get("model") == "bert":
        named["bos_token"] = None
    spec = SPECS[keys.get("model")](keys, tokens, types)
    if keys.get("model") == "llama":
        spec["normalizer"] = spaces(space_prefix)
    spec["added_tokens"] = [
        added(token, text, types[token])
        for token, text in enumerate(tokens)
        if types[token] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {name: tokens[token] for name, token in named.items() if token is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokens)}), encoding="utf-8")
    return len(tokens)


def added(token: int, text: str, kind: int) -> dict[str, Any]:
    """Return an added token of tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": kind != USER_DEFINED}


def spaces(prefix: bool) -> dict[str, Any]:
    """Return the normalizer of SentencePiece BPE."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]} if prefix else replace


def bpe_spec(keys: Keys, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return the spec of byte-level BPE, with the splitting of its `pre`."""
    merges = [merge.split(" ", 1) for merge in keys.get("merges")]
    found = pretokenizer.by_name(keys.get("pre"))
    vocab = {text: token for token, text in enumerate(tokens) if types[token] != UNUSED}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": merges,
        "ignore_merges": found.ignore_merges,
        "byte_fallback": False,
    }
    return {"version": "1.0", "model": model, "normalizer": None, "pre_tokenizer": pretokenizer.node_of(found.splits)}


def spm_spec(keys: Keys, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return the spec of SentencePiece BPE; merges come from the scores."""
    scores = dict(enumerate(keys.get("scores")))
    pieces = {text: token for token, text in enumerate(tokens) if types[token] in (NORMAL, USER_DEFINED, UNUSED)}
    vocab = {text: token for token, text in enumerate(tokens) if types[token] != UNUSED}
    unknown = keys.get("unknown_token_id")
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": merges_by_score(pieces, scores),
        "unk_token": tokens[unknown] if unknown is not None else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return {"version": "1.0", "model": model, "pre_tokenizer": None}


def wordpiece_spec(keys: Keys, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return the spec of an uncased WordPiece."""
    texts = [
        text if kind == CONTROL else text[1:] if text.startswith("▁") else f"##{text}"
        for text, kind in zip(tokens, types, strict=True)
    ]
    model = {"type": "WordPiece", "vocab": {text: token for token, text in enumerate(texts)}, "unk_token": "[UNK]"}
    rest = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    ends = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {text: {"id": text, "ids": [texts.index(text)], "tokens": [text]} for text in ("[CLS]", "[SEP]")}
    single = [*ends, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    post = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    return {
        "version": "1.0",
        "model": model | rest,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post,
    }


def unigram_spec(keys: Keys, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return the spec of a Unigram model as XLM-R has it."""
    scores, charsmap = keys.get("scores"), bytes(b & 0xFF for b in keys.get("precompiled_charsmap"))
    model = {
        "type": "Unigram",
        "unk_id": types.index(UNKNOWN),
        "vocab": [[text, scores[at]] for at, text in enumerate(tokens)],
    }
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "model": model,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]},
    }


SPECS = {"gpt2": bpe_spec, "llama": spm_spec, "bert": wordpiece_spec, "t5": unigram_spec}
