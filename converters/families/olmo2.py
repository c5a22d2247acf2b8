"""OLMo 2: norms after attention and feed-forward instead of before, and over all heads of query and of key at once.

Sources: `Olmo2Config` and `modeling_olmo2.py` in transformers; src/models/olmo2.cpp in llama.cpp, which needs an output matrix of its own.
"""

from __future__ import annotations

from dataclasses import replace

from converters.checkpoint import Checkpoint
from converters.errors import UnsupportedModel
from converters.families import Facts, Family, Rule
from converters.families.decoder import INV_FREQ, base_keys, decoder_facts, read_shape, require, ties
from converters.families.rope import rope

__all__ = ["FAMILY"]

LAYER, ATTN, MLP = "model.layers.{i}", "model.layers.{i}.self_attn", "model.layers.{i}.mlp"

PER_LAYER = (
    Rule(target="blk.{i}.attn_q.weight", source=f"{ATTN}.q_proj.weight", shape=("q", "hidden")),
    Rule(target="blk.{i}.attn_q_norm.weight", source=f"{ATTN}.q_norm.weight", shape=("q",)),
    Rule(target="blk.{i}.attn_k.weight", source=f"{ATTN}.k_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_k_norm.weight", source=f"{ATTN}.k_norm.weight", shape=("kv",)),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "q")),
    Rule(
        target="blk.{i}.post_attention_norm.weight",
        source=f"{LAYER}.post_attention_layernorm.weight",
        shape=("hidden",),
    ),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.gate_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.up_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
    Rule(target="blk.{i}.post_ffw_norm.weight", source=f"{LAYER}.post_feedforward_layernorm.weight", shape=("hidden",)),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of an OLMo 2 configuration. Defaults of absent keys are those of `Olmo2Config`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's olmo2 architecture always computes 'silu'")
    require(config, "attention_bias", False, why="GGUF's olmo2 architecture has no bias of the attention output")
    shape = read_shape(config)
    if shape.heads * shape.head_dim != shape.hidden:
        raise UnsupportedModel(
            f"config.json has head_dim {shape.head_dim}, and {shape.heads} heads of it are not hidden_size {shape.hidden}",
            hint="GGUF's olmo2 architecture always has heads of hidden_size / num_attention_heads",
        )
    tied, untied = ties(checkpoint)
    rope_keys, _ = rope(config, shape.head_dim, shape.context, divisors=False)
    facts = decoder_facts(
        shape,
        {**base_keys(config, shape, shape.context, epsilon=1e-5), **rope_keys},
        context=shape.context,
        tied=False,
        facts=frozenset({"shared" if tied else "own"}),
        warnings=untied,
    )
    return replace(facts, skip=("lm_head.weight",) if tied else ())


FAMILY = Family(
    architecture="olmo2",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="own"),
        Rule(target="output.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden"), when="shared"),
    ),
    ignored=INV_FREQ,
)
