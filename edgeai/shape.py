"""The parts of a model that its memory follows from: layers with their weights, heads and windows, read from the header alone.

The tables say what libllama knows by the name of an architecture and files need not say. Sources: src/models/*.cpp (load_arch_hparams),
src/llama-hparams.cpp, src/llama-arch.cpp and llama_model::create_memory in src/llama-model.cpp of llama.cpp, as vendored by
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from converters.header import TensorInfo
from edgeai.artifact import Artifact

__all__ = ["Layer", "ModelShape", "shape_of"]


class Sliding(NamedTuple):
    """Which layers see a window only: of each `pattern` layers all but the last (or the first), and how wide it is without a key."""

    pattern: int
    window: int = 0
    dense_first: bool = False
    fixed: bool = False


SLIDING: Mapping[str, Sliding] = {
    "afmoe": Sliding(4),
    "cohere2": Sliding(4),
    "cohere2moe": Sliding(4, dense_first=True),
    "exaone-moe": Sliding(4, 128),
    "exaone4": Sliding(4),
    "gemma2": Sliding(2, 4096),
    "gemma3": Sliding(6),
    "gemma3n": Sliding(5),
    "gpt-oss": Sliding(2),
    "llama4": Sliding(4, 8192, fixed=True),
    "mellum": Sliding(4),
    "muse-glimmer": Sliding(4),
    "olmo2": Sliding(4),
    "plamo3": Sliding(8),
    "smallthinker": Sliding(4, 4096, dense_first=True),
}
"""Architectures whose windows have a usual pattern. One with a pattern for each layer in the file needs no row."""

RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
HYBRID = {
    "bailingmoe3", "falcon-h1", "granitehybrid", "jamba", "kimi-linear", "lfm2", "lfm2moe", "minimax-01", "nemotron_h", "nemotron_h_moe",
    "plamo2", "qwen35", "qwen35moe", "qwen3next",
}  # fmt: skip
INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
"""Hybrids in which every so many layers one has attention, unless the file lists the recurrent ones."""
NO_CACHE = {
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe", "modern-bert", "neo-bert",
    "nomic-bert", "nomic-bert-moe", "rnd1", "t5encoder", "wavtokenizer-dec",
}  # fmt: skip
KV_FROM_START = {"gemma3n": 20}
"""Only the first layers have a KV cache of their own; the others use theirs."""
MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS, llama-hparams.h: libllama refuses more."""
INPUT = ("token_embd", "token_types", "position_embd", "per_layer_token_embd", "tok_embd")
BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: its tensors, the numbers that each token puts into the KV cache, and those of one recurrent state.

    `key`, `value`: numbers a token. `state`: numbers a sequence. `window`: the KV cache is as long as the window.
    """

    tensors: tuple[TensorInfo, ...] = ()
    key: int = 0
    value: int = 0
    key_head: int = 0
    value_head: int = 0
    state: int = 0
    window: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of its weights in the file."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory follows from. `input` and `output` are what is before and behind the layers; `tied`: the embedding is the output too.

    `inner` is the widest feed-forward, `experts` and `experts_inner` how many experts a token goes through and their widths together (0
    for a dense model), `query` the widest row of all heads: numbers a token. `cache`: there is a KV cache or a recurrent state.
    """

    arch: str
    layers: tuple[Layer, ...]
    input: tuple[TensorInfo, ...]
    output: tuple[TensorInfo, ...]
    tied: bool
    width: int
    inner: int
    gated: bool
    experts: int
    experts_inner: int
    heads: int
    query: int
    vocab: int
    merges: int
    window: int
    cache: bool

    @cached_property
    def weight_bytes(self) -> int:
        """All tensors, as they are in the file."""
        return sum(tensor.nbytes for tensor in (*self.input, *self.output)) + sum(layer.nbytes for layer in self.layers)

    @cached_property
    def kv(self) -> int:
        """The widest rows of keys and values together, in numbers a token."""
        return max((layer.key + layer.value for layer in self.layers), default=0)

    @cached_property
    def recurrent(self) -> bool:
        """Whether each sequence needs a state of its own."""
        return any(layer.state for layer in self.layers)

    @cached_property
    def windowed(self) -> bool:
        """Whether some layers see a window only."""
        return any(layer.window and layer.key for layer in self.layers)

    @cached_property
    def head_sizes(self) -> frozenset[tuple[int, int]]:
        """The sizes of heads: (of keys, of values)."""
        return frozenset((layer.key_head, layer.value_head) for layer in self.layers if layer.key)


def shape_of(artifact: Artifact) -> ModelShape:
    """Return the shape of a GGUF model. A file that leaves out what its family needs gives zeros, never an error: libllama will say it."""
    facts = Facts(artifact)
    count = facts.layers
    experts = facts.number("expert_used_count") if facts.number("expert_count") else 0
    blocks: dict[int, list[TensorInfo]] = {}
    outer: list[TensorInfo] = []
    for tensor in artifact.tensors:
        found = BLOCK.match(tensor.name)
        (blocks.setdefault(int(found[1]), []) if found else outer).append(tensor)
    cache = artifact.arch not in NO_CACHE
    layers = tuple(_layer(facts, at, count, tuple(blocks.get(at, ())), cache=cache) for at in range(count))
    output = tuple(tensor for tensor in outer if not tensor.name.startswith(INPUT))
    return ModelShape(
        arch=artifact.arch,
        layers=layers,
        input=tuple(tensor for tensor in outer if tensor.name.startswith(INPUT)),
        output=output,
        tied=cache and not any(tensor.name == "output.weight" for tensor in output),
        width=facts.number("embedding_length"),
        inner=facts.widest("feed_forward_length"),
        gated=_gated(facts, blocks.get(count - 1, ())),
        experts=experts,
        experts_inner=experts * facts.number("expert_feed_forward_length", default=facts.number("feed_forward_length")),
        heads=facts.heads,
        query=facts.heads * max(facts.number("attention.key_length"), facts.head_size),
        vocab=artifact.vocab,
        merges=_length(artifact.metadata.get("tokenizer.ggml.merges")),
        window=_window(facts),
        cache=cache,
    )


class Facts:
    """The hyperparameters in a header, by the names they have behind the architecture's.

    `layers` is their number, `heads` the largest number of query heads, `head_size` the size of a head that no key names.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.arch, self.metadata = artifact.arch, artifact.metadata
        self.layers = min(self.number("block_count"), MAX_LAYERS)
        self.heads = self.widest("attention.head_count")
        self.head_size = self.number("embedding_length") // self.heads if self.heads else 0

    def value(self, name: str) -> Any:
        """Return the value of {arch}.NAME, None without one."""
        return self.metadata.get(f"{self.arch}.{name}")

    def number(self, name: str, layer: int = 0, default: int = 0) -> int:
        """Return {arch}.NAME, of LAYER where there is one for each, as a count."""
        value = self.value(name)
        if isinstance(value, (list, tuple)):
            value = value[layer] if layer < len(value) else None
        return max(0, int(value)) if isinstance(value, (int, float)) and value < 1 << 31 else default

    def widest(self, name: str) -> int:
        """Return the largest {arch}.NAME of all layers."""
        return max(self.number(name, at) for at in range(max(1, self.layers)))


def _layer(facts: Facts, at: int, count: int, tensors: tuple[TensorInfo, ...], *, cache: bool) -> Layer:
    window, recurrent = _is_window(facts, at, count), _is_recurrent(facts, at)
    kv_heads = facts.number("attention.head_count_kv", at, default=facts.number("attention.head_count", at))
    suffix = "_swa" if window and facts.value("attention.key_length_swa") is not None else ""
    key_head = facts.number(f"attention.key_length{suffix}", default=facts.head_size)
    value_head = facts.number(f"attention.value_length{suffix}", default=facts.head_size)
    if facts.value("attention.key_length_mla") is not None:  # keys and values are compressed into one row
        value_head = 0
    attends = cache and _has_cache(facts, at, count) and not (recurrent and facts.arch != "falcon-h1")
    if facts.arch in RECURRENT:
        attends = False
    return Layer(
        tensors=tensors,
        key=kv_heads * key_head if attends else 0,
        value=kv_heads * value_head if attends else 0,
        key_head=key_head,
        value_head=value_head,
        state=_state(facts) if recurrent else 0,
        window=window,
    )


def _has_cache(facts: Facts, at: int, count: int) -> bool:
    """Whether layer AT keeps keys and values: not the layers that predict further tokens, nor those that use an earlier layer's."""
    first_shared = count - facts.number("attention.shared_kv_layers")
    first_shared = KV_FROM_START.get(facts.arch, first_shared)
    return at < min(first_shared, count - facts.number("nextn_predict_layers"))


def _window(facts: Facts) -> int:
    known = SLIDING.get(facts.arch)
    asked = facts.value("attention.sliding_window")
    if known and known.fixed:
        return 0 if asked == 0 else known.window
    return facts.number("attention.sliding_window", default=known.window if known else 0)


def _is_window(facts: Facts, at: int, count: int) -> bool:
    """Whether layer AT sees a window only (llama_model_base::load_swa_pattern, llama_hparams::set_swa_pattern)."""
    known = SLIDING.get(facts.arch)
    if not _window(facts) or facts.arch == "phi3":  # libllama ignores the window of phi3
        return False
    pattern = facts.value("attention.sliding_window_pattern")
    if isinstance(pattern, (list, tuple)):
        return at < len(pattern) and bool(pattern[at])
    if facts.arch in ("lfm2", "lfm2moe"):
        return not _is_recurrent(facts, at)
    if known is None or (facts.arch == "exaone4" and count != 64):
        return False
    every = facts.number("attention.sliding_window_pattern", default=known.pattern)
    if every == 0:
        return True
    return at % every != 0 if known.dense_first else at % every < every - 1


def _is_recurrent(facts: Facts, at: int) -> bool:
    if facts.arch in RECURRENT or facts.arch == "falcon-h1":
        return True
    if facts.arch not in HYBRID:
        return False
    listed = facts.value("attention.recurrent_layers")
    if isinstance(listed, (list, tuple)):
        return at < len(listed) and bool(listed[at])
    if facts.arch in INTERVAL:
        return (at + 1) % (facts.number("full_attention_interval") or INTERVAL[facts.arch]) != 0
    without_heads = facts.number("attention.head_count_kv", at) == 0
    if facts.arch.startswith("nemotron_h"):
        return without_heads and facts.number("feed_forward_length", at) == 0
    return without_heads


def _state(facts: Facts) -> int:
    """Return the numbers in the state of one recurrent layer and sequence (llama_hparams::n_embd_r and n_embd_s)."""
    width, heads = facts.number("embedding_length"), facts.heads
    if head := facts.number("wkv.head_size"):
        return (facts.number("token_shift_count", default=2) + head) * width
    if cells := facts.number("shortconv.l_cache"):
        return width * (cells - 1)
    kernel, inner = facts.number("ssm.conv_kernel"), facts.number("ssm.inner_size")
    if head := facts.number("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
    if facts.arch == "minimax-01":
        return facts.head_size**2 * heads
    states, groups = facts.number("ssm.state_size"), facts.number("ssm.group_count")
    return max(0, kernel - 1) * (inner + 2 * groups * states) + states * inner


def _gated(facts: Facts, tensors: Sequence[TensorInfo]) -> bool:
    """Whether the feed-forward has a gate: a matrix of its own, or the upper half of a doubled one."""
    inner = facts.number("feed_forward_length")
    return any(
        ".ffn_gate" in tensor.name or (".ffn_up" in tensor.name and tensor.shape[-1] == 2 * inner) for tensor in tensors
    )


def _length(value: Any) -> int:
    """Return the length of an array of which the artifact keeps only that."""
    return value if isinstance(value, int) else len(value) if isinstance(value, (list, tuple)) else 0
