"""Qwen2 and Qwen2.5: like Llama with biases on query, key and value; the runtime rotates halves, so rows keep their order.

Sources: `Qwen2Config` and `modeling_qwen2.py` in transformers; src/models/qwen2.cpp in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.families import Facts, Family, Rule, Warnings
from converters.families.decoder import (
    INV_FREQ,
    Shape,
    base_keys,
    decoder_facts,
    read_shape,
    require,
    sliding_layers,
    ties,
    window,
)
from converters.families.rope import rope
from converters.families.settings import integer

__all__ = ["FAMILY", "qwen_window"]

LAYER, ATTN, MLP = "model.layers.{i}", "model.layers.{i}.self_attn", "model.layers.{i}.mlp"

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{LAYER}.input_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.attn_q.weight", source=f"{ATTN}.q_proj.weight", shape=("q", "hidden")),
    Rule(target="blk.{i}.attn_q.bias", source=f"{ATTN}.q_proj.bias", shape=("q",)),
    Rule(target="blk.{i}.attn_k.weight", source=f"{ATTN}.k_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_k.bias", source=f"{ATTN}.k_proj.bias", shape=("kv",)),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_v.bias", source=f"{ATTN}.v_proj.bias", shape=("kv",)),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "q")),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{LAYER}.post_attention_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.gate_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.up_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Qwen2 configuration. Defaults of absent keys are those of `Qwen2Config`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's qwen2 architecture always computes 'silu'")
    shape = read_shape(config, context=32768, kv_heads=32)
    tied, untied = ties(checkpoint)
    rope_keys, constants = rope(config, shape.head_dim, shape.context, divisors=False)
    context, shortened = qwen_window(config, shape)
    return decoder_facts(
        shape,
        {**base_keys(config, shape, context), **rope_keys},
        context=context,
        tied=tied,
        constants=constants,
        warnings=untied + shortened,
    )


def qwen_window(config: Mapping[str, Any], shape: Shape) -> tuple[int, Warnings]:
    """Return the context and its warning: the layers from `max_window_layers` on slide, but only with `use_sliding_window`."""
    if not config.get("use_sliding_window"):
        return shape.context, ()
    settings = {"sliding_window": 4096} | dict(config)
    first = integer(config, "max_window_layers", 28) if config.get("max_window_layers") != 0 else 0
    usual = [settings["sliding_window"] is not None and layer >= first for layer in range(shape.layers)]
    return window(settings, shape.context) if any(sliding_layers(config, usual)) else (shape.context, ())


FAMILY = Family(
    architecture="qwen2",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=INV_FREQ,
)
