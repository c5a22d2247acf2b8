"""Which type each tensor gets, and why.

A named type such as Q4_K_M is a mix: a base type, more bits for tensors that lose most, and a fallback where a row is not a whole number
of blocks. The mixes are those of llama.cpp (src/llama-quant.cpp, `llama_tensor_get_type_impl` and `tensor_type_fallback`), so that a
file named here is what the same name means elsewhere; a test compares whole files with `llama_model_quantize`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from converters.errors import UnsupportedModel
from converters.families import ModelPlan, TensorPlan
from converters.ggml_types import FILE_TYPES, GGML_TYPES

__all__ = ["ALIASES", "NEEDS_IMPORTANCE", "QUANTS", "Choice", "QuantMap", "plan_types"]

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
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "Q2_K": "Q2_K",
}
"""Name of the file's type → base type of its matrices; large to small."""
ALIASES: Mapping[str, str] = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
NEEDS_IMPORTANCE = ("IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""Types that libggml refuses, or that come out useless, without an importance matrix."""
PLAIN = ("F32", "F16", "BF16")
FALLBACK: Mapping[str, str] = {
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Type with blocks of 256 → the one with blocks of 32 that stands in for it."""
BLOCK: Mapping[str, int] = {item.name: item.block for item in GGML_TYPES.values()}
SIZE: Mapping[str, int] = {item.name: item.size for item in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor stands: its layer, the number of layers, and how many query heads share a key/value head."""

    layer: int
    layers: int
    group: int


Condition = Callable[[Place], bool]


def always(_place: Place) -> bool:
    """Every layer."""
    return True


def shared(place: Place) -> bool:
    """Four or more query heads to a value head: the value matrix is small and matters much."""
    return place.group >= 4


def first(count: int) -> Condition:
    """The first COUNT layers."""
    return lambda place: place.layer < count


def first_part(parts: int) -> Condition:
    """The first of PARTS equal parts of the layers."""
    return lambda place: place.layer < place.layers // parts


def more_bits(place: Place) -> bool:
    """The first and the last eighth, and every third layer between them (`use_more_bits` in llama-quant.cpp)."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


V, O, DOWN = "attn_v", "attn_output", "ffn_down"  # noqa: E741 - the usual letter of the output projection
MIXES: Mapping[str, Mapping[str, tuple[tuple[Condition, str], ...]]] = {
    "Q5_K_M": {V: ((more_bits, "Q6_K"),), DOWN: ((more_bits, "Q6_K"),)},
    "Q4_K_M": {V: ((more_bits, "Q6_K"),), DOWN: ((more_bits, "Q6_K"),)},
    "Q4_K_S": {V: ((first(4), "Q5_K"),), DOWN: ((first_part(8), "Q5_K"),)},
    "IQ4_NL": {V: ((shared, "Q5_K"),), DOWN: ((first_part(8), "Q5_K"),)},
    "IQ4_XS": {V: ((shared, "Q5_K"),), DOWN: ((first_part(8), "Q5_K"),)},
    "Q3_K_L": {V: ((always, "Q5_K"),), DOWN: ((always, "Q5_K"),), O: ((always, "Q5_K"),)},
    "Q3_K_M": {
        V: ((first(2), "Q5_K"), (always, "Q4_K")),
        DOWN: ((first_part(16), "Q5_K"), (always, "Q4_K")),
        O: ((always, "Q4_K"),),
    },
    "IQ3_M": {V: ((always, "Q4_K"),), DOWN: ((first_part(8), "Q4_K"),), O: ((always, "Q4_K"),)},
    "IQ3_S": {V: ((shared, "Q4_K"),)},
    "Q2_K": {V: ((shared, "Q4_K"), (always, "Q3_K")), DOWN: ((always, "Q3_K"),), O: ((always, "Q3_K"),)},
}
"""Name → part of the layer → the first condition that holds gives the type; otherwise it is the base type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The type of one tensor, the type that the mix wanted, and why."""

    type: str
    wanted: str
    nbytes: int
    why: str

    @property
    def fell_back(self) -> bool:
        """Whether the shape made another type of it than the mix wanted."""
        return self.type != self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantMap:
    """Tensor name → type. One map drives the writer and the report."""

    quant: str
    choices: Mapping[str, Choice]

    @property
    def file_type(self) -> int:
        """The number of `general.file_type` (enum llama_ftype)."""
        return next(number for number, name in FILE_TYPES.items() if name == self.quant)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(choice.nbytes for choice in self.choices.values())

    def type_of(self, name: str) -> str:
        """Return the type of the tensor NAME."""
        return self.choices[name].type

    def bytes_of(self, name: str) -> int:
        """Return the size of the tensor NAME in the file."""
        return self.choices[name].nbytes

    def counts(self) -> dict[str, int]:
        """Return type → number of tensors, the largest number first."""
        return dict(Counter(choice.type for choice in self.choices.values()).most_common())

    def share(self) -> float:
        """Return which part of the tensor bytes is stored in the base type of the file's name."""
        base = QUANTS[self.quant]
        return sum(choice.nbytes for choice in self.choices.values() if choice.type == base) / self.nbytes

    def fallback_share(self) -> float:
        """Return which part of the tensor bytes has another type than the mix wanted."""
        return sum(choice.nbytes for choice in self.choices.values() if choice.fell_back) / self.nbytes

    def explain(self) -> list[tuple[str, str, str]]:
        """Return (tensor, type, why) in the order of the file."""
        return [(name, choice.type, choice.why) for name, choice in self.choices.items()]

    def warning(self) -> tuple[str, str] | None:
        """Return (code, message) when shapes have changed the meaning of the file's name.

        The output matrix of a type with blocks of 32 may fall back from Q6_K to Q8_0: that is not what the name says.
        """
        base = QUANTS[self.quant]
        fallen = Counter(
            (choice.wanted, choice.type)
            for choice in self.choices.values()
            if choice.fell_back
            and (choice.wanted == base or BLOCK[base] == BLOCK[choice.wanted] or choice.type == "F16")
        )
        if not fallen:
            return None
        parts = ", ".join(f"{count} x {wanted} → {found}" for (wanted, found), count in fallen.most_common())
        message = f"{self.quant} does not fit the shapes of this model: {self.fallback_share():.0%} of the tensor bytes are of other "
        message += f"types, because rows are not whole blocks ({parts})"
        if BLOCK[base] > 32 and not any(found == "F16" for _, found in fallen):
            message += "; Q4_0, IQ4_NL, Q5_0 and Q8_0 keep their meaning here"
        return "quant-fallback", message


def plan_types(plan: ModelPlan, quant: str) -> QuantMap:
    """Return the type of every tensor of PLAN under the name QUANT (a key of `QUANTS`)."""
    if quant not in QUANTS:
        raise UnsupportedModel(f"the quant type {quant!r} is not known", hint=f"known: {', '.join(QUANTS)}")
    return QuantMap(quant=quant, choices={tensor.name: choose(plan, tensor, quant) for tensor in plan.tensors})


def choose(plan: ModelPlan, tensor: TensorPlan, quant: str) -> Choice:
    """Return the type of one tensor."""
    wanted, why = wanted_type(plan, tensor, quant)
    kind = wanted
    columns = tensor.shape[-1]
    if columns % BLOCK[kind]:
        kind = FALLBACK.get(kind, "F16")
        kind = "F16" if columns % BLOCK[kind] else kind
        why = f"{why}; rows of {columns} are not whole blocks of {BLOCK[wanted]}, so {kind}"
    return Choice(type=kind, wanted=wanted, nbytes=math.prod(tensor.shape) // BLOCK[kind] * SIZE[kind], why=why)


def wanted_type(plan: ModelPlan, tensor: TensorPlan, quant: str) -> tuple[str, str]:
    """Return the type that the mix wants for TENSOR, whatever its shape, and why."""
    base, part = QUANTS[quant], tensor.name.removesuffix(".weight").rpartition(".")[2]
    if len(tensor.shape) < 2 or tensor.name.endswith(("_norm.weight", ".bias")):
        return "F32", "vectors stay F32"
    if base in PLAIN:
        return base, "every matrix"
    if part == "output" or (part == "token_embd" and plan.tied):
        if tensor.shape[-1] % BLOCK[base] or base == "Q8_0":
            return "Q8_0", "the output matrix keeps more bits"
        return "Q6_K", "the output matrix keeps more bits"
    if tensor.name.startswith("blk."):
        place = Place(layer=int(tensor.name.split(".")[1]), layers=plan.layers, group=plan.heads // plan.kv_heads)
        kind = next((kind for holds, kind in MIXES.get(quant, {}).get(part, ()) if holds(place)), base)
        if part == V and kind in {"Q3_K", "Q4_K"} and plan.layers == 80 and place.group > 1:
            return "Q5_K", "the 70B shape: eight heads share a value head"
        if kind != base:
            return kind, f"{quant} stores {part} of this layer in {kind}"
    return base, f"the base type of {quant}"
