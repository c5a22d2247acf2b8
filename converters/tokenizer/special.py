"""Tokens with a meaning: those with a name, those that end a generation, those put around a text, and the chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.checkpoint import Checkpoint, read_json, read_text
from converters.errors import UnsupportedModel
from converters.tokenizer import known
from converters.tokenizer.source import NAMED, source_tokenizer, special_text
from converters.tokenizer.vocabulary import CONTROL, USER_DEFINED

__all__ = [
    "Warnings",
    "chat_templates",
    "ends_of",
    "flags_differ",
    "mark_control",
    "named_ids",
    "stop_tokens",
]

Warnings = list[tuple[str, str]]
SAMPLE = "a b"


def mark_control(spec: Mapping[str, Any], warnings: Warnings) -> None:
    """Make those added tokens of SPEC special that libllama makes control tokens whatever the file says."""
    changed = []
    for item in spec["added_tokens"]:
        if isinstance(item, dict) and not item.get("special") and item.get("content") in known.ENDS | known.GAPS:
            item["special"] = True
            changed.append(str(item["content"]))
    if changed:
        names = ", ".join(map(repr, changed[:6])) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        message = f"llama.cpp makes control tokens of {names} by their names: a user who writes them writes plain text"
        warnings.append(("tokenizer-control", message))


def named_ids(checkpoint: Checkpoint, spec: Mapping[str, Any], warnings: Warnings) -> dict[str, int | None]:
    """Return name → id of the special tokens."""
    return {name: special_id(checkpoint, spec, name, warnings) for name in NAMED}


def special_id(checkpoint: Checkpoint, spec: Mapping[str, Any], name: str, warnings: Warnings) -> int | None:
    """Return the id of the special token NAME: by its text, or else by config.json where that points at an added token."""
    added = {str(item["content"]): int(item["id"]) for item in spec["added_tokens"]}
    text = special_text(checkpoint, name)
    if text in added:
        return added[text]
    if text is not None:
        warnings.append(("special-token-missing", f"{name} {text!r} is not in the vocabulary and is left out"))
        return None
    token = checkpoint.config.get(f"{name}_id")
    return token if name != "eos_token" and type(token) is int and token in added.values() else None


def stop_tokens(
    checkpoint: Checkpoint,
    eos: int | None,
    named: int | None,
    tokens: Sequence[str],
    types: Sequence[int],
    warnings: Warnings,
) -> tuple[int | None, int | None, int | None, tuple[int, ...]]:
    """Return the ids of EOS, of two further end tokens (EOT, EOM), and all that end a generation in the source.

    EOS is what the tokenizer puts behind a text, if it does, and else what it names, NAMED, which ends a text in any case.
    transformers stops at generation_config's eos_token_id (else config's), which may be a list. An id there that is an ordinary piece
    of text while the tokenizer names an EOS is a default that nobody set (LlamaConfig: 2), and is left out with a warning.
    """
    value = checkpoint.generation_config.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    listed = [
        item
        for item in (value if isinstance(value, list) else [value])
        if type(item) is int and 0 <= item < len(tokens)
    ]
    for token in list(listed):
        if eos is not None and token not in (eos, named) and types[token] not in (CONTROL, USER_DEFINED):
            listed.remove(token)
            message = f"eos_token_id {token} of config.json is the ordinary token {tokens[token]!r} and is left out"
            warnings.append(("eos-ignored", message))
    if named is not None:
        listed.insert(0, named)
    if eos is None and not listed:
        return None, None, None, ()
    eos = listed[0] if eos is None else eos
    extra = [token for token in dict.fromkeys(listed) if token != eos]
    # The two further slots go to ends that the runtime does not know by their text; the rest it finds itself, or the proof says no.
    slots = sorted(extra, key=lambda token: tokens[token] in known.ENDS)
    eot, eom = (*slots, None, None)[:2]
    return eos, eot, eom, (eos, *extra)


def ends_of(spec: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer puts before and after a text, found by running it."""
    tokenizer = source_tokenizer(spec)
    plain, full = (list(tokenizer.encode(SAMPLE, add_special_tokens=flag).ids) for flag in (False, True))
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return tuple(full[:at]), tuple(full[at + len(plain) :])
    raise UnsupportedModel(
        f"the tokenizer's post_processor turns {plain} into {full}, which is not the same with something before or after it"
    )


def flags_differ(checkpoint: Checkpoint, found: Mapping[str, bool], warnings: Warnings) -> None:
    """Warn where tokenizer_config.json has other flags than tokenizer.json, which holds, as it does in transformers 5."""
    for name, added in found.items():
        flag = checkpoint.tokenizer_config.get(name)
        if isinstance(flag, bool) and flag != added:
            message = f"tokenizer_config.json has {name} {flag}, and tokenizer.json does otherwise: the file does as tokenizer.json"
            warnings.append(("tokenizer-ends", message))


def chat_templates(checkpoint: Checkpoint) -> tuple[str | None, dict[str, str]]:
    """Return the default chat template and the named ones.

    Files come before tokenizer_config.json, and chat_template.jinja before the older chat_template.json, as in transformers.
    """
    inside = (read_json(checkpoint.path / "chat_template.json") or {}).get("chat_template")
    value = inside or checkpoint.tokenizer_config.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(value, list):
        named = {
            str(item["name"]): str(item["template"])
            for item in value
            if isinstance(item, dict) and {"name", "template"} <= item.keys()
        }
    elif isinstance(value, dict):
        named = {str(name): text for name, text in value.items() if isinstance(text, str)}
    for path in sorted((checkpoint.path / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = read_text(path)
    given = named.pop("default", None) if not isinstance(value, str) else value
    return checkpoint.chat_template_file or given or None, named
