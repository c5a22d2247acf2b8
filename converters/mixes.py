"""The mixes behind the names of quant types: which type each part of a model gets, as data.

A named type such as Q4_K_M is a mix: a base type, and more bits for tensors that lose most. The facts are those of llama.cpp
(src/llama-quant.cpp: `llama_ftype_get_default_type`, `tensor_get_category`, `tensor_allows_quantization`, `llama_tensor_get_type_impl`
and `tensor_type_fallback`), so that a name here means what it means elsewhere. `converters.quantmap` reads these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from converters.ggml_types import GGML_TYPES

__all__ = [
    "ALIASES",
    "BLOCK",
    "FALLBACK",
    "MIXES",
    "NEEDS_IMPORTANCE",
    "NEVER_QUANTIZED",
    "PLAIN",
    "QUANTS",
    "SIZE",
    "Place",
    "part_of",
]

BLOCK: Mapping[str, int] = {item.name: item.block for item in GGML_TYPES.values()}
SIZE: Mapping[str, int] = {item.name: item.size for item in GGML_TYPES.values()}
PLAIN = ("F32", "F16", "BF16")
QUANTS: Mapping[str, str] = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_1": "Q4_1",
    "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "MXFP4_MOE": "MXFP4",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS",
    "Q2_0": "Q2_0",
    "TQ2_0": "TQ2_0",
    "IQ1_M": "IQ1_M",
    "TQ1_0": "TQ1_0",
    "IQ1_S": "IQ1_S",
    "Q1_0": "Q1_0",
}
"""Name of the file's type → base type of its matrices; large to small."""
ALIASES: Mapping[str, str] = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M", "MXFP4": "MXFP4_MOE"}
"""The first three are llama-quantize's own (tools/quantize/quantize.cpp, `QUANT_OPTIONS`)."""
NEEDS_IMPORTANCE = (
    "IQ3_XS",
    "IQ3_XXS",
    "Q2_K_S",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
)
"""Names whose mix has a tensor that `tensor_requires_imatrix` names."""
TWO_BITS = ("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""Names that have a branch of their own in llama-quant.cpp: rules for experts and large models that others share do not hold there."""
FALLBACK: Mapping[str, str] = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Type with long blocks → the one with blocks of 32 that stands in for it. Q1_0 has none: llama.cpp refuses it."""
NEVER_QUANTIZED = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "position_embd",
    "token_types",
    "shortconv.conv.weight",
    "ssm_conv1d",
    "per_layer_model_proj",
    "attn_rel_b.weight",
    "altup",
    "laurel",
)
"""Parts of the names of matrices that stay F32: small, and much depends on them."""

EMBEDDING, OUTPUT = "token_embd", "output"
Q, K, V, O = "attn_q", "attn_k", "attn_v", "attn_output"  # noqa: E741 - the usual letter of the output projection
UP, GATE, DOWN = "ffn_up", "ffn_gate", "ffn_down"
PARTS: tuple[tuple[str, str], ...] = (
    ("attn_qkv.weight", V),
    ("attn_kv_b.weight", V),
    ("attn_v.weight", V),
    ("attn_k.weight", K),
    ("attn_q.weight", Q),
    ("attn_output.weight", O),
    ("ffn_up", UP),
    ("ffn_gate", GATE),
    ("ffn_down", DOWN),
)
"""What a name contains → the part of a layer that it is; the first that fits. A fused Q, K and V counts as V."""


def part_of(name: str) -> str:
    """Return which part of a model the tensor NAME is, '' for one that no mix names."""
    if name == "output.weight":
        return OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return EMBEDDING
    return next((part for piece, part in PARTS if piece in name), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor stands: the INDEX-th of COUNT of its part, and what the model is like.

    `group` is how many query heads share a key/value head in the first layer, `informed` whether there is an importance matrix.
    """

    index: int
    count: int
    group: int
    experts: int
    informed: bool
    large: bool = False


Condition = Callable[[Place], bool]
Rules = tuple[tuple[Condition, str], ...]


def always(_place: Place) -> bool:
    """Every layer."""
    return True


def shared(place: Place) -> bool:
    """Four or more query heads to a value head: the value matrix is small and matters much."""
    return place.group >= 4


def eight_experts(place: Place) -> bool:
    """Mixtral's shape: what is not an expert is small beside them."""
    return place.experts == 8


def shared_or_experts(place: Place) -> bool:
    """The value matrix is small, for either reason."""
    return place.group >= 4 or place.experts >= 4


def blind(place: Place) -> bool:
    """No importance matrix says which weights matter."""
    return not place.informed


def first(count: int) -> Condition:
    """The first COUNT layers."""
    return lambda place: place.index < count


def first_part(parts: int) -> Condition:
    """The first of PARTS equal parts of the layers."""
    return lambda place: place.index < place.count // parts


def more_bits(place: Place) -> bool:
    """The first and the last eighth, and every third layer between them (`use_more_bits` in llama-quant.cpp)."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def middle(place: Place) -> bool:
    """All but the first and the last eighth."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def both(left: Condition, right: Condition) -> Condition:
    """LEFT and RIGHT."""
    return lambda place: left(place) and right(place)


def two_bits(value: str, down: str, *rest: tuple[str, Rules], embedding: str) -> Mapping[str, Rules]:
    """Return the mix of a type of at most two bits: VALUE for attn_v, DOWN for the first eighth of ffn_down."""
    mix: dict[str, Rules] = {
        V: ((shared_or_experts, "Q4_K"), (always, value)),
        K: ((eight_experts, "Q4_K"),),
        DOWN: ((first_part(8), down),),
        O: ((eight_experts, "Q5_K"),),
        EMBEDDING: ((always, embedding),),
        OUTPUT: ((always, "Q5_K"),),
    }
    for part, rules in rest:
        mix[part] = mix[part] + rules
    return mix


VALUE_AND_DOWN: Rules = ((more_bits, "Q6_K"),)
FOUR_BITS: Mapping[str, Rules] = {
    V: ((shared, "Q5_K"),),
    DOWN: ((both(first_part(8), blind), "Q5_K"),),
    O: ((eight_experts, "Q5_K"),),
}
TERNARY: Mapping[str, Rules] = {EMBEDDING: ((always, "Q4_K"),)}
MIXES: Mapping[str, Mapping[str, Rules]] = {
    "Q5_K_M": {V: VALUE_AND_DOWN, DOWN: VALUE_AND_DOWN},
    "Q4_K_M": {V: VALUE_AND_DOWN, DOWN: VALUE_AND_DOWN, O: ((eight_experts, "Q5_K"),)},
    "Q4_K_S": {V: ((first(4), "Q5_K"),), DOWN: ((first_part(8), "Q5_K"),), O: ((eight_experts, "Q5_K"),)},
    "Q5_0": {DOWN: ((both(first_part(8), lambda place: place.informed), "Q5_1"),)},
    "Q4_0": {DOWN: ((both(first_part(8), lambda place: place.informed), "Q4_1"),)},
    "IQ4_NL": FOUR_BITS,
    "IQ4_XS": FOUR_BITS,
    "Q3_K_L": {
        V: ((always, "Q5_K"),),
        DOWN: ((always, "Q5_K"),),
        O: ((lambda place: not eight_experts(place), "Q5_K"),),
    },
    "Q3_K_M": {
        V: ((first(2), "Q5_K"), (always, "Q4_K")),
        DOWN: ((first_part(16), "Q5_K"), (always, "Q4_K")),
        O: ((eight_experts, "Q5_K"), (always, "Q4_K")),
    },
    "Q3_K_S": {O: ((eight_experts, "Q5_K"),)},
    "IQ3_M": {
        V: ((always, "Q4_K"),),
        DOWN: ((first_part(8), "Q4_K"), (both(eight_experts, more_bits), "Q4_K")),
        O: ((eight_experts, "Q5_K"), (always, "Q4_K")),
    },
    "IQ3_S": {V: ((shared, "Q4_K"),), O: ((eight_experts, "Q5_K"),)},
    "IQ3_XS": {
        Q: ((always, "IQ3_XXS"),),
        K: ((always, "IQ3_XXS"),),
        V: ((shared, "Q4_K"),),
        O: ((eight_experts, "Q5_K"),),
        UP: ((middle, "IQ3_XXS"),),
        GATE: ((middle, "IQ3_XXS"),),
    },
    "IQ3_XXS": {
        Q: ((always, "IQ2_S"),),
        K: ((always, "IQ2_S"),),
        V: ((shared, "Q4_K"), (blind, "IQ3_S")),
        DOWN: ((both(blind, first_part(8)), "Q4_K"), (blind, "Q3_K")),
        O: ((eight_experts, "Q5_K"), (always, "IQ3_S")),
        EMBEDDING: ((always, "IQ3_S"),),
        OUTPUT: ((always, "Q5_K"),),
    },
    "Q2_K": {
        V: ((shared, "Q4_K"), (always, "Q3_K")),
        DOWN: ((always, "Q3_K"),),
        O: ((eight_experts, "Q5_K"), (always, "Q3_K")),
    },
    "Q2_K_S": {V: ((shared, "Q4_K"),), DOWN: ((first_part(8), "Q4_K"),)},
    "IQ2_M": two_bits("IQ3_S", "IQ3_S", (O, ((always, "IQ3_S"),)), embedding="IQ3_S"),
    "IQ2_S": two_bits("IQ3_S", "IQ3_S", (O, ((always, "IQ3_S"),)), embedding="IQ3_S"),
    "IQ2_XS": two_bits("Q2_K", "Q2_K", embedding="Q2_K"),
    "IQ2_XXS": two_bits("Q2_K", "Q2_K", embedding="Q2_K"),
    "IQ1_M": two_bits("Q2_K", "Q2_K", (O, ((always, "IQ2_XXS"),)), embedding="Q2_K"),
    "IQ1_S": two_bits("Q2_K", "Q2_K", (O, ((always, "IQ2_XXS"),)), embedding="Q2_K"),
    "Q2_0": TERNARY,
    "TQ2_0": TERNARY,
    "TQ1_0": TERNARY,
}
"""Name → part of the model → the first condition that holds gives the type; otherwise it is the base type."""
