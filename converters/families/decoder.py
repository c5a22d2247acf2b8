"""What decoders have in common: their sizes, the keys that every one of them writes, and whether output and input are one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.checkpoint import ITEM_BYTES, Checkpoint, Source
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Facts, Keys, TensorPlan, Warnings
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = [
    "INV_FREQ",
    "Shape",
    "base_keys",
    "decoder_facts",
    "read_shape",
    "require",
    "sliding_layers",
    "ties",
    "window",
]


INV_FREQ = (r"(.*\.)?rotary_emb\.inv_freq",)
"""Rotary frequencies that older checkpoints hold; they follow from the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder with grouped-query attention and a gated feed-forward network."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    ff: int
    vocab: int
    context: int

    def sizes(self) -> dict[str, int]:
        """Return the names that rules use: hidden, ff, vocab, head, and q and kv for all heads together."""
        return {
            "hidden": self.hidden,
            "ff": self.ff,
            "vocab": self.vocab,
            "head": self.head_dim,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
        }


def read_shape(
    config: Mapping[str, Any], *, context: int = 2048, head_dim: int | None = None, kv_heads: int | None = None
) -> Shape:
    """Return the sizes in a configuration with transformers' usual names.

    CONTEXT, HEAD_DIM and KV_HEADS are what the absence of their keys means; without them hidden / heads and heads. A family with
    a HEAD_DIM of its own needs a number there.
    """
    require(config, "is_causal", True, why="the runtime's decoders see no token that follows")
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv = integer(config, "num_key_value_heads", heads if "num_key_value_heads" in config else kv_heads or heads)
    size = integer(config, "head_dim", head_dim or max(1, hidden // heads))
    if heads % kv:
        raise BrokenCheckpoint(
            f"config.json has {heads} attention heads and {kv} key/value heads, which do not divide", hint=COPY_CONFIG
        )
    if size % 2:
        raise UnsupportedModel(
            f"config.json has head_dim {size}, and rotary embeddings need an even one", hint=COPY_CONFIG
        )
    for key in ("rms_norm_eps", "max_position_embeddings", *(("head_dim",) if head_dim else ())):
        if key in config and config[key] is None:  # transformers knows a default for absence, and none for null
            raise BrokenCheckpoint(f"config.json has {key} null, and a number is needed", hint=COPY_CONFIG)
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=kv,
        head_dim=size,
        layers=integer(config, "num_hidden_layers", most=4096),
        ff=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size", most=1 << 24),
        context=integer(config, "max_position_embeddings", context),
    )


def base_keys(config: Mapping[str, Any], shape: Shape, context: int, *, epsilon: float = 1e-6) -> Keys:
    """Return the keys that every decoder with RMS norms writes; EPSILON is what an absent `rms_norm_eps` means."""
    return {
        "context_length": context,
        "embedding_length": shape.hidden,
        "block_count": shape.layers,
        "feed_forward_length": shape.ff,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps", epsilon),
        "vocab_size": shape.vocab,
        "rope.dimension_count": shape.head_dim,
    }


def decoder_facts(
    shape: Shape,
    keys: Keys,
    *,
    context: int,
    tied: bool,
    facts: frozenset[str] = frozenset(),
    constants: tuple[TensorPlan, ...] = (),
    warnings: Warnings = (),
) -> Facts:
    """Return the facts of a decoder whose output matrix is `lm_head.weight`, or the embeddings where it is TIED."""
    return Facts(
        sizes=shape.sizes(),
        facts=facts if tied else facts | {"untied"},
        head_dim=shape.head_dim,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        context=context,
        keys=keys,
        constants=constants,
        skip=("lm_head.weight",) if tied else (),
        warnings=warnings,
    )


def require(config: Mapping[str, Any], key: str, *allowed: Any, why: str) -> None:
    """Raise UnsupportedModel unless KEY of a configuration is absent or one of ALLOWED; WHY becomes the hint."""
    value = config.get(key)
    if value is not None and value not in allowed:
        raise UnsupportedModel(f"config.json has {key} {value!r}", hint=why)


def ties(
    checkpoint: Checkpoint,
    *,
    default: bool = False,
    key: str = "tie_word_embeddings",
    embedding: str = "model.embed_tokens.weight",
) -> tuple[bool, Warnings]:
    """Return whether the output matrix `lm_head.weight` is the matrix EMBEDDING; DEFAULT is what an absent KEY means.

    A folder may say so and hold an lm_head.weight all the same: if it is another matrix it is kept, as transformers 5 does.
    """
    tied = bool(checkpoint.config.get(key, default))
    embedded, head = checkpoint.tensors.get(embedding), checkpoint.tensors.get("lm_head.weight")
    if not tied or embedded is None or head is None or same_values(embedded, head):
        return tied, ()
    message = "config.json ties lm_head.weight to the embeddings, and the two differ: the file keeps both"
    return False, (("untied", message),)


def same_values(left: Source, right: Source, step: int = 1024) -> bool:
    """Whether two tensors hold the same numbers, read a slab at a time."""
    if left.shape != right.shape or not {left.dtype, right.dtype} <= ITEM_BYTES.keys():
        return False
    starts = range(0, left.shape[0], step)
    return all(
        bool((left.rows(at, min(at + step, left.shape[0])) == right.rows(at, min(at + step, left.shape[0]))).all())
        for at in starts
    )


def sliding_layers(config: Mapping[str, Any], default: Sequence[bool]) -> tuple[bool, ...]:
    """Return for each layer whether it has a sliding window; DEFAULT is what absent `layer_types` mean."""
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(default)
    if not isinstance(kinds, list) or len(kinds) != len(default):
        raise BrokenCheckpoint(
            f"config.json has layer_types {kinds!r}, and {len(default)} of them are needed", hint=COPY_CONFIG
        )
    known = {"sliding_attention": True, "full_attention": False}
    if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in known]:
        raise UnsupportedModel(
            f"config.json has the layer type {unknown[0]!r}", hint=f"known layer types: {', '.join(known)}"
        )
    return tuple(known[kind] for kind in kinds)


def window(config: Mapping[str, Any], context: int) -> tuple[int, Warnings]:
    """Return the context within which sliding-window attention is the same as full attention, which the runtime computes."""
    size = config.get("sliding_window")
    if size is None or integer(config, "sliding_window") >= context:
        return context, ()
    message = f"the context is {size} instead of {context}: beyond the sliding window the runtime would compute something else"
    return int(size), (("context-shortened", message),)
