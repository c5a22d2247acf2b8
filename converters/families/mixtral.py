"""Mixtral: Llama's attention, and in each layer some experts of which a router chooses a few for each token.

Sources: `MixtralConfig` and `modeling_mixtral.py` in transformers; `LLM_ARCH_LLAMA` in llama.cpp (src/models/llama.cpp), which reads the
experts of a layer as one tensor of three dimensions.
"""

from __future__ import annotations

from dataclasses import replace

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint
from converters.families import Facts, Rule, llama
from converters.families.settings import COPY_CONFIG, integer

__all__ = ["FAMILY"]

MOE = "model.layers.{i}.block_sparse_moe"
EXPERTS = (
    Rule(target="blk.{i}.ffn_gate_inp.weight", source=f"{MOE}.gate.weight", shape=("experts", "hidden")),
    Rule(
        target="blk.{i}.ffn_gate_exps.weight",
        source=MOE + ".experts.{e}.w1.weight",
        shape=("experts", "ff", "hidden"),
    ),
    Rule(
        target="blk.{i}.ffn_down_exps.weight",
        source=MOE + ".experts.{e}.w2.weight",
        shape=("experts", "hidden", "ff"),
    ),
    Rule(
        target="blk.{i}.ffn_up_exps.weight",
        source=MOE + ".experts.{e}.w3.weight",
        shape=("experts", "ff", "hidden"),
    ),
)
DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""What absent keys mean in `MixtralConfig`, where that is not what they mean in `LlamaConfig`."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Mixtral configuration: those of Llama, and how many experts there are and are used."""
    config = {**DEFAULTS, **checkpoint.config, "attention_bias": False, "mlp_bias": False}
    experts = integer(config, "num_local_experts", integer(config, "num_experts", 8), most=256)
    used = integer(config, "num_experts_per_tok", 2, most=256)
    if used > experts:
        raise BrokenCheckpoint(f"config.json uses {used} of {experts} experts for a token", hint=COPY_CONFIG)
    facts = llama.read(replace(checkpoint, config=config))
    return replace(
        facts,
        sizes={**facts.sizes, "experts": experts},
        keys={**facts.keys, "expert_count": experts, "expert_used_count": used},
    )


FAMILY = replace(
    llama.FAMILY,
    read=read,
    per_layer=(*(rule for rule in llama.PER_LAYER if ".mlp." not in rule.source), *EXPERTS),
)
