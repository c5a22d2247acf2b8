"""Llama 1 to 3 and what is laid out like them: SmolLM2, TinyLlama, Yi, Mistral, Ministral.

Sources: `LlamaConfig`, `MistralConfig`, `MinistralConfig` and their modeling files in transformers; `LLM_ARCH_LLAMA` in llama.cpp
(src/llama-arch.cpp, src/models/llama.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.families import Facts, Family, Rule, Warnings, interleave_halves
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

__all__ = ["BIASES", "FAMILY", "biases"]

LAYER, ATTN, MLP = "model.layers.{i}", "model.layers.{i}.self_attn", "model.layers.{i}.mlp"

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{LAYER}.input_layernorm.weight", shape=("hidden",)),
    Rule(
        target="blk.{i}.attn_q.weight",
        source=f"{ATTN}.q_proj.weight",
        shape=("q", "hidden"),
        transform=interleave_halves,
    ),
    Rule(
        target="blk.{i}.attn_k.weight",
        source=f"{ATTN}.k_proj.weight",
        shape=("kv", "hidden"),
        transform=interleave_halves,
    ),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "q")),
    Rule(
        target="blk.{i}.attn_q.bias",
        source=f"{ATTN}.q_proj.bias",
        shape=("q",),
        transform=interleave_halves,
        when="attention_bias",
    ),
    Rule(
        target="blk.{i}.attn_k.bias",
        source=f"{ATTN}.k_proj.bias",
        shape=("kv",),
        transform=interleave_halves,
        when="attention_bias",
    ),
    Rule(target="blk.{i}.attn_v.bias", source=f"{ATTN}.v_proj.bias", shape=("kv",), when="attention_bias"),
    Rule(target="blk.{i}.attn_output.bias", source=f"{ATTN}.o_proj.bias", shape=("hidden",), when="attention_bias"),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{LAYER}.post_attention_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.gate_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.up_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
    Rule(target="blk.{i}.ffn_gate.bias", source=f"{MLP}.gate_proj.bias", shape=("ff",), when="mlp_bias"),
    Rule(target="blk.{i}.ffn_up.bias", source=f"{MLP}.up_proj.bias", shape=("ff",), when="mlp_bias"),
    Rule(target="blk.{i}.ffn_down.bias", source=f"{MLP}.down_proj.bias", shape=("hidden",), when="mlp_bias"),
)

BIASES = ("attention_bias", "mlp_bias")
"""Keys of the configuration that are also the facts of the rules."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Llama or Mistral configuration. Defaults of absent keys are those of the configuration's class."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's llama architecture always computes 'silu'")
    mistral = (checkpoint.architecture or checkpoint.model_type).lower().startswith(("mistral", "ministral"))
    shape = read_shape(config, context=131072, kv_heads=8) if mistral else read_shape(config)
    tied, untied = ties(checkpoint)
    rope_keys, constants = rope(config, shape.head_dim, shape.context, divisors=True)
    context, shortened = mistral_window(checkpoint, shape) if mistral else window(config, shape.context)
    return decoder_facts(
        shape,
        {**base_keys(config, shape, context), **rope_keys},
        context=context,
        tied=tied,
        facts=frozenset() if mistral else biases(config),
        constants=constants,
        warnings=untied + shortened,
    )


def biases(config: Mapping[str, Any]) -> frozenset[str]:
    """Return which of BIASES the configuration sets."""
    return frozenset(name for name in BIASES if config.get(name))


def mistral_window(checkpoint: Checkpoint, shape: Shape) -> tuple[int, Warnings]:
    """Return the context and its warning: Mistral slides over 4096 tokens unless told otherwise, Ministral in some of its layers."""
    config = {"sliding_window": 4096} | dict(checkpoint.config)
    if "ministral" not in (checkpoint.architecture or checkpoint.model_type).lower():
        return window(config, shape.context)
    slides = sliding_layers(config, [config["sliding_window"] is not None] * shape.layers)
    return window(config, shape.context) if any(slides) else (shape.context, ())


FAMILY = Family(
    architecture="llama",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=INV_FREQ,
)
