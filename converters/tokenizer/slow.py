"""Folders without a tokenizer.json: the files of the older tokenizers as the values that a tokenizer.json would have.

What each class does is what transformers' converters make of it (convert_slow_tokenizer.py).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from converters import pretokenizer
from converters.checkpoint import Checkpoint, read_json, read_text
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.tokenizer.extract import merges_by_score
from converters.tokenizer.proto import BPE, PieceModel, parse
from converters.tokenizer.vocabulary import BYTE, CONTROL, PHANTOM, UNKNOWN, USER_DEFINED

__all__ = ["MAX_MODEL_BYTES", "slow_spec"]

SAVE = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
MAX_MODEL_BYTES = 64 << 20
"""Gemma's tokenizer.model has 4.7 MB."""
Spec = dict[str, Any]


def slow_spec(checkpoint: Checkpoint) -> Spec:
    """Return the tokenizer of CHECKPOINT's older files. Raises BrokenCheckpoint when there are none, UnsupportedModel for others."""
    for name, read in READERS.items():
        if (checkpoint.path / name).is_file():
            return read(checkpoint)
    other = sorted(path.name for path in checkpoint.path.glob("*") if path.name in OTHERS)
    if other:
        raise UnsupportedModel(f"{str(checkpoint.path)!r} has its tokenizer in {other[0]!r} only", hint=SAVE)
    raise BrokenCheckpoint(f"{str(checkpoint.path)!r} has no tokenizer.json", hint="copy the tokenizer files too")


def from_merges(checkpoint: Checkpoint) -> Spec:
    """Return the byte-level BPE of vocab.json and merges.txt; how it splits depends on the class of the tokenizer."""
    name = str(checkpoint.tokenizer_config.get("tokenizer_class") or f"{checkpoint.model_type}Tokenizer")
    name = name.removesuffix("Fast").lower()
    if name not in BYTE_LEVEL:
        raise UnsupportedModel(f"how a tokenizer of class {name!r} splits text is not in vocab.json", hint=SAVE)
    lines = read_text(checkpoint.path / "merges.txt").splitlines()
    merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    splits, normalizer = BYTE_LEVEL[name]
    vocab: Mapping[str, int] = read_json(checkpoint.path / "vocab.json") or {}
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    spec = {"model": model, "normalizer": normalizer, "pre_tokenizer": pretokenizer.node_of(splits)}
    around = ("<s>", "</s>") if name == "robertatokenizer" else (None, None)
    return spec | {"post_processor": template(vocab, *around)}


def from_vocab(checkpoint: Checkpoint) -> Spec:
    """Return the WordPiece of vocab.txt, a piece on each line."""
    lines = read_text(checkpoint.path / "vocab.txt").split("\n")
    vocab = {line.rstrip("\r"): token for token, line in enumerate(lines[: len(lines) - (not lines[-1])])}
    config = checkpoint.tokenizer_config
    unknown = str(config.get("unk_token") or "[UNK]")
    model = {"type": "WordPiece", "vocab": vocab, "unk_token": unknown, "continuing_subword_prefix": "##"}
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        "strip_accents": config.get("strip_accents"),
        "lowercase": bool(config.get("do_lower_case", True)),
    }
    names = [text for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if text in vocab]
    return {
        "model": model | {"max_input_chars_per_word": 100},
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template(vocab, "[CLS]", "[SEP]"),
        "added_tokens": [added(vocab[text], text, special=True) for text in names],
    }


def from_pieces(checkpoint: Checkpoint) -> Spec:
    """Return the SentencePiece BPE of tokenizer.model."""
    path = checkpoint.path / "tokenizer.model"
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise BrokenCheckpoint(f"{str(path)!r} has {path.stat().st_size} bytes, which cannot be right")
    facts = parse(path.read_bytes())
    if facts.kind != BPE:
        raise UnsupportedModel("tokenizer.model is a SentencePiece model that is not BPE", hint=SAVE)
    table = list(enumerate(facts.pieces))
    vocab = {piece.text: token for token, piece in table}
    scores = {token: piece.score for token, piece in table}
    merging = {piece.text: token for token, piece in table if piece.kind not in (BYTE, CONTROL, UNKNOWN)}
    unknown = next((piece.text for piece in facts.pieces if piece.kind == UNKNOWN), None)
    model = {"type": "BPE", "vocab": vocab, "merges": merges_by_score(merging, scores), "unk_token": unknown}
    special = [
        added(token, piece.text, special=piece.kind != USER_DEFINED)
        for token, piece in table
        if piece.kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    config = checkpoint.tokenizer_config
    first = (
        next((text for text in ("<s>", "<bos>") if text in vocab), None) if config.get("add_bos_token", True) else None
    )
    last = next((text for text in ("</s>", "<eos>") if text in vocab), None) if config.get("add_eos_token") else None
    return {
        "model": model | {"fuse_unk": True, "byte_fallback": any(piece.kind == BYTE for piece in facts.pieces)},
        "normalizer": {"type": "Sequence", "normalizers": normalizers(facts)},
        "pre_tokenizer": None,
        "post_processor": template(vocab, first, last),
        "added_tokens": special,
    }


def normalizers(facts: PieceModel) -> list[Spec]:
    """Return the steps that SentencePiece takes before it cuts."""
    steps: list[Spec] = []
    if facts.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(facts.charsmap).decode()})
    if facts.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if facts.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": PHANTOM})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": PHANTOM}]


def template(vocab: Mapping[str, int], first: str | None, last: str | None) -> Spec | None:
    """Return the post_processor that puts FIRST before a text and LAST after it, those of them that VOCAB has."""
    around = [text for text in (first, last) if text is not None and text in vocab]
    if not around:
        return None
    single: list[Spec] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if first in around:
        single.insert(0, {"SpecialToken": {"id": first, "type_id": 0}})
    if last in around:
        single.append({"SpecialToken": {"id": last, "type_id": 0}})
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [vocab[text]], "tokens": [text]} for text in around},
    }


def added(token: int, text: str, *, special: bool) -> Spec:
    """Return an added token of tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": special}


READERS: Mapping[str, Callable[[Checkpoint], Spec]] = {
    "tokenizer.model": from_pieces,
    "merges.txt": from_merges,
    "vocab.txt": from_vocab,
}
BYTE_LEVEL: Mapping[str, tuple[pretokenizer.Split, Spec | None]] = {
    "gpt2tokenizer": ((pretokenizer.GPT2,), None),
    "robertatokenizer": ((pretokenizer.GPT2,), None),
    "qwen2tokenizer": ((pretokenizer.QWEN2,), {"type": "NFC"}),
}
OTHERS = ("vocab.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "tokenizer.tiktoken", "qwen.tiktoken")
