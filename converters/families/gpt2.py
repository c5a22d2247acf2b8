"""GPT-2 and DistilGPT-2: learned positions, one matrix for query, key and value, weights stored as (in, out).

Sources: `GPT2Config` and `modeling_gpt2.py` in transformers, whose `Conv1D` holds the transposed of a linear layer's matrix;
src/models/gpt2.cpp in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint
from converters.families import Facts, Family, Rule
from converters.families.activations import GELU_TABLE_NMSE, TANH_GELU
from converters.families.decoder import require, ties
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["FAMILY"]

BLOCK = "{p}h.{i}"
OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
"""`GPT2Config.attribute_map`: a configuration may use either name."""

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{BLOCK}.ln_1.weight", shape=("hidden",)),
    Rule(target="blk.{i}.attn_norm.bias", source=f"{BLOCK}.ln_1.bias", shape=("hidden",)),
    Rule(
        target="blk.{i}.attn_qkv.weight",
        source=f"{BLOCK}.attn.c_attn.weight",
        shape=("qkv", "hidden"),
        transposed=True,
    ),
    Rule(target="blk.{i}.attn_qkv.bias", source=f"{BLOCK}.attn.c_attn.bias", shape=("qkv",)),
    Rule(
        target="blk.{i}.attn_output.weight",
        source=f"{BLOCK}.attn.c_proj.weight",
        shape=("hidden", "hidden"),
        transposed=True,
    ),
    Rule(target="blk.{i}.attn_output.bias", source=f"{BLOCK}.attn.c_proj.bias", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{BLOCK}.ln_2.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_norm.bias", source=f"{BLOCK}.ln_2.bias", shape=("hidden",)),
    Rule(
        target="blk.{i}.ffn_up.weight",
        source=f"{BLOCK}.mlp.c_fc.weight",
        shape=("ff", "hidden"),
        transposed=True,
    ),
    Rule(target="blk.{i}.ffn_up.bias", source=f"{BLOCK}.mlp.c_fc.bias", shape=("ff",)),
    Rule(
        target="blk.{i}.ffn_down.weight",
        source=f"{BLOCK}.mlp.c_proj.weight",
        shape=("hidden", "ff"),
        transposed=True,
    ),
    Rule(target="blk.{i}.ffn_down.bias", source=f"{BLOCK}.mlp.c_proj.bias", shape=("hidden",)),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a GPT-2 configuration. Defaults of absent keys are those of `GPT2Config`."""
    config = one_name(checkpoint.config)
    why = "GGUF's gpt2 architecture always computes"
    require(config, "activation_function", *TANH_GELU, why=f"{why} GELU by its tanh approximation, 'gelu_new'")
    require(config, "scale_attn_weights", True, why=f"{why} scores divided by √head size")
    require(config, "scale_attn_by_inverse_layer_idx", False, why=f"{why} every layer's scores alike")
    require(config, "add_cross_attention", False, why=f"{why} a decoder alone")
    hidden, heads = integer(config, "n_embd", 768), integer(config, "n_head", 12)
    if hidden % heads:
        raise BrokenCheckpoint(
            f"config.json has n_embd {hidden} and n_head {heads}, which do not divide", hint=COPY_CONFIG
        )
    ff, context = integer(config, "n_inner", 4 * hidden), integer(config, "n_positions", 1024)
    layers, vocab = integer(config, "n_layer", 12, most=4096), integer(config, "vocab_size", 50257, most=1 << 24)
    embedding = next((f"{prefix}wte.weight" for prefix in PREFIXES if f"{prefix}wte.weight" in checkpoint.tensors), "")
    tied, untied = ties(checkpoint, default=True, embedding=embedding)
    return Facts(
        sizes={"hidden": hidden, "qkv": 3 * hidden, "ff": ff, "vocab": vocab, "context": context},
        facts=frozenset() if tied else frozenset({"untied"}),
        head_dim=hidden // heads,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        context=context,
        keys={
            "block_count": layers,
            "context_length": context,
            "embedding_length": hidden,
            "feed_forward_length": ff,
            "attention.head_count": heads,
            "attention.layer_norm_epsilon": number(config, "layer_norm_epsilon", 1e-5),
        },
        skip=("lm_head.weight",) if tied else (),
        warnings=untied,
        activation_nmse=layers * GELU_TABLE_NMSE,
    )


def one_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return CONFIG with the family's own names of sizes."""
    others = {name: config.get(other) for name, other in OTHER_NAMES.items() if config.get(name) is None}
    return {**config, **others}


PREFIXES = ("transformer.", "")
FAMILY = Family(
    architecture="gpt2",
    read=read,
    prefixes=PREFIXES,
    once_before=(
        Rule(target="token_embd.weight", source="{p}wte.weight", shape=("vocab", "hidden")),
        Rule(target="position_embd.weight", source="{p}wpe.weight", shape=("context", "hidden")),
    ),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="{p}ln_f.weight", shape=("hidden",)),
        Rule(target="output_norm.bias", source="{p}ln_f.bias", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # the causal mask, which old versions saved
)
