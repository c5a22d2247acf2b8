"""Which type each tensor gets, and why.

One map drives the dry run, the writer and the report. The mixes behind the names are tables in `converters.mixes`; a test compares
whole files with `llama_model_quantize`. What a user asks for with patterns comes before the mix, and is never changed: where it does not
fit it is an error.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from converters.errors import UnsupportedModel, WrongChoice
from converters.families import ModelPlan, TensorPlan, Value
from converters.ggml_types import FILE_TYPES
from converters.mixes import (
    ALIASES,
    BLOCK,
    EMBEDDING,
    FALLBACK,
    MIXES,
    NEEDS_IMPORTANCE,
    NEVER_QUANTIZED,
    OUTPUT,
    PLAIN,
    QUANTS,
    SIZE,
    TWO_BITS,
    K,
    Place,
    V,
    eight_experts,
    part_of,
)

__all__ = [
    "ALIASES",
    "BLOCK_OF",
    "MIXED",
    "NEEDS_IMPORTANCE",
    "QUANTS",
    "Choice",
    "Override",
    "QuantMap",
    "chosen_types",
    "parse_override",
    "plan_types",
]

BLOCK_OF: Mapping[str, int] = BLOCK
"""Type → weights in a block."""
TENSOR_TYPES = (
    *PLAIN,
    "Q8_0",
    *sorted(BLOCK.keys() - {*PLAIN, "Q8_0", "Q8_1", "Q8_K", "F64", "I8", "I16", "I32", "I64"}),
)
"""What libggml can write (`ggml_quantize_chunk`)."""
MIXED = "MIXED"
"""The name of a file whose types were chosen tensor by tensor."""
LARGE: Mapping[str, bool] = {"llama": True, "qwen2": False}
"""Architectures whose models of 80 layers llama.cpp calls 70B, and whether only those with grouped heads (src/models/*.cpp)."""
BLIND_GARBAGE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
"""Types that come out useless without an importance matrix (`tensor_requires_imatrix` in llama-quant.cpp)."""
BLIND_ABORT = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
"""Types that libggml does not write without one, whatever the tensor (`ggml_quantize_requires_imatrix` in ggml.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A type that a user wants for the tensors whose names match a pattern of `*`, `?` and `[…]`."""

    pattern: str
    type: str

    def matches(self, name: str) -> bool:
        """Whether the tensor NAME is meant, with or without its `.weight`."""
        return any(fnmatch.fnmatchcase(text, self.pattern) for text in (name, name.removesuffix(".weight")))

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.lower()}"


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
    """Tensor name → type. One map drives the writer and the report.

    A `mixed` one was chosen tensor by tensor and not by the rules of a name; `quant` then is the name of the type with the most bytes.
    """

    quant: str
    choices: Mapping[str, Choice]
    overrides: tuple[Override, ...] = ()
    mixed: bool = False

    @property
    def label(self) -> str:
        """What the file is called."""
        return MIXED if self.mixed else self.quant

    @property
    def base(self) -> str:
        """The type that the file is named after."""
        return QUANTS[self.quant]

    @property
    def weakest(self) -> str:
        """The type that limits how close the file can be to its source: of the base and of those that were asked for, the one with the
        fewest bits a weight. F32 means that every weight is as in the source."""
        if self.mixed:
            kinds = {choice.type for choice in self.choices.values()} - {"F32"}
            return min(kinds or {"F32"}, key=lambda kind: (SIZE[kind] / BLOCK[kind], kind))
        asked = {override.type for override in self.overrides}
        return min([self.base, *sorted(asked)], key=lambda kind: SIZE[kind] / BLOCK[kind])

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
        return sum(choice.nbytes for choice in self.choices.values() if choice.type == self.base) / self.nbytes

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
        if self.mixed:
            return None
        base = self.base
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


def chosen_types(plan: ModelPlan, kinds: Mapping[str, str], why: Mapping[str, str] = MappingProxyType({})) -> QuantMap:
    """Return the map in which the matrices of PLAN have the types KINDS, and all others are F32. WHY says why, by tensor.

    Raises WrongChoice for a type that does not fit its tensor, and for a tensor that is no matrix of PLAN.
    """
    names = {tensor.name for tensor in plan.tensors if is_matrix(tensor)}
    if unknown := sorted(kinds.keys() ^ names):
        raise WrongChoice(
            f"types are given for other tensors than the matrices of this model: {', '.join(unknown[:4])}"
        )
    choices = {}
    for tensor in plan.tensors:
        if tensor.name in kinds:
            choice = obey(tensor, Override(pattern=tensor.name, type=kinds[tensor.name]))
            choices[tensor.name] = replace(choice, why=why.get(tensor.name, "chosen for this model"))
        else:
            kind, reason = wanted_type(plan, tensor, "F32", Place(index=0, count=0, group=0, experts=0, informed=False))
            choices[tensor.name] = Choice(type=kind, wanted=kind, nbytes=size_of(tensor, kind), why=reason)
    taken: Counter[str] = Counter()
    for name in kinds:
        taken[choices[name].type] += choices[name].nbytes
    most = max(sorted(taken), key=lambda kind: taken[kind])
    quant = f"{most}_M" if f"{most}_M" in QUANTS and most not in QUANTS else most
    return QuantMap(quant=quant if quant in QUANTS else "F32", choices=choices, mixed=True)


def parse_override(text: str) -> Override:
    """Return the override in TEXT, `PATTERN=TYPE`; raises WrongChoice."""
    pattern, equals, kind = (part.strip() for part in text.rpartition("="))
    if not equals or not pattern or not kind:
        raise WrongChoice(
            f"{text!r} is not a pattern and a type", hint="write PATTERN=TYPE, for example 'blk.*.ffn_down=q6_k'"
        )
    word = kind.upper().replace("-", "_")
    if word not in TENSOR_TYPES:
        close = difflib.get_close_matches(word, TENSOR_TYPES, n=1)
        meant = f"did you mean {close[0].lower()!r}? " if close else ""
        known = ", ".join(name.lower() for name in TENSOR_TYPES)
        raise WrongChoice(
            f"the tensor type {kind!r} in {text!r} is not known", hint=f"{meant}one tensor has one of: {known}"
        )
    return Override(pattern=pattern, type=word)


def plan_types(
    plan: ModelPlan,
    quant: str,
    *,
    importance: Collection[str] | None = None,
    overrides: Sequence[Override] = (),
) -> QuantMap:
    """Return the type of every tensor of PLAN under the name QUANT (a key of `QUANTS`).

    IMPORTANCE holds the names of the tensors whose important columns are known, None where there is no importance matrix; some mixes
    depend on it. Of the OVERRIDES that match a tensor the last one wins, as on a command line.

    Raises UnsupportedModel for a name that is not known and a shape that no type fits, WrongChoice for an override that matches
    nothing or does not fit, and for a tensor that needs an importance matrix and has none.
    """
    if quant not in QUANTS:
        raise UnsupportedModel(f"the quant type {quant!r} is not known", hint=f"known: {', '.join(QUANTS)}")
    chosen = match(plan, overrides)
    places = locate(plan, informed=importance is not None)
    choices = {}
    for tensor in plan.tensors:
        override = chosen.get(tensor.name)
        choice = obey(tensor, override) if override else choose(plan, tensor, quant, places[tensor.name])
        check_importance(tensor.name, choice.type, quant, importance)
        choices[tensor.name] = choice
    return QuantMap(quant=quant, choices=choices, overrides=tuple(overrides))


def match(plan: ModelPlan, overrides: Iterable[Override]) -> dict[str, Override]:
    """Return tensor name → the last override that matches it. Vectors and what is never quantized are passed over."""
    found: dict[str, Override] = {}
    matrices = [tensor.name for tensor in plan.tensors if is_matrix(tensor)]
    for override in overrides:
        names = [name for name in matrices if override.matches(name)]
        if not names:
            raise nothing_matches(plan, override, matrices)
        found |= dict.fromkeys(names, override)
    return found


def nothing_matches(plan: ModelPlan, override: Override, matrices: Sequence[str]) -> WrongChoice:
    """Return the error for a pattern that fits no matrix, with names that are near."""
    kept = [tensor.name for tensor in plan.tensors if override.matches(tensor.name)]
    if kept:
        return WrongChoice(
            f"{str(override)!r} matches only {kept[0]!r}{' and its like' if len(kept) > 1 else ''}, which always stays F32",
            hint="only matrices have a type that can be chosen",
        )
    if override.matches("output.weight") and "token_embd.weight" in matrices:
        return WrongChoice(
            f"the pattern {override.pattern!r} matches no tensor of this model, whose embedding is its output matrix too",
            hint=f"--type token_embd={override.type.lower()}",
        )
    short = sorted({general(name) for name in matrices})
    near = difflib.get_close_matches(general(override.pattern), short, n=4, cutoff=0.5) or short
    return WrongChoice(
        f"the pattern {override.pattern!r} matches no tensor of this model", hint=f"its matrices are: {', '.join(near)}"
    )


def general(name: str) -> str:
    """Return NAME without `.weight` and with `*` for the layer."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join("*" if part.isdecimal() else part for part in parts)


def obey(tensor: TensorPlan, override: Override) -> Choice:
    """Return the choice that OVERRIDE makes for TENSOR; raises WrongChoice where its rows are not whole blocks."""
    columns, kind = tensor.shape[-1], override.type
    if columns % BLOCK[kind]:
        fits = [name.lower() for name in TENSOR_TYPES if not columns % BLOCK[name]]
        raise WrongChoice(
            f"{str(override)!r} does not fit {tensor.name!r}: its rows of {columns} are not whole blocks of {BLOCK[kind]}",
            hint=f"these fit: {', '.join(fits)}",
        )
    return Choice(type=kind, wanted=kind, nbytes=size_of(tensor, kind), why=f"asked for with {override}")


def choose(plan: ModelPlan, tensor: TensorPlan, quant: str, place: Place) -> Choice:
    """Return the type that the mix QUANT and the shape give TENSOR."""
    wanted, why = wanted_type(plan, tensor, quant, place)
    kind = wanted
    columns = tensor.shape[-1]
    if columns % BLOCK[kind]:
        if BLOCK[kind] > 32 and kind not in FALLBACK:
            raise UnsupportedModel(
                f"{quant} does not fit tensor {tensor.name!r}: its rows of {columns} are not whole blocks of {BLOCK[kind]}, "
                "and no other type stands in for it",
                hint="use --quant q2_k or q4_0",
            )
        kind = FALLBACK.get(kind, "F16")
        kind = "F16" if columns % BLOCK[kind] else kind
        why = f"{why}; rows of {columns} are not whole blocks of {BLOCK[wanted]}, so {kind}"
    return Choice(type=kind, wanted=wanted, nbytes=size_of(tensor, kind), why=why)


def size_of(tensor: TensorPlan, kind: str) -> int:
    """Return the bytes that TENSOR takes in the type KIND."""
    return math.prod(tensor.shape) // BLOCK[kind] * SIZE[kind]


def is_matrix(tensor: TensorPlan) -> bool:
    """Whether TENSOR may have another type than F32 (`tensor_allows_quantization` in llama-quant.cpp)."""
    return (
        len(tensor.shape) > 1
        and tensor.name.endswith("weight")
        and not any(piece in tensor.name for piece in NEVER_QUANTIZED)
    )


def locate(plan: ModelPlan, *, informed: bool) -> dict[str, Place]:
    """Return tensor name → where it stands among the tensors of its part.

    llama.cpp counts the tensors of a part in the order of the layers; of a model with experts it takes the layer's number.
    """
    experts, group = first_number(plan.keys.get("expert_count", 0)), heads_per_value(plan)
    large = plan.layers == 80 and plan.architecture in LARGE and (group > 1 or not LARGE[plan.architecture])
    seen: Counter[str] = Counter()
    values = sum(part_of(tensor.name) == V for tensor in plan.tensors if tensor.name.endswith("weight"))
    places = {}
    for tensor in sorted(plan.tensors, key=lambda tensor: layer_of(tensor.name)):
        part = part_of(tensor.name)
        index = seen[part]
        if is_matrix(tensor):
            seen[part] += 1
        if part != V:
            index = layer_of(tensor.name) if experts > 1 else index
        places[tensor.name] = Place(
            index=index,
            count=values if part == V else plan.layers,
            group=group,
            experts=experts,
            informed=informed,
            large=large and experts != 8,
        )
    return places


def heads_per_value(plan: ModelPlan) -> int:
    """Return how many query heads share a value head in the first layer; 0 where it has no attention (`llama_hparams::n_gqa`)."""
    heads = first_number(plan.keys.get("attention.head_count", plan.heads))
    kv_heads = first_number(plan.keys.get("attention.head_count_kv", plan.kv_heads))
    return heads // kv_heads if kv_heads else 0


def first_number(value: Value) -> int:
    """Return a whole number, or the first of several: some keys have one for each layer."""
    if isinstance(value, tuple):
        value = value[0] if value else 0
    return int(value)


def layer_of(name: str) -> int:
    """Return the number of the layer that the tensor NAME belongs to, -1 outside of the layers."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1


def wanted_type(plan: ModelPlan, tensor: TensorPlan, quant: str, place: Place) -> tuple[str, str]:
    """Return the type that the mix wants for TENSOR, whatever its shape, and why."""
    base, part = QUANTS[quant], part_of(tensor.name)
    if not is_matrix(tensor):
        return "F32", "vectors stay F32" if len(tensor.shape) < 2 else "small, and much depends on it"
    if base in PLAIN:
        return base, "every matrix"
    rules = MIXES.get(quant, {})
    if part == OUTPUT or (part == EMBEDDING and is_tied(plan)):
        if quant == "MXFP4_MOE" or tensor.shape[-1] % BLOCK[base] or base == "Q8_0":
            return "Q8_0", "the output matrix keeps more bits"
        return next((kind for _, kind in rules.get(OUTPUT, ())), "Q6_K"), "the output matrix keeps more bits"
    if quant == "MXFP4_MOE":
        experts = len(tensor.shape) > 2 and tensor.shape[0] > 1
        return ("MXFP4", "experts") if experts else ("Q8_0", f"{quant} stores all but experts in Q8_0")
    kind = next((kind for holds, kind in rules.get(part, ()) if holds(place)), base)
    if quant not in TWO_BITS and part in (V, K) and eight_experts(place):
        return "Q8_0", f"with eight experts {part} is small beside them"
    if quant not in TWO_BITS and part == V and place.large and kind in {"Q3_K", "Q4_K"}:
        return "Q5_K", "the 70B shape: eight heads share a value head"
    if kind != base:
        return (
            kind,
            f"{quant} stores {part} of this layer in {kind}" if place.count > 1 else f"{quant} stores {part} in {kind}",
        )
    return base, f"the base type of {quant}"


def is_tied(plan: ModelPlan) -> bool:
    """Whether the embedding is the output matrix too; llama.cpp takes every model without `output.weight` for one."""
    return all(tensor.name != "output.weight" for tensor in plan.tensors)


def check_importance(name: str, kind: str, quant: str, importance: Collection[str] | None) -> None:
    """Raise WrongChoice where the type KIND of the tensor NAME needs an importance matrix and there is none."""
    if importance is not None and name in importance:
        return
    outer = part_of(name) in (EMBEDDING, OUTPUT)
    needs = kind in BLIND_ABORT or (not outer and (kind in BLIND_GARBAGE or (kind == "Q2_K" and quant == "Q2_K_S")))
    if not needs:
        return
    if importance is None:
        raise WrongChoice(
            f"{kind} for {name!r} needs an importance matrix, and none is given",
            hint="--imatrix TEXT computes one from a text like what the model will read; --imatrix FILE reads one",
        )
    raise WrongChoice(
        f"{kind} for {name!r} needs an importance matrix, and the one given says nothing about this tensor",
        hint="give one of this model, or another type: --type " + repr(f"{name.removesuffix('.weight')}=q4_k"),
    )
