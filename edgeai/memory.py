"""How much memory a model takes, part by part and device by device, from its shape: what libllama will allocate, before it does.

**What is predicted** is the memory of the process at its fullest, when the KV cache is full and a whole batch has been computed: what
`Rss` grows by from before loading (proc_pid_smaps(5)), and what each GPU gives. Pages of the model file that are mapped count, although
the system may drop and read them again. The sizes of buffers follow llama.cpp's own arithmetic (src/llama-kv-cache.cpp,
llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp, llama_context::sched_reserve and output_reserve in llama-context.cpp); the compute
buffer is the one part that is fitted: its peak is a number of rows of one micro-batch that was read off libllama's own answers (loaded
with `no_alloc`) for shapes of 0.1 to 70 B, where it is exact for dense models and at most a few rows too large for others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from converters.ggml_types import GGML_TYPES
from converters.header import TensorInfo
from edgeai.placement import CPU, Placement, Share
from edgeai.shape import Layer, ModelShape

__all__ = [
    "Estimate",
    "Settings",
    "Split",
    "estimate",
    "flash_possible",
    "kv_bytes_per_cell",
    "kv_type_possible",
    "repacked",
]

Split = Sequence[tuple[str, int]]
"""GPUs by libggml's names and how many layers each gets, in the order of the layers, the output layer counted: the last ones of the
model. What is before them computes on the CPU."""

PAD = 256  # tokens: KV caches are multiples of it (llama-context.cpp, llama-kv-cache-iswa.cpp)
ROWS = 4  # rows of the residual stream that are alive at the peak of a micro-batch
TOKEN_BYTES, MERGE_BYTES = 160, 155
"""What a token and a merge take in libllama's vocabulary: measured with vocabularies of 32,000 to 262,144 tokens, ±25 %."""
RUNTIME_BYTES = 6_000_000
"""The graph, the scheduler, work buffers and the pages of the library that are used: measured as 4 to 6 MB."""


class Feature:
    """Which instruction sets a copy of the weights in another order is made for: a row of REPACK."""

    def __init__(self, rows: int, *needed: frozenset[str]) -> None:
        self.rows, self.needed = rows, needed

    def fits(self, tensor: TensorInfo, features: frozenset[str]) -> bool:
        """Whether TENSOR is repacked on a CPU with FEATURES."""
        return tensor.shape[1] % self.rows == 0 and any(need <= features for need in self.needed)


AVX2, AVX512, I8MM, DOTPROD = (
    frozenset(names) for names in (("AVX2",), ("AVX512",), ("NEON", "MATMUL_INT8"), ("NEON", "DOTPROD"))
)
REPACK: Mapping[str, Feature] = {
    "Q2_K": Feature(8, AVX512),
    "Q4_0": Feature(8, AVX2, I8MM, DOTPROD),
    "Q4_K": Feature(8, AVX2, I8MM, DOTPROD),
    "Q5_K": Feature(8, I8MM, DOTPROD),
    "Q6_K": Feature(8, I8MM, DOTPROD),
    "Q8_0": Feature(4, I8MM, DOTPROD),
    "IQ4_NL": Feature(8, AVX2, DOTPROD),
    "MXFP4": Feature(8, AVX2, DOTPROD),
}
"""Type → who repacks it (ggml_repack_get_optimal_repack_type, ggml-cpu/repack.cpp)."""
AMX_TYPES = {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16"}  # ggml-cpu/amx/amx.cpp

CUDA_HEADS = {40, 64, 72, 80, 96, 112, 128, 256}
CUDA_UNEVEN = {(192, 128), (320, 256), (512, 512), (576, 512)}
"""Sizes of heads that CUDA has flash attention for (ggml_cuda_get_best_fattn_kernel, ggml-cuda/fattn.cu)."""
NO_FLASH = {"grok"}  # llama_init_from_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a context will be opened: what its buffers depend on, beside the model.

    `cells`: tokens in the KV cache, which all sequences share if it is `unified`, and which is cut into equal parts otherwise. `batch`:
    tokens of a micro-batch. `outputs`: positions with logits in one of them. `features`: the instruction sets that weights may be repacked
    for, none to leave them as they are. `flash`: attention without a table of scores. `pooled`: texts become vectors.
    """

    cells: int
    sequences: int = 1
    unified: bool = True
    batch: int = 512
    outputs: int = 1
    kv_type: str = "f16"
    swa_full: bool = False
    flash: bool = True
    pooled: bool = False
    kept_bytes: int = 0
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model will take. `overhead_bytes`: vocabulary and runtime, in main memory.

    `twice_bytes`: mapped pages whose weights were copied in another order; nothing reads them again, so the system can have them back.
    `kept_bytes`: what prompts of requests that have ended may come to. `idle_bytes`: of buffers in main memory, what only scoring and
    speculation touch: logits of more positions than there are sequences.
    """

    placement: Placement
    overhead_bytes: int
    twice_bytes: int = 0
    idle_bytes: int = 0
    kept_bytes: int = 0

    @property
    def ram_bytes(self) -> int:
        """What main memory holds at most, mapped pages of the file included."""
        return self.placement.cpu.total_bytes - self.idle_bytes + self.overhead_bytes

    @property
    def needed_ram_bytes(self) -> int:
        """What main memory must have: without the pages that nothing reads again, with the prompts that will be kept."""
        return self.ram_bytes - self.twice_bytes + self.kept_bytes

    @property
    def gpu_bytes(self) -> int:
        """What all GPUs give together."""
        return sum(share.total_bytes for share in self.placement.gpus)

    @property
    def total_bytes(self) -> int:
        """Everything, on all devices."""
        return self.ram_bytes + self.gpu_bytes


def estimate(shape: ModelShape, settings: Settings, split: Split = ()) -> Estimate:
    """Return what SHAPE takes under SETTINGS when the last layers are on the GPUs of SPLIT, in bytes."""
    on_gpu = [(name, count) for name, count in split if count > 0]
    first = len(shape.layers) + 1 - sum(count for _, count in on_gpu)
    shares, start = [], first
    for name, count in on_gpu:
        shares.append(_gpu_share(shape, settings, name, start, start + count))
        start += count
    cpu, twice = _cpu_share(shape, settings, first)
    overhead = TOKEN_BYTES * shape.vocab + MERGE_BYTES * shape.merges + RUNTIME_BYTES
    least = _compute_bytes(shape, replace(settings, outputs=settings.sequences))
    idle = _compute_bytes(shape, settings) - least if first else 0
    placement = Placement(shares=(*shares, cpu))
    return Estimate(
        placement=placement,
        overhead_bytes=overhead,
        twice_bytes=twice,
        idle_bytes=max(0, idle),
        kept_bytes=settings.kept_bytes,
    )


def _gpu_share(shape: ModelShape, settings: Settings, name: str, start: int, end: int) -> Share:
    layers = shape.layers[start:end]
    weights = sum(layer.nbytes for layer in layers)
    if end > len(shape.layers):
        weights += sum(tensor.nbytes for tensor in (*shape.output, *_embedding(shape)))
    return Share(
        device=name,
        layers=end - start,
        weights_bytes=weights,
        kv_bytes=_cache_bytes(shape, layers, settings),
        compute_bytes=_compute_bytes(shape, settings),
    )


def _cpu_share(shape: ModelShape, settings: Settings, first: int) -> tuple[Share, int]:
    """Return the share of the CPU with the layers before FIRST, and how many mapped bytes of it are there twice."""
    whole = first > len(shape.layers)
    layers = shape.layers[:first]
    # With a GPU in use, its pinned memory comes before the repacked layouts (make_cpu_buft_list, llama-model.cpp).
    features = settings.features if whole else frozenset()
    tensors = [tensor for layer in layers for tensor in layer.tensors] + list(shape.output if whole else ())
    moved = [tensor for tensor in tensors if repacked(tensor, features)]
    copies = moved + [tensor for tensor in (_embedding(shape) if whole else ()) if repacked(tensor, features)]
    stay = [*shape.input, *(tensor for tensor in tensors if not repacked(tensor, features))]
    mapped = _span(stay)
    rows = settings.batch * (shape.width + _cells(settings, shape)) * 4
    return Share(
        device=CPU,
        layers=min(first, len(shape.layers) + 1),
        weights_bytes=sum(tensor.nbytes for tensor in copies),
        mapped_bytes=mapped,
        kv_bytes=_cache_bytes(shape, layers, settings),
        compute_bytes=_output_bytes(shape, settings) + (_compute_bytes(shape, settings) if first else rows),
    ), max(0, mapped - sum(tensor.nbytes for tensor in stay))


def _embedding(shape: ModelShape) -> list[TensorInfo]:
    """Return the embedding if it is also the output: it is loaded a second time for that, where the output layer is."""
    return [tensor for tensor in shape.input if tensor.name == "token_embd.weight"] if shape.tied else []


def _span(tensors: Sequence[TensorInfo]) -> int:
    """Return the bytes of the file from the first of TENSORS to the end of the last: one mapping (llama_mmap::unmap_fragment)."""
    if not tensors:
        return 0
    return max(tensor.offset + tensor.nbytes for tensor in tensors) - min(tensor.offset for tensor in tensors)


def repacked(tensor: TensorInfo, features: frozenset[str]) -> bool:
    """Return whether libggml copies TENSOR into another order on a CPU with FEATURES."""
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return False
    if "AMX_INT8" in features and tensor.type in AMX_TYPES and len(tensor.shape) == 2 and tensor.shape[1] % 32 == 0:
        return True
    row = REPACK.get(tensor.type)
    return "REPACK" in features and row is not None and row.fits(tensor, features)


# ---- KV cache


def bytes_of(count: int, kv_type: str) -> int:
    """Return the bytes of COUNT numbers of KV_TYPE."""
    kind = next(kind for kind in GGML_TYPES.values() if kind.name == kv_type.upper())
    return -(-count // kind.block) * kind.size


def kv_type_possible(shape: ModelShape, kv_type: str) -> bool:
    """Return whether each head's row is whole blocks of KV_TYPE, as llama_init_from_model demands."""
    block = next(kind for kind in GGML_TYPES.values() if kind.name == kv_type.upper()).block
    return all(key % block == 0 and value % block == 0 for key, value in shape.head_sizes)


def flash_possible(shape: ModelShape, *, cuda: bool) -> bool:
    """Return whether flash attention runs for SHAPE: always on the CPU, for the usual sizes of heads on CUDA."""
    if shape.arch in NO_FLASH:
        return False
    return not cuda or all(
        (key == value and key in CUDA_HEADS) or (key, value) in CUDA_UNEVEN for key, value in shape.head_sizes
    )


def kv_bytes_per_cell(shape: ModelShape, kv_type: str, *, windows: bool = True) -> int:
    """Return what one more token in the KV cache takes; WINDOWS counts the layers that see a window only."""
    return sum(
        bytes_of(layer.key, kv_type) + bytes_of(layer.value, kv_type)
        for layer in shape.layers
        if windows or not layer.window
    )


def padded(count: int) -> int:
    """Return COUNT tokens, rounded up as libllama does."""
    return -(-count // PAD) * PAD


def full_cells(settings: Settings) -> tuple[int, int]:
    """Return (the cells of a part of the KV cache, the number of parts) for layers that see everything."""
    parts = 1 if settings.unified else settings.sequences
    return padded(-(-settings.cells // parts)), parts


def window_cells(shape: ModelShape, settings: Settings) -> tuple[int, int]:
    """Return the same for layers that see a window only (llama_kv_cache_iswa)."""
    cells, parts = full_cells(settings)
    if settings.swa_full:
        return cells, parts
    windows = shape.window * (settings.sequences if settings.unified else 1)
    return padded(min(cells, windows + settings.batch)), parts


def _cache_bytes(shape: ModelShape, layers: Iterable[Layer], settings: Settings) -> int:
    cells, windows = full_cells(settings), window_cells(shape, settings)
    total = 0
    for layer in layers:
        here, parts = windows if layer.window else cells
        total += parts * here * (bytes_of(layer.key, settings.kv_type) + bytes_of(layer.value, settings.kv_type))
        total += layer.state * settings.sequences * 4  # recurrent states are F32
    return total


# ---- buffers


def _cells(settings: Settings, shape: ModelShape) -> int:
    """Return the columns of the attention masks in numbers of 4 bytes: one mask for each kind of KV cache, of halves with flash."""
    if not shape.cache:
        columns = settings.batch
    else:
        full = any(layer.key and not layer.window for layer in shape.layers)
        columns = full_cells(settings)[0] * full + window_cells(shape, settings)[0] * shape.windowed
    return columns // 2 if settings.flash else columns


def _compute_bytes(shape: ModelShape, settings: Settings) -> int:
    """Return the compute buffer: the peak within a layer for one micro-batch, or the logits if those are more."""
    dense = (3 if shape.gated else 2) * shape.inner
    experts = max(3 * shape.experts_inner, shape.experts_inner + (2 * shape.experts - 1) * shape.width)
    attention = 2 * shape.query + 2 * shape.kv
    if not settings.flash:
        attention += shape.heads * (full_cells(settings)[0] if shape.cache else settings.batch)
    row = max(dense, experts if shape.experts else 0, attention) + ROWS * shape.width + _cells(settings, shape)
    states = max((layer.state for layer in shape.layers), default=0) * settings.sequences
    logits = settings.outputs * (shape.vocab + 2 * shape.width) if shape.cache else 0  # encoders have none
    return 4 * max(settings.batch * row + states, logits)


def _output_bytes(shape: ModelShape, settings: Settings) -> int:
    """Return the buffer that logits or vectors are read from (llama_context::output_reserve): a row for each sequence, and for models
    that give vectors one for each position.
    """
    if settings.pooled:
        return 4 * settings.outputs * (shape.vocab + shape.width)
    return 4 * settings.sequences * shape.vocab


def cpu_features(text: str) -> frozenset[str]:
    """Return the features in the line of llama_print_system_info: "CPU : AVX2 = 1 | REPACK = 1 | …"."""
    return frozenset(name for name, value in re.findall(r"(\w+) = (\d+)", text) if value != "0")
