"""What a caller wants of a language model in ONNX, and what onnxruntime-genai's builder calls it: tables of facts."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converters.errors import UnsupportedModel, WrongChoice

__all__ = ["ARCHITECTURES", "QUANTS", "Choices", "check_architecture", "check_kept", "parse_choices", "quant_of"]

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
LAST = "lm_head"
EMBEDDING = "embed_tokens"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the builder is asked for: `options` are its own, `said` is what the user wrote.

    `kept` is what was said of matrices that stay in float32 → the nodes that these may be.
    """

    quant: str
    options: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """The row of the table."""
        return QUANTS[self.quant]


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
    (lm_head, embed_tokens, layers.0.mlp.down_proj), whose type is then int4, int8 or f32. Raises WrongChoice.
    """
    found = quant_of(quant)
    if found is None:
        raise WrongChoice(f"--quant {quant!r} is no type of ONNX", hint=f"one of: {', '.join(QUANTS).lower()}")
    said = tuple(types)
    if said and found not in ("INT4", "INT8"):
        raise WrongChoice(f"--type {said[0]!r} does nothing in a file of {found}", hint="it is for int4 and int8")
    options: dict[str, str] = {}
    kept: dict[str, tuple[str, ...]] = {}
    mixed: dict[str, str] = {}
    for text in said:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise WrongChoice(f"--type {text!r} is no NAME=VALUE", hint="as 'lm_head=int8' or 'block=64'")
        if name in SETTINGS:
            option, allowed = SETTINGS[name]
            if value.lower() not in allowed:
                raise WrongChoice(f"--type {text!r} is not possible", hint=f"{name} is one of: {', '.join(allowed)}")
            options[option] = value.lower()
        else:
            _override(text, name, value.lower(), found, layers, kept, mixed)
    if mixed:
        options["matmul_mixed_precision"] = ",".join(f"{preset}:{kind}" for preset, kind in mixed.items())
    nodes = [node for some in kept.values() for node in some]
    if nodes:
        options["nodes_to_exclude"] = ",".join(dict.fromkeys(nodes))
    apart = (
        options.get("is_symmetric") == "false"
        or mixed
        or any(node in (_HEAD, _ROWS) for node in nodes)
        or options.get("algo_config") == "k_quant"
    )
    if tied and apart and found in ("INT4", "INT8"):
        # One matrix in blocks can be both ends only where both are stored alike and without zero points.
        options["shared_embeddings"] = "false"
        if found == "INT4":
            options["op_types_to_quantize"] = "MatMul/Gather"
    return Choices(quant=found, options=options, said=said, kept=kept)


_HEAD, _ROWS = "/lm_head/MatMul", "/model/embed_tokens/Gather"
ROWS = "model.embed_tokens.weight"
MATRICES = (
    "attn.qkv_proj",
    "attn.q_proj",
    "attn.k_proj",
    "attn.v_proj",
    "attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
FLOAT = ("f32", "fp32")


def _override(
    text: str, name: str, value: str, quant: str, layers: int, kept: dict[str, tuple[str, ...]], mixed: dict[str, str]
) -> None:
    """Put the meaning of one override into KEPT, nodes that stay in float32, or MIXED, the builder's groups of another type."""
    names = {LAST: _HEAD, EMBEDDING: _ROWS}
    names |= {
        f"layers.{layer}.{part}": f"/model/layers.{layer}/{part.replace('.', '/')}/MatMul"
        for layer in range(layers)
        for part in MATRICES
    }
    found = [node for key, node in names.items() if fnmatch.fnmatchcase(key, name)]
    if not found:
        raise WrongChoice(
            f"--type {text!r} matches no matrix",
            hint=f"names are {LAST}, {EMBEDDING}, layers.0.mlp.down_proj …, or {', '.join(SETTINGS)}",
        )
    if value in FLOAT:
        kept[text] = tuple(found)
    elif value == quant.lower():
        return
    elif value == "int8" and quant == "INT4" and found == [_HEAD]:
        mixed["last_matmul"] = "int8"
    else:
        raise WrongChoice(
            f"--type {text!r} is not possible",
            hint=f"{LAST}=int8 in a file of int4, and f32 for any matrix: that is what the builder has",
        )


def check_kept(choices: Choices, tensors: Iterable[str]) -> None:
    """Raise WrongChoice where none of the matrices that were to stay in float32 is among TENSORS, the names in the graph.

    The builder says nothing of names that it does not have: query, key and value are one matrix in most models.
    """
    have = set(tensors)
    for text, nodes in choices.kept.items():
        names = [ROWS if node == _ROWS else f"{node[1:].replace('/', '.')}.weight" for node in nodes]
        if not have.intersection(names):
            raise WrongChoice(
                f"--type {text!r} matches no matrix of this model in ONNX",
                hint="query, key and value are one matrix, attn.qkv_proj, in most models",
            )
