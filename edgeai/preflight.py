"""The verdict before a conversion: what the source is, what the file will be, and what that takes of disk, memory and time here.

Nothing of it reads a tensor. Times are estimates from a measurement of a few milliseconds: each quant type that the file will have
encodes a sample on this machine, because types differ by a factor of a thousand, and a matrix product says how fast torch can be.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from converters.checkpoint import ITEM_BYTES
from converters.families import ModelPlan, TensorPlan
from converters.ggml_types import GGML_TYPES
from converters.quantize import SLAB_ITEMS, encode
from converters.quantmap import MIXED, QuantMap
from converters.tokenizer import Vocabulary
from edgeai.device import cpu_facts, memory_facts
from edgeai.errors import DoesNotFit

__all__ = ["Need", "Preflight", "examine", "proof_seconds"]

OWN_BYTES = 110_000_000
"""Memory of a conversion besides tensors and vocabulary: Python, numpy, the tokenizers library (measured: 95 to 125 MB)."""
TOKEN_BYTES = 900
"""Memory of one token while its text, its merge and its specification are held (measured: 600 to 1100)."""
PROOF_FACTOR = 1.3
"""Memory of torch as a multiple of the float32 weights; the runtime maps the file instead."""
READ_BYTES_S = 1.0e9
"""Reading and hashing, in bytes a second: a laptop's disk with a warm cache."""
TORCH_START_S = 5.0
"""Importing torch and transformers."""
USED_PART = 0.3
"""What torch and libllama reach of that on prompts of some hundred tokens (measured: 0.25 to 0.4)."""
SAMPLE_ITEMS = 1 << 14
GRID: Mapping[str, tuple[float, float]] = {
    "IQ3_XXS": (0.1, 2.0), "IQ3_S": (0.3, 1.6), "IQ2_XXS": (1.6, 3.0), "IQ2_XS": (2.5, 4.6), "IQ2_S": (2.5, 4.6),
    "IQ1_S": (12.7, 1.8), "IQ1_M": (12.7, 2.0),
}  # fmt: skip
"""Type → seconds to build its tables, and how many times as long as Q4_K it takes: building them is too long for a look (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that are needed and that are there."""

    needed: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.free


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What a conversion will do; `seconds` by step, `disk` and `memory` in bytes. `memory_proof` is what the reference in torch needs."""

    architecture: str
    parameters: int
    layers: int
    context: int
    tokenizer: str
    tokens: int
    source_types: dict[str, int]
    source_bytes: int
    quant: str
    types: dict[str, int]
    file_bytes: int
    disk: Need
    memory: Need
    memory_proof: Need
    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        """All steps together."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "seconds": {name: round(value, 1) for name, value in self.seconds.items()}}

    def lines(self, human: Callable[[float], str]) -> list[str]:
        """Return the verdict in two lines; HUMAN writes bytes."""
        stored = ", ".join(self.source_types)
        source = (
            f"{self.architecture} · {human_count(self.parameters)} parameters in {self.layers} layers, {stored}, {human(self.source_bytes)}"
            f" · {self.tokenizer}, {self.tokens} tokens"
        )
        size = f"{'at most ' if self.quant == MIXED else ''}{human(self.file_bytes)}"
        result = (
            f"→ {self.quant}, {size} · needs {human(self.disk.needed)} of disk ({human(self.disk.free)} free) and "
            f"{human(max(self.memory.needed, self.memory_proof.needed))} of memory ({human(self.memory.free)} free)"
            f" · {duration(self.total_s)}"
        )
        return [source, result]


def examine(
    plan: ModelPlan,
    vocabulary: Vocabulary,
    quantmap: QuantMap,
    *,
    disk: Need,
    proof_positions: int,
    export_bytes: int,
    search_positions: float = 0,
    search_memory: int = 0,
) -> Preflight:
    """Return the verdict on converting PLAN with QUANTMAP.

    DISK is what the output folder has to hold; PROOF_POSITIONS are the positions that the proof runs through each model, and
    EXPORT_BYTES the size of the unquantized file it writes; a search for types takes as long as SEARCH_POSITIONS in one model, and
    SEARCH_MEMORY bytes.

    Raises DoesNotFit when the conversion itself has not enough memory; a proof that has not is made without torch.
    """
    threads, free = cpu_facts().threads, memory_facts().available
    stored = Counter(source.dtype for tensor in plan.tensors for source in tensor.sources)
    source_bytes = sum(source_size(source.shape, source.dtype) for tensor in plan.tensors for source in tensor.sources)
    memory = Need(needed=max(own_memory(plan, vocabulary, threads), search_memory), free=free)
    if not memory.fits:
        raise DoesNotFit(
            f"the conversion needs {memory.needed / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free",
            hint="close other programs, or use a machine with more memory",
        )
    return Preflight(
        architecture=plan.architecture,
        parameters=plan.parameters,
        layers=plan.layers,
        context=plan.context,
        tokenizer=f"{vocabulary.model} tokenizer" + (f" ({vocabulary.pre})" if vocabulary.model == "gpt2" else ""),
        tokens=len(vocabulary.tokens),
        source_types=dict(stored.most_common()),
        source_bytes=source_bytes,
        quant=quantmap.label,
        types=quantmap.counts(),
        file_bytes=quantmap.nbytes,
        disk=disk,
        memory=memory,
        memory_proof=Need(needed=int(plan.parameters * 4 * PROOF_FACTOR), free=free),
        seconds={
            "tokenizer": 0.5 + len(vocabulary.tokens) * 1e-5,
            "write": source_bytes / READ_BYTES_S + encode_seconds(plan, quantmap) / threads,
            "proof": proof_seconds(plan, proof_positions, export_bytes),
            **({"search": positions_seconds(plan, search_positions)} if search_positions else {}),
        },
    )


def source_size(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor as it is stored."""
    size = ITEM_BYTES.get(dtype, 4)
    for dim in shape:
        size *= dim
    return size


def own_memory(plan: ModelPlan, vocabulary: Vocabulary, threads: int) -> int:
    """Return the memory that the conversion itself needs, in bytes: slabs in flight, each as stored, as float32 and encoded."""
    largest = max((slab_items(tensor) for tensor in plan.tensors), default=0)
    return OWN_BYTES + len(vocabulary.tokens) * TOKEN_BYTES + largest * 12 * (threads + 1)


def slab_items(tensor: TensorPlan) -> int:
    """Return how many weights of TENSOR are in memory at once."""
    row = tensor.elements // tensor.shape[0]
    return min(tensor.elements, max(SLAB_ITEMS, row * tensor.block_rows))


def encode_seconds(plan: ModelPlan, quantmap: QuantMap) -> float:
    """Return how long one thread takes to encode all tensors, from a sample of each type."""
    items: Counter[str] = Counter()
    for tensor in plan.tensors:
        items[quantmap.type_of(tensor.name)] += tensor.elements
    start = max((GRID[kind][0] for kind in items if kind in GRID), default=0.0)
    return start + sum(count * seconds_per_item(kind) for kind, count in items.items())


def seconds_per_item(kind: str) -> float:
    """Return how long one weight takes in the type KIND here, in seconds."""
    import numpy as np

    if kind in GRID:
        return GRID[kind][1] * seconds_per_item("Q4_K")
    block = next(item.block for item in GGML_TYPES.values() if item.name == kind)
    rows = np.random.default_rng(1).normal(size=(SAMPLE_ITEMS // max(block, 256), max(block, 256))).astype(np.float32)
    ones = np.ones((1, rows.shape[1]), np.float32)
    encode(rows[:1], kind, ones)  # builds the tables of a type
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        encode(rows, kind, ones)
        best = min(best, time.perf_counter() - began)
    return best / rows.size


def proof_seconds(plan: ModelPlan, positions: int, export_bytes: int) -> float:
    """Return about how long the proof takes: torch, the export and the file each run POSITIONS tokens."""
    moved = export_bytes / READ_BYTES_S * 4  # written, read by the runtime twice, and once as the source
    return TORCH_START_S + moved + 3 * positions_seconds(plan, positions)


def positions_seconds(plan: ModelPlan, positions: float) -> float:
    """Return about how long POSITIONS tokens of long texts take in the model."""
    return 2.0 * plan.parameters * positions / (product_flops() * USED_PART)


def product_flops(size: int = 60) -> float:
    """Return the floating-point operations a second of matrix products here, on all threads: one thread's times their number."""
    import numpy as np

    left = np.random.default_rng(1).normal(size=(size, size)).astype(np.float32)
    best = float("inf")
    for _ in range(300):  # the best, because another program may have had the processor
        began = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best * cpu_facts().threads


def human_count(count: int) -> str:
    """Return a number of parameters as people write it."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Return about how long, in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
