"""The types of a file as a map: a row for each part of a layer, a column for each layer, and what stands outside of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from converters.mixes import BLOCK, NEVER_QUANTIZED, SIZE, part_of
from converters.onnx.choices import QUANTS
from converters.onnx.matrices import EMBEDDING, HEAD
from converters.quantmap import layer_of

__all__ = ["LayerMap", "Part", "Run", "bits", "layer_map", "runs"]

ORDER = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "", "ffn_gate", "ffn_up", "ffn_down")
"""Parts in the order in which a token meets them; "" stands for all that are not named here. Others follow the one they begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the layers, such as ffn_down: layer → type, and layer → the tensor's whole name. Not every layer need have it."""

    name: str
    kinds: dict[int, str] = field(default_factory=dict)
    tensors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMap:
    """All matrices of a file: `parts` of its `layers`, and `outside`, name → type of the embedding and the output matrix."""

    layers: int
    parts: tuple[Part, ...]
    outside: Mapping[str, str]

    @property
    def types(self) -> tuple[str, ...]:
        """The types that occur, from the fewest bits to the most."""
        found = {kind for part in self.parts for kind in part.kinds.values()} | set(self.outside.values())
        return tuple(sorted(found, key=lambda kind: (bits(kind), kind)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring layers, FIRST to LAST, whose tensors have the same type."""

    first: int
    last: int
    kind: str

    def __str__(self) -> str:
        where = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{where} {self.kind}"


def layer_map(kinds: Mapping[str, str]) -> LayerMap:
    """Return the map of KINDS: tensor, or matrix of an ONNX model, → type.

    Vectors and small matrices, which are F32 in every file, are left out.
    """
    parts: dict[str, Part] = {}
    outside: dict[str, str] = {}
    for tensor, kind in kinds.items():
        onnx = tensor.startswith("layers.") or tensor in (HEAD, EMBEDDING)
        if not onnx and (not tensor.endswith("weight") or any(piece in tensor for piece in NEVER_QUANTIZED)):
            continue
        layer, kind = int(tensor.split(".")[1]) if tensor.startswith("layers.") else layer_of(tensor), kind.lower()
        if layer < 0:
            outside[tensor.removesuffix(".weight")] = kind
            continue
        name = tensor.split(".", 2)[2].removesuffix(".weight")
        part = parts.setdefault(name, Part(name=name))
        part.kinds[layer] = kind
        part.tensors[layer] = tensor
    shown = [part for part in parts.values() if part_of(part.name + ".weight") or set(part.kinds.values()) != {"f32"}]
    return LayerMap(
        layers=1 + max((max(part.kinds) for part in shown), default=-1),
        parts=tuple(sorted(shown, key=lambda part: place_of(part.name))),
        outside={name: kind for name, kind in outside.items() if part_of(name + ".weight") or kind != "f32"},
    )


def place_of(name: str) -> int:
    """Return where the part NAME stands among the others; those that begin alike stand together."""
    begins = [begin for begin in ORDER if begin and (name == begin or name.startswith((f"{begin}_", f"{begin}.")))]
    return ORDER.index(max(begins, key=len, default=""))


def runs(part: Part) -> list[Run]:
    """Return the runs of equal types of PART, in the order of the layers; a layer without it ends a run."""
    found: list[Run] = []
    for layer in sorted(part.kinds):
        kind = part.kinds[layer]
        if found and found[-1].last == layer - 1 and found[-1].kind == kind:
            found[-1] = Run(first=found[-1].first, last=layer, kind=kind)
        else:
            found.append(Run(first=layer, last=layer, kind=kind))
    return found


def bits(kind: str) -> float:
    """Return the bits that a weight takes in the type KIND; in ONNX with one float32 a block of 32."""
    if kind.upper() in QUANTS:
        return QUANTS[kind.upper()].bits
    return SIZE[kind.upper()] * 8 / BLOCK[kind.upper()]
