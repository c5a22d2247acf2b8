"""Qwen2 and Qwen2.5: like Llama with biases on query, key and value; the runtime rotates halves, so rows keep their order.

Sources: `Qwen2Config` and `modeling_qwen2.py` in transformers; src/models/qwen2.cpp in llama.cpp.
"""

from __future__ import annotations

from converters.checkpoint import Checkpoint
from converters.families import Facts, Family, Rule
from converters.families.decoder import base_keys, read_shape, require, ties, window
from converters.families.rope import rope

__all__ = ["FAMILY"]

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
    shape = read_shape(config, context=32768)
    tied, untied = ties(checkpoint)
    rope_keys, constants = rope(config, shape.head_dim, shape.context, divisors=False)
    context, shortened = window(config, shape.context) if config.get("use_sliding_window") else (shape.context, ())
    return Facts(
        sizes=shape.sizes(),
        facts=frozenset() if tied else frozenset({"untied"}),
        head_dim=shape.head_dim,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        context=context,
        keys={**base_keys(config, shape, context), **rope_keys},
        constants=constants,
        skip=("lm_head.weight",) if tied else (),
        warnings=untied + shortened,
    )


FAMILY = Family(
    architecture="qwen2",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
)
