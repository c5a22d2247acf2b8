"""What a file says about itself, held against the source: its settings, its tensors' names, its tokens and its end tokens.

Logits of a quantized file have limits that a rotary base off by a percent, another epsilon or a bias too many stays within; and no
stress list names every token of a large vocabulary. So what can be compared one by one is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.families import ModelPlan
from converters.header import GGUFArray, GGUFHeader
from converters.tokenizer import Vocabulary
from converters.tokenizer.known import ENDS
from converters.tokenizer.vocabulary import CONTROL, NORMAL, UNUSED
from edgeai.types import Row

__all__ = ["kind_rows", "setting_rows", "tensor_rows", "token_rows"]

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "rope.freq_base": (10000.0,),
    "rope.freq_base_swa": (10000.0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "pooling_type": (0,),
}
"""Settings that change what a model computes → the values that are as good as none (src/llama-hparams.h, `load_hparams` in
src/llama-model.cpp)."""
DERIVED = ("attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size")
"""Settings that the runtime works out where they are absent."""
UNREAD: Mapping[str, str] = {
    "rope.scaling.": "rope_freqs.weight",
    "attention.sliding_window": "",
    "rope.freq_base_swa": "",
}
"""Settings that a file may have and the plan not: those beginning so, where the plan has this tensor in their place; and, with no
tensor, those that say nothing where no layer has a window."""
NEAR = 1e-6
"""Relative difference of two settings that are the same number in float32."""
END_KEYS = ("eos", "eot", "eom")
SHOWN = 60


def setting_rows(header: GGUFHeader, plan: ModelPlan) -> list[Row]:
    """Return one row that the settings of the file HEADER are those of PLAN, or one for each that is not."""
    found = [
        Row(name=f"setting {key}", value=f"{shown(have)}, in the source {shown(want)}", limit="equal", ok=False)
        for key, have, want in other_settings(header, plan)
    ]
    return found or [Row(name="settings", value=f"{len(plan.keys)} as in the source", limit="equal")]


def other_settings(header: GGUFHeader, plan: ModelPlan) -> Iterator[tuple[str, Any, Any]]:
    """Yield (setting, in the file, in the source) for each that is not the same; None stands for one that is not there."""
    for key, want in plan.keys.items():
        have = value_of(header, key if key.startswith("tokenizer.") else f"{header.arch}.{key}")
        if have is None:
            if key not in DERIVED and plain(want) not in NEUTRAL.get(key, ()):
                yield key, None, want
        elif not (same(have, plain(want)) or (key == "context_length" and may_be_longer(have, want, plan))):
            yield key, have, want
    names = {tensor.name for tensor in plan.tensors}
    for key, neutral in NEUTRAL.items():
        have = value_of(header, f"{header.arch}.{key}")
        if key in plan.keys or have is None or any(same(have, value) for value in neutral):
            continue
        instead = [tensor for start, tensor in UNREAD.items() if key.startswith(start)]
        if not any(tensor in names or (not tensor and plan.window is None) for tensor in instead):
            yield key, have, None


def may_be_longer(have: Any, want: Any, plan: ModelPlan) -> bool:
    """Whether the context HAVE is that of the configuration, cut to WANT here because the runtime does not compute the window."""
    return (
        isinstance(have, int)
        and have > want
        and plan.window is None
        and any("window" in text for _, text in plan.warnings)
    )


def value_of(header: GGUFHeader, key: str) -> Any:
    """Return the value of KEY, an array as a tuple or as the one value that all its items have; None where it is absent."""
    value = header.kv.get(key)
    return plain(tuple(header.array(key)) if isinstance(value, GGUFArray) else value)


def plain(value: Any) -> Any:
    """Return VALUE, of a sequence of equal items the item: libllama reads both."""
    if isinstance(value, list | tuple):
        return value[0] if value and all(item == value[0] for item in value) else tuple(value)
    return value


def same(have: Any, want: Any) -> bool:
    """Whether two settings are the same, as float32 where they are no whole numbers."""
    if isinstance(have, tuple) and isinstance(want, tuple):
        return len(have) == len(want) and all(map(same, have, want))
    if isinstance(have, int | float) and isinstance(want, int | float):
        return math.isclose(have, want, rel_tol=NEAR)
    return bool(have == want)


def shown(value: Any) -> str:
    """Return VALUE in words that fit into a row."""
    if value is None:
        return "absent"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def tensor_rows(header: GGUFHeader, plan: ModelPlan) -> list[Row]:
    """Return a row for tensors that only one of the two has: a bias may be missing or added without the runtime's saying so.

    Files of tied models may hold the matrix twice, as the output too: then what is compared are the logits.
    """
    have, want = {tensor.name for tensor in header.tensors}, {tensor.name for tensor in plan.tensors}
    if "output.weight" not in want:
        have.discard("output.weight")
    rows = []
    for name, names in (("tensors that the source has not", have - want), ("tensors missing", want - have)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            rows.append(Row(name=name, value=f"{', '.join(sorted(names)[:3])}{more}", limit="none", ok=False))
    return rows


def kind_rows(header: GGUFHeader, vocabulary: Vocabulary) -> list[Row]:
    """Return a row where the file has another kind of tokenizer: with tokens of the wrong kind the runtime may abort."""
    have = header.kv.get("tokenizer.ggml.model")
    if have == vocabulary.model:
        return []
    value = f"{shown(have)}, in the source {vocabulary.model}"
    return [Row(name="kind of tokenizer", value=value, limit="equal", ok=False)]


def token_rows(header: GGUFHeader, vocabulary: Vocabulary) -> list[Row]:
    """Return a row for each thing in which the tokens of the file are not those of VOCABULARY.

    The ends of its answers count too: a key that names an ordinary token makes the runtime stop at it.
    """
    rows = []
    for name, key, want in (
        ("tokens", "tokenizer.ggml.tokens", vocabulary.tokens[: vocabulary.real_size]),
        ("merges", "tokenizer.ggml.merges", vocabulary.merges),
    ):
        have = header.array(key)
        if want and (wrong := differing(have, want)):
            rows.append(Row(name=name, value=wrong, limit="equal", ok=False))
    kinds = header.array("tokenizer.ggml.token_type")
    hidden = [
        at
        for at, (have, want) in enumerate(zip(kinds, vocabulary.types, strict=False))
        if want == NORMAL and have in (CONTROL, UNUSED) and at < vocabulary.real_size
    ]
    if hidden:
        value = f"{len(hidden)} ordinary tokens are never shown, such as {vocabulary.tokens[hidden[0]]!r}"
        rows.append(Row(name="token types", value=value, limit="equal", ok=False))
    return rows + end_rows(header, vocabulary)


def differing(have: Sequence[str], want: Sequence[str]) -> str:
    """Return in words where HAVE is not WANT; HAVE may go on after its end."""
    wrong = [at for at, text in enumerate(want) if at >= len(have) or have[at] != text]
    if not wrong:
        return ""
    at = wrong[0]
    found = repr(have[at]) if at < len(have) else "nothing"
    return f"{len(wrong)} of {len(want)} differ, such as number {at}: {found} instead of {want[at]!r}"


def end_rows(header: GGUFHeader, vocabulary: Vocabulary) -> list[Row]:
    """Return a row for each key of the file that names an end token which is none, and for another beginning where that is used."""
    rows = []
    for name in END_KEYS if vocabulary.stop_ids else ():
        token = header.kv.get(f"tokenizer.ggml.{name}_token_id")
        if token is None or token in vocabulary.stop_ids or token == getattr(vocabulary, name):
            continue
        text = text_of(vocabulary, token)
        if text not in ENDS:
            value = f"{token} ({text!r}), and the source ends with {', '.join(map(str, vocabulary.stop_ids))}"
            rows.append(Row(name=f"{name} token", value=value, limit="equal", ok=False))
    token = header.kv.get("tokenizer.ggml.bos_token_id")
    used = vocabulary.add_bos or "bos_token" in (vocabulary.chat_template or "")
    if used and vocabulary.bos is not None and token is not None and token != vocabulary.bos:
        value = f"{token} ({text_of(vocabulary, token)!r}), in the source {vocabulary.bos}"
        rows.append(Row(name="bos token", value=value, limit="equal", ok=False))
    return rows


def text_of(vocabulary: Vocabulary, token: Any) -> str:
    """Return the text of the id TOKEN, which an untrusted file gives."""
    return vocabulary.tokens[token] if isinstance(token, int) and 0 <= token < len(vocabulary.tokens) else "no token"
