"""LFM2: layers of short convolutions between layers of attention with normed queries and keys.

Sources: `Lfm2Config` and `modeling_lfm2.py` in transformers; src/models/lfm2.cpp in llama.cpp, where a layer without key/value heads
is a convolution and the last norm is named `token_embd_norm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Facts, Family, Rule
from converters.families.decoder import base_keys, decoder_facts, read_shape, require, ties
from converters.families.rope import rope
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["FAMILY"]

LAYER, ATTN, CONV, MLP = (
    "model.layers.{i}",
    "model.layers.{i}.self_attn",
    "model.layers.{i}.conv",
    "model.layers.{i}.feed_forward",
)
ATTENTION, CONVOLUTION = "full_attention", "conv"
"""Values of `layer_types`, and the facts of layers."""

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{LAYER}.operator_norm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.attn_q.weight", source=f"{ATTN}.q_proj.weight", shape=("q", "hidden"), when=ATTENTION),
    Rule(target="blk.{i}.attn_k.weight", source=f"{ATTN}.k_proj.weight", shape=("kv", "hidden"), when=ATTENTION),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden"), when=ATTENTION),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.out_proj.weight", shape=("hidden", "q"), when=ATTENTION),
    Rule(target="blk.{i}.attn_q_norm.weight", source=f"{ATTN}.q_layernorm.weight", shape=("head",), when=ATTENTION),
    Rule(target="blk.{i}.attn_k_norm.weight", source=f"{ATTN}.k_layernorm.weight", shape=("head",), when=ATTENTION),
    Rule(
        target="blk.{i}.shortconv.conv.weight",
        source=f"{CONV}.conv.weight",
        shape=("hidden", "kernel"),
        squeezed=("hidden", "one", "kernel"),
        when=CONVOLUTION,
    ),
    Rule(
        target="blk.{i}.shortconv.in_proj.weight",
        source=f"{CONV}.in_proj.weight",
        shape=("bcx", "hidden"),
        when=CONVOLUTION,
    ),
    Rule(
        target="blk.{i}.shortconv.out_proj.weight",
        source=f"{CONV}.out_proj.weight",
        shape=("hidden", "hidden"),
        when=CONVOLUTION,
    ),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{LAYER}.ffn_norm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.w1.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.w3.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.w2.weight", shape=("hidden", "ff")),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of an LFM2 configuration. Defaults of absent keys are those of `Lfm2Config`."""
    config = {**checkpoint.config, "intermediate_size": feed_forward(checkpoint.config)}
    require(config, "conv_bias", False, why="GGUF's lfm2 architecture has convolutions without biases")
    shape = read_shape(config, context=128_000, kv_heads=8)
    if shape.heads * shape.head_dim != shape.hidden:
        raise UnsupportedModel(
            f"config.json has {shape.heads} heads of {shape.head_dim}, which are not hidden_size {shape.hidden}",
            hint="GGUF's lfm2 architecture knows no other size of heads",
        )
    kernel = integer(config, "conv_L_cache", 3)
    if kernel < 2:
        raise UnsupportedModel(f"config.json has conv_L_cache {kernel}, and the runtime needs at least 2")
    kinds = layer_kinds(config, shape.layers)
    rope_keys, constants = rope(config, shape.head_dim, shape.context, divisors=False, theta=1e6)
    tied, untied = ties(
        checkpoint, default=True, key="tie_embedding" if "tie_embedding" in config else "tie_word_embeddings"
    )
    facts = decoder_facts(
        shape,
        {
            **base_keys(config, shape, shape.context),
            "attention.head_count_kv": tuple(shape.kv_heads if kind == ATTENTION else 0 for kind in kinds),
            "attention.layer_norm_rms_epsilon": number(config, "norm_eps", 1e-5),
            "shortconv.l_cache": kernel,
            **rope_keys,
        },
        context=shape.context,
        tied=tied,
        constants=constants,
        warnings=untied,
    )
    return replace(
        facts,
        sizes={**facts.sizes, "kernel": kernel, "one": 1, "bcx": 3 * shape.hidden},
        layer_facts=tuple(frozenset({kind}) for kind in kinds),
        gaps=False,
    )


def feed_forward(config: Mapping[str, Any]) -> int:
    """Return the size of the feed-forward network, as `Lfm2MLP` computes it."""
    size = integer(config, "block_ff_dim", integer(config, "intermediate_size", 12288))
    if not config.get("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if "block_ffn_dim_multiplier" in config and config["block_ffn_dim_multiplier"] is None:
        return size
    multiple = integer(config, "block_multiple_of", 256)
    return -(-int(number(config, "block_ffn_dim_multiplier", 1.0) * size) // multiple) * multiple


def layer_kinds(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Return the kind of each layer: `layer_types`, or those in `full_attn_idxs` are attention, or all are."""
    kinds = config.get("layer_types")
    if kinds is None:
        places = config.get("full_attn_idxs")
        if places is not None and (not isinstance(places, list) or not all(type(place) is int for place in places)):
            raise BrokenCheckpoint(f"config.json has full_attn_idxs {places!r}", hint=COPY_CONFIG)
        kinds = [ATTENTION if places is None or layer in places else CONVOLUTION for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise BrokenCheckpoint(f"config.json has layer_types {kinds!r} for {layers} layers", hint=COPY_CONFIG)
    if other := [kind for kind in kinds if kind not in (ATTENTION, CONVOLUTION)]:
        raise UnsupportedModel(
            f"config.json has the layer type {other[0]!r}", hint=f"known layer types: {ATTENTION}, {CONVOLUTION}"
        )
    if len(set(kinds)) != 2:
        raise UnsupportedModel(
            f"config.json makes every layer {kinds[0]!r}", hint="the runtime's lfm2 needs both kinds, and dies without"
        )
    return tuple(kinds)


FAMILY = Family(
    architecture="lfm2",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="token_embd_norm.weight", source="model.embedding_norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=(r"(.*\.)?(rotary_emb|pos_emb)\.inv_freq",),
)
