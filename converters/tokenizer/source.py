"""The tokenizer of a Hugging Face folder as the values of a tokenizer.json, with what its other files add."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.checkpoint import Checkpoint, read_json
from converters.errors import BrokenCheckpoint, ConvertError
from converters.tokenizer.slow import slow_spec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["AGAIN", "NAMED", "check_ids", "read_spec", "source_tokenizer", "special_text", "without_control"]

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
AGAIN = "copy or download it again"


def source_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """Return the Hugging Face tokenizer of SPEC, without truncation and padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConvertError("the package 'tokenizers' is not installed", hint="pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises Exception itself
        raise BrokenCheckpoint(f"tokenizer.json does not load: {error}", hint=AGAIN) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_spec(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tokenizer as the values of tokenizer.json, with the added tokens that only the other files have."""
    if checkpoint.tokenizer_json is None:
        spec: Any = {
            "version": "1.0",
            "added_tokens": [],
            "post_processor": None,
            "decoder": None,
            **slow_spec(checkpoint),
        }
    else:
        try:
            spec = json.loads(checkpoint.tokenizer_json)
        except (ValueError, RecursionError) as error:
            raise BrokenCheckpoint(f"tokenizer.json is not valid JSON: {error}", hint=AGAIN) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise BrokenCheckpoint("tokenizer.json has no model", hint=AGAIN)
    spec["added_tokens"] = [*(spec.get("added_tokens") or []), *config_tokens(checkpoint, spec)]
    return spec


def without_control(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return SPEC so that no text becomes a control token.

    The Unigram model of the tokenizers library has such tokens among its pieces and finds them in any text; SentencePiece does not.
    """
    model, vocab = spec["model"], spec["model"].get("vocab")
    if not isinstance(vocab, list):
        return spec
    control = {item["content"] for item in spec["added_tokens"] if item.get("special")}
    hidden = [
        [f"\U0010ffff{at}", score] if text in control else [text, score] for at, (text, score) in enumerate(vocab)
    ]
    kept = [item for item in spec["added_tokens"] if not item.get("special")]
    return {**spec, "model": {**model, "vocab": hidden}, "added_tokens": kept, "post_processor": None}


def config_tokens(checkpoint: Checkpoint, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens that transformers would add from the other files, in the shape of tokenizer.json."""
    known = {str(item.get("content")) for item in spec.get("added_tokens") or [] if isinstance(item, dict)}
    vocab = spec["model"].get("vocab")
    table = checkpoint.tokenizer_config.get("added_tokens_decoder")
    found: dict[str, dict[str, Any]] = {}
    for key, item in (table if isinstance(table, dict) else {}).items():
        if isinstance(item, dict) and str(key).isdigit() and str(item.get("content")) not in known:
            flags = {flag: bool(item.get(flag)) for flag in FLAGS}
            found[str(item["content"])] = {"id": int(key), **flags, "content": item["content"]}
    named = {special_text(checkpoint, name) for name in NAMED}
    for content, token in (read_json(checkpoint.path / "added_tokens.json") or {}).items():
        if content not in known and content not in found and type(token) is int:
            found[content] = {
                "id": token,
                **dict.fromkeys(FLAGS, False),
                "special": content in named,
                "content": content,
            }
    for name in NAMED:  # a named token that is in the vocabulary is a special one, listed or not
        text = special_text(checkpoint, name)
        if (
            not text
            or text in known
            or text in found
            or not isinstance(vocab, dict)
            or type(vocab.get(text)) is not int
        ):
            continue
        found[text] = {"id": vocab[text], **dict.fromkeys(FLAGS, False), "special": True, "content": text}
    return sorted(found.values(), key=lambda item: int(item["id"]))


def special_text(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the text of a named special token."""
    for source in (checkpoint.tokenizer_config, checkpoint.special_tokens):
        value = source.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            return value
    return None


def check_ids(spec: Mapping[str, Any]) -> None:
    """Raise BrokenCheckpoint where the tokenizers library gives an added token another id than the file says: it leaves no gaps."""
    tokenizer = source_tokenizer(spec)
    for item in spec["added_tokens"]:
        found = tokenizer.token_to_id(str(item["content"]))
        if found != item["id"]:
            raise BrokenCheckpoint(
                f"the added token {item['content']!r} has the id {item['id']} in the file, and the tokenizers library gives it {found}",
                hint="there is a gap in the ids before it: load and save the tokenizer again",
            )
