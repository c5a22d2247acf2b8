"""What a caller wants of a language model in ONNX, and what onnxruntime-genai's builder calls it: tables of facts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converters.errors import ConvertError, UnsupportedModel, WrongChoice
from converters.onnx.matrices import BITS, EMBEDDING, HEAD, PACKED_QKV, QKV, names_of, node_of

__all__ = [
    "ARCHITECTURES",
    "QUANTS",
    "Choices",
    "check_architecture",
    "check_types",
    "parse_choices",
    "parts_of",
    "quant_of",
]

ARCHITECTURES = (
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "Lfm2ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Model classes that both the builder (0.18: `create_model` in models/builder.py) and the families here know."""


@dataclass(frozen=True, slots=True)
class Precision:
    """A quant type of ONNX: the builder's `precision` and the provider that it builds the graph for."""

    precision: str
    provider: str
    bits: float
    base: str


QUANTS: Mapping[str, Precision] = {
    "F32": Precision("fp32", "cpu", 32, "F32"),
    "F16": Precision("fp16", "cuda", 16, "F16"),
    "INT8": Precision("int8", "cpu", 9, "INT8"),
    "INT4": Precision("int4", "cpu", 5, "INT4"),
}
"""Name → what the builder is told. The builder has no fused float16 graph for the CPU: its F16 is the one for CUDA, which the CPU also
runs. `bits` is per weight with the scales, one float32 a block of 32."""
ALIASES = {"FP32": "F32", "FP16": "F16", "Q4": "INT4", "Q8": "INT8"}

SETTINGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "block": ("block_size", ("16", "32", "64", "128", "256")),
    "symmetric": ("is_symmetric", ("true", "false")),
    "accuracy": ("accuracy_level", ("0", "1", "2", "3", "4")),
    "method": ("algo_config", ("default", "rtn", "k_quant")),
}
"""Names before `=` in --type that are settings of the whole file → the builder's option, and what it may be."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the builder is asked for: `options` are its own, `said` is what the user wrote.

    `bits` is matrix → bits of those that have another type than the file (32: float32), and `asked` what was said of matrices → which of
    them it may be. A layer whose query, key and value have different types has them as matrices of their own.
    """

    quant: str
    options: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    bits: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """The row of the table."""
        return QUANTS[self.quant]

    @property
    def base(self) -> str:
        """The least type among its matrices, whose limits the proof has."""
        return "INT4" if 4 in self.bits.values() else self.precision.base

    @property
    def nodes(self) -> Mapping[str, int]:
        """Node → bits, of the matrices that have another type than the file."""
        return {node_of(name): bits for name, bits in self.bits.items()}


def quant_of(name: str) -> str | None:
    """Return the quant type of ONNX that NAME means; None where it is none."""
    wanted = name.upper().replace("-", "_")
    wanted = ALIASES.get(wanted, wanted)
    return wanted if wanted in QUANTS else None


def check_architecture(name: str) -> None:
    """Raise UnsupportedModel for a model class that is not known both here and to the builder."""
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name} cannot become an ONNX language model",
            hint=f"these can: {', '.join(ARCHITECTURES)}; --to gguf knows more",
        )


def parse_choices(quant: str, types: Iterable[str] = (), *, layers: int, tied: bool) -> Choices:
    """Return what QUANT and the overrides TYPES (`name=value`) mean for a model of LAYERS layers; TIED: it has one matrix for both ends.

    A name is a setting of the whole file (block, symmetric, accuracy, method), or a pattern of the builder's names of matrices
    (lm_head, embed_tokens, layers.0.mlp.down_proj), whose type is then int4, int8 or f32; of several that match a matrix the last one
    holds. The one matrix of a tied model has both names, and is taken apart where they get different types. Raises WrongChoice.
    """
    found = quant_of(quant)
    if found is None:
        raise WrongChoice(f"--quant {quant!r} is no type of ONNX", hint=f"one of: {', '.join(QUANTS).lower()}")
    said = tuple(types)
    if said and found not in BASES:
        raise WrongChoice(f"--type {said[0]!r} does nothing in a file of {found}", hint="it is for int4 and int8")
    if found not in BASES:
        return Choices(quant=found)
    options: dict[str, str] = {}
    asked: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, int] = {}
    for text in said:
        name, equals, value = (part.strip() for part in text.partition("="))
        value = value.lower()
        if not equals or not name or not value:
            raise WrongChoice(f"--type {text!r} is no NAME=VALUE", hint="as 'lm_head=int8' or 'block=64'")
        if name in SETTINGS:
            option, allowed = SETTINGS[name]
            if value not in allowed:
                raise WrongChoice(f"--type {text!r} is not possible", hint=f"{name} is one of: {', '.join(allowed)}")
            options[option] = value
            continue
        matched = tuple(key for key in names_of(layers) if fnmatch.fnmatchcase(key, name))
        if not matched:
            raise WrongChoice(
                f"--type {text!r} matches no matrix",
                hint=f"names are {HEAD}, {EMBEDDING}, layers.0.mlp.down_proj …, or {', '.join(SETTINGS)}",
            )
        if value not in BITS:
            raise WrongChoice(f"--type {text!r} is not possible", hint="a matrix is int4, int8 or f32")
        asked[text] = matched
        kinds |= {part: BITS[value] for key in matched for part in parts_of(key)}
    ends = {name: kinds.pop(name) for name in (HEAD, EMBEDDING) if name in kinds}
    bits = {name: kind for name, kind in packed(kinds, layers, BASES[found]).items() if kind != BASES[found]}
    bits |= settle_ends(found, ends, options, tied=tied)
    return Choices(quant=found, options=options, said=said, bits=bits, asked=asked)


FLOAT = BITS["f32"]
BASES: Mapping[str, int] = {"INT4": 4, "INT8": 8}
"""The types of files whose matrices can have types of their own → their bits."""


def parts_of(name: str) -> tuple[str, ...]:
    """Return the matrices that NAME stands for: query, key and value, where it is the three in one."""
    stem, _, part = name.rpartition(".")
    return tuple(f"{stem.rpartition('.')[0]}.{one}" for one in QKV) if part == "qkv_proj" else (name,)


def packed(kinds: Mapping[str, int], layers: int, base: int) -> dict[str, int]:
    """Return KINDS with the three in one of each layer whose query, key and value have one type; BASE is that of those not named."""
    found = dict(kinds)
    for layer in range(layers):
        three = {kinds.get(f"layers.{layer}.{part}", base) for part in QKV}
        if len(three) == 1:
            found[f"layers.{layer}.{PACKED_QKV}"] = three.pop()
    return found


def settle_ends(quant: str, ends: Mapping[str, int], options: dict[str, str], *, tied: bool) -> dict[str, int]:
    """Return the bits of the two ENDS that were asked for, and put into OPTIONS what the builder has to know of them.

    One matrix in blocks can be both ends only where both are stored alike and without zero points.
    """
    base = BASES[quant]
    if tied and len(ends) == 1:
        ends = dict.fromkeys((HEAD, EMBEDDING), *ends.values())
    head, rows = ends.get(HEAD, base), ends.get(EMBEDDING)
    points = options.get("is_symmetric") == "false" or options.get("algo_config") == "k_quant"
    one = tied and (rows is None or rows == head) and (head == FLOAT or not points)
    if tied and not one:
        options["shared_embeddings"] = "false"
        if quant == "INT4" and rows is None:
            options["op_types_to_quantize"] = "MatMul/Gather"
    found = {HEAD: head} if head != base else {}
    if rows is not None and not one:
        found[EMBEDDING] = rows
    if head == FLOAT:
        options["nodes_to_exclude"] = ",".join(map(node_of, (HEAD, EMBEDDING) if one else (HEAD,)))
    elif head != base:
        options["matmul_mixed_precision"] = f"last_matmul:int{head}"
    return found


def check_types(choices: Choices, found: Mapping[str, int]) -> None:
    """Compare what was asked for with FOUND, matrix → bits of the graph that was built.

    Raises WrongChoice for a name that no matrix of the graph has, and ConvertError where one has another type: the builder says nothing
    of either.
    """
    have = {part for name in found for part in parts_of(name)} | {EMBEDDING}  # which is the head, where it is not there
    for text, names in choices.asked.items():
        if have.isdisjoint(part for name in names for part in parts_of(name)):
            known = dict.fromkeys(re.sub(r"\d+", "*", name) for name in found)
            raise WrongChoice(
                f"--type {text!r} matches no matrix of this model in ONNX",
                hint=f"its matrices are: {', '.join(known)}",
            )
    base = BASES.get(choices.quant)
    for name, bits in found.items() if base else ():
        wanted = {choices.bits.get(part, bits if part == EMBEDDING else base) for part in parts_of(name)}
        if wanted != {bits}:
            raise ConvertError(
                f"{name} has {bits} bits in the graph that was built, and not {' or '.join(map(str, wanted))}",
                hint="give it the type of the file, or report this with the model's config.json",
            )
