"""What would fit where something does not: changes of the options or of the file, each tried by the planner before it is proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from converters.ggml_types import GGML_TYPES
from converters.header import TensorInfo
from edgeai.artifact import Artifact

__all__ = ["CONTEXTS", "Alternative", "alternatives", "smaller_file"]

CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024, 512)
QUANTS: tuple[tuple[str, str, float], ...] = (
    ("q8_0", "Q8_0", 8.5),
    ("q6_k", "Q6_K", 6.56),
    ("q5_k_m", "Q5_K", 5.7),
    ("q4_k_m", "Q4_K", 4.85),
    ("q3_k_m", "Q3_K", 3.91),
    ("q2_k", "Q2_K", 2.96),
)
"""Quant to convert to, the type of most of its tensors, bits a weight: of LLaMA-2-7B in tools/quantize/README.md of llama.cpp."""


class Fits(Protocol):
    """The planner: what ARTIFACT takes under the options with CHANGES, in bytes; None when it does not fit."""

    def __call__(self, artifact: Artifact, changes: dict[str, Any], /) -> int | None:
        """Return the bytes, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Something that fits: the options to CHANGE (fields of LoadOptions), or another quant of the model; `text` for people."""

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
    for kind in (_contexts, _kv_types, _quants, _streams, _prefixes, _devices, _both):
        for label, change, quant in kind(options, context):
            file = smaller_file(artifact, quant) if quant else artifact
            if file is None:
                continue
            needs = fits(file, change)
            if needs is not None:
                found.append(Alternative(text=_text(label, quant, file), needs_bytes=needs, change=change, quant=quant))
                break
        if len(found) == most:
            break
    return tuple(found)


Proposal = tuple[str, dict[str, Any], str | None]
Kind = Callable[[dict[str, Any], int], Iterator[Proposal]]


def _contexts(_options: dict[str, Any], context: int) -> Iterator[Proposal]:
    for ctx in CONTEXTS:
        if ctx < context:
            yield f"--ctx {ctx}", {"ctx": ctx}, None


def _kv_types(options: dict[str, Any], context: int) -> Iterator[Proposal]:
    if options.get("kv_type") in (None, "f32", "f16", "bf16"):
        yield "--kv-type q8_0", {"kv_type": "q8_0"}, None
        for ctx in CONTEXTS:
            if ctx < context:
                yield f"--kv-type q8_0 --ctx {ctx}", {"kv_type": "q8_0", "ctx": ctx}, None


def _quants(_options: dict[str, Any], context: int) -> Iterator[Proposal]:
    for name, _, _ in QUANTS:
        yield "", {}, name
    for name, _, _ in QUANTS:
        if context > 2048:
            yield "--ctx 2048", {"ctx": 2048}, name


def _streams(options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    if (options.get("streams") or 0) > 1:
        yield "--streams 1", {"streams": 1}, None


def _prefixes(options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    if options.get("prefix_bytes"):
        yield "--prefix-bytes 0", {"prefix_bytes": 0}, None


def _devices(options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    if options.get("gpu_layers"):
        yield "as many layers on the GPU as fit (without --gpu-layers)", {"gpu_layers": None}, None
    if options.get("device") == "cuda":
        yield "--device cpu", {"device": "cpu", "gpu_layers": None}, None


def _both(_options: dict[str, Any], _context: int) -> Iterator[Proposal]:
    for name in (None, "q4_k_m", "q2_k"):
        yield "--ctx 512 --kv-type q8_0", {"ctx": 512, "kv_type": "q8_0", "streams": 1}, name


def _text(label: str, quant: str | None, file: Artifact) -> str:
    if quant is None:
        return label
    return f"its {quant.upper()} ({file.size_bytes / 1e9:.2f} GB)" + (f" with {label}" if label else "")


def smaller_file(artifact: Artifact, quant: str) -> Artifact | None:
    """Return ARTIFACT as it would be in QUANT, by the formula of its size; None when it would not be smaller by a tenth."""
    name, kind, bits = next(row for row in QUANTS if row[0] == quant)
    tensors = tuple(_smaller(tensor, kind, bits) for tensor in artifact.tensors)
    saved = sum(tensor.nbytes for tensor in artifact.tensors) - sum(tensor.nbytes for tensor in tensors)
    if saved * 10 < artifact.size_bytes:
        return None
    return replace(artifact, quant=name.upper(), size_bytes=artifact.size_bytes - saved, tensors=tensors)


def _smaller(tensor: TensorInfo, kind: str, bits: float) -> TensorInfo:
    nbytes = round(tensor.elements * bits / 8)
    if len(tensor.shape) < 2 or nbytes >= tensor.nbytes:
        return tensor
    if tensor.shape[0] % next(
        row.block for row in GGML_TYPES.values() if row.name == kind
    ):  # it gets a coarser block: see mixes
        nbytes, kind = round(tensor.elements * max(bits, 5.5) / 8), "Q5_0"
    return replace(tensor, type=kind, nbytes=min(nbytes, tensor.nbytes))
