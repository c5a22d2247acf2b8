"""Qwen3 (dense): a norm of each head of query and key, heads of a size of their own, no biases.

Sources: `Qwen3Config` and `modeling_qwen3.py` in transformers; src/models/qwen3.cpp in llama.cpp.
"""

from __future__ import annotations

from converters.checkpoint import Checkpoint
from converters.families import Facts, Family, Rule
from converters.families.decoder import INV_FREQ, base_keys, decoder_facts, read_shape, require, ties
from converters.families.qwen2 import qwen_window
from converters.families.rope import rope

__all__ = ["FAMILY"]

LAYER = "{p}layers.{i}"
ATTN, MLP = f"{LAYER}.self_attn", f"{LAYER}.mlp"

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{LAYER}.input_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.attn_q.weight", source=f"{ATTN}.q_proj.weight", shape=("q", "hidden")),
    Rule(target="blk.{i}.attn_q_norm.weight", source=f"{ATTN}.q_norm.weight", shape=("head",)),
    Rule(target="blk.{i}.attn_k.weight", source=f"{ATTN}.k_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_k_norm.weight", source=f"{ATTN}.k_norm.weight", shape=("head",)),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "q")),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{LAYER}.post_attention_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.gate_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.up_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Qwen3 configuration. Defaults of absent keys are those of `Qwen3Config`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's qwen3 architecture always computes 'silu'")
    require(config, "attention_bias", False, why="GGUF's qwen3 architecture has no bias of the attention output")
    shape = read_shape(config, context=32768, head_dim=128, kv_heads=32)
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


FAMILY = Family(
    architecture="qwen3",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="{p}embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="{p}norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=INV_FREQ,
    prefixes=("model.", ""),
)
"""The published Qwen3-Embedding models have names without `model.`."""
