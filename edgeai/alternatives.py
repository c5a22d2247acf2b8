"""What would fit where something does not: changes of the options or of the file, each tried by the planner before it is proposed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

from edgeai.artifact import Artifact

__all__ = ["CONTEXTS", "Alternative", "alternatives", "smaller_file"]

CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128)
QUANTS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
"""What a file may be requantized to, the closest to its source first."""
SMALLER = 0.97
"""A file is worth making when it has at most this part of the bytes."""


class Fits(Protocol):
    """The planner: what ARTIFACT takes under the options with CHANGES, in bytes; None when it does not fit."""

    def __call__(self, artifact: Artifact, changes: dict[str, Any], /) -> int | None:
        """Return the bytes, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Something that fits: the options to CHANGE (fields of LoadOptions), or another quant of the model; `text` for people,
    with options as hints have them (errors.py)."""

    text: str
    needs_bytes: int
    change: dict[str, Any]
    quant: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def alternatives(
    artifact: Artifact, options: dict[str, Any], context: int, fits: Fits, *, most: int = 3
) -> tuple[Alternative, ...]:
    """Return up to MOST things that fit, each of another kind: a smaller context, a smaller KV type, another quant, fewer streams, the CPU.

    OPTIONS are the fields of LoadOptions that were given, CONTEXT the one that did not fit. Where too few single changes do, two together
    are tried.
    """
    found: list[Alternative] = []
    context = min(context, (artifact.context or context) + 1)  # no proposal goes beyond what the model was trained on
    for kind in (_contexts, _kv_types, _quants, _streams, _prefixes, _devices, _both):
        for label, change, quant in kind(options, context):
            file = smaller_file(artifact, quant) if quant else artifact
            if file is None or any(_same(change, quant, other) for other in found):
                continue
            needs = fits(file, change)
            if needs is not None:
                found.append(Alternative(text=_text(label, quant, file), needs_bytes=needs, change=change, quant=quant))
                break
        if len(found) == most:
            break
    return tuple(found)


def _same(change: dict[str, Any], quant: str | None, other: Alternative) -> bool:
    """Whether CHANGE and QUANT are OTHER again, or OTHER with another number of streams."""
    return quant == other.quant and change | {"streams": None} == other.change | {"streams": None}


Proposal = tuple[str, dict[str, Any], str | None]
Kind = Callable[[dict[str, Any], int], Iterator[Proposal]]


def _contexts(_options: dict[str, Any], context: int) -> Iterator[Proposal]:
    for ctx in CONTEXTS:
        if ctx < context:
            yield f"`ctx={ctx}`", {"ctx": ctx}, None


def _kv_types(options: dict[str, Any], context: int) -> Iterator[Proposal]:
    if options.get("kv_type") in (None, "f32", "f16", "bf16"):
        yield "`kv_type=q8_0`", {"kv_type": "q8_0"}, None
        for ctx in CONTEXTS:
            if ctx < context:
                yield f"`kv_type=q8_0` `ctx={ctx}`", {"kv_type": "q8_0", "ctx": ctx}, None


def _quants(_options: dict[str, Any], context: int) -> Iterator[Proposal]:
    for name in QUANTS:
        yield "", {}, name
    for name in QUANTS:
        if context > 2048:
            yield "`ctx=2048`", {"ctx": 2048}, name


def _streams(options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    if (options.get("streams") or 0) > 1:
        yield "`streams=1`", {"streams": 1}, None


def _prefixes(options: dict[str, Any], context: int) -> Iterator[Proposal]:
    if options.get("prefix_bytes"):
        yield "`prefix_bytes=0`", {"prefix_bytes": 0}, None
        for ctx in CONTEXTS:
            if ctx < context:
                yield f"`prefix_bytes=0` `ctx={ctx}`", {"prefix_bytes": 0, "ctx": ctx}, None


def _devices(options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    if options.get("gpu_layers"):
        yield "as many layers on the GPU as fit (without `gpu_layers`)", {"gpu_layers": None}, None
    if options.get("device") == "cuda":
        yield "`device=cpu`", {"device": "cpu", "gpu_layers": None}, None


def _both(options: dict[str, Any], context: int) -> Iterator[Proposal]:
    fewer = " `streams=1`" if (options.get("streams") or 0) > 1 else ""
    change: dict[str, Any] = {"kv_type": "q8_0", "streams": 1}
    if options.get("prefix_bytes"):
        fewer += " `prefix_bytes=0`"
        change["prefix_bytes"] = 0
    for name in (None, "q4_k_m", "q2_k"):
        for ctx in CONTEXTS:
            if ctx < min(context, 513):
                yield f"`ctx={ctx}` `kv_type=q8_0`{fewer}", {"ctx": ctx, **change}, name


def _text(label: str, quant: str | None, file: Artifact) -> str:
    if quant is None:
        return label
    return f"its {quant.upper()} ({file.size_bytes / 1e9:.2f} GB)" + (f" with {label}" if label else "")


@functools.lru_cache(maxsize=64)
def _types(artifact: Facts, quant: str) -> tuple[tuple[str, int], ...] | None:
    """Return the type and the bytes of each tensor in QUANT, by the rules of the converter; None where they do not fit the model."""
    from converters.errors import ConvertError
    from converters.families import ModelPlan
    from converters.families.rules import TensorPlan
    from converters.quantmap import plan_types

    plan = ModelPlan(
        architecture=artifact.arch,
        layers=artifact.layers,
        heads=artifact.heads,
        kv_heads=artifact.kv_heads,
        context=1,
        vocab_size=1,
        tied=all(name != "output.weight" for name, _ in artifact.tensors),
        keys={},
        tensors=tuple(TensorPlan(name=name, shape=tuple(reversed(shape))) for name, shape in artifact.tensors),
    )
    try:
        chosen = plan_types(plan, quant.upper())
    except ConvertError:
        return None
    return tuple((chosen.type_of(name), chosen.bytes_of(name)) for name, _ in artifact.tensors)


class Facts(NamedTuple):
    """What the types of tensors follow from."""

    arch: str
    layers: int
    heads: int
    kv_heads: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]


def smaller_file(artifact: Artifact, quant: str) -> Artifact | None:
    """Return ARTIFACT as it would be in QUANT, with the type of each tensor that a conversion would give it; None if hardly smaller."""
    layers, heads, kv_heads = (
        _first(artifact.metadata.get(f"{artifact.arch}.{name}"))
        for name in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    named = tuple((tensor.name, tensor.shape) for tensor in artifact.tensors)
    types = _types(Facts(artifact.arch, layers, max(1, heads), kv_heads or max(1, heads), named), quant)
    if types is None:
        return None
    tensors, at = [], min((tensor.offset for tensor in artifact.tensors), default=0)
    for tensor, (kind, nbytes) in zip(artifact.tensors, types, strict=True):
        tensors.append(replace(tensor, type=kind, nbytes=nbytes, offset=at))
        at += nbytes
    saved = sum(tensor.nbytes for tensor in artifact.tensors) - sum(tensor.nbytes for tensor in tensors)
    if artifact.size_bytes - saved > SMALLER * artifact.size_bytes:
        return None
    return replace(artifact, quant=quant.upper(), size_bytes=artifact.size_bytes - saved, tensors=tuple(tensors))


def _first(value: Any) -> int:
    """Return a count, or the largest of those that there is one of for each layer."""
    if isinstance(value, (list, tuple)):
        return max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) and 0 <= value < 1 << 16 else 0
