"""Phi-3, Phi-3.5 and Phi-4-mini: query, key and value in one matrix, gate and up in another, LongRoPE, a part of a head rotated.

Sources: `Phi3Config` and `modeling_phi3.py` in transformers, `_compute_longrope_parameters` in its modeling_rope_utils.py;
src/models/phi3.cpp and `llama_model::get_rope_factors` in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Facts, Family, Keys, Rule, TensorPlan, Warnings
from converters.families.decoder import INV_FREQ, base_keys, decoder_facts, read_shape, require, ties, window
from converters.families.rope import rope_settings
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["FAMILY"]

LAYER, ATTN, MLP = "model.layers.{i}", "model.layers.{i}.self_attn", "model.layers.{i}.mlp"
LONGROPE = ("longrope", "su", "yarn")
"""`Phi3Config.convert_rope_params_to_dict` takes the two older names for the first."""

PER_LAYER = (
    Rule(target="blk.{i}.attn_norm.weight", source=f"{LAYER}.input_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.attn_qkv.weight", source=f"{ATTN}.qkv_proj.weight", shape=("qkv", "hidden")),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "hidden")),
    Rule(target="blk.{i}.ffn_norm.weight", source=f"{LAYER}.post_attention_layernorm.weight", shape=("hidden",)),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.gate_up_proj.weight", shape=("gate_up", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
)


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Phi-3 configuration. Defaults of absent keys are those of `Phi3Config`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's phi3 architecture always computes 'silu'")
    shape = read_shape(config, context=4096)
    if shape.heads * shape.head_dim != shape.hidden:
        raise UnsupportedModel(
            f"config.json has {shape.heads} heads of {shape.head_dim}, which are not hidden_size {shape.hidden}",
            hint="GGUF's phi3 architecture knows no other size of heads",
        )
    settings = rope_settings(config, ("default", *LONGROPE), partial=True)
    rotated = rotated_size(settings, config, shape.head_dim)
    original = integer(config, "original_max_position_embeddings", 4096)
    longrope = settings["kind"] in LONGROPE
    keys, constants = long_rope(settings, rotated, shape.context / original, original) if longrope else ({}, ())
    tied, untied = ties(checkpoint)
    context, shortened = window(config, shape.context)
    switch = original if longrope and context > original else None
    facts = decoder_facts(
        shape,
        {
            **base_keys(config, shape, context, epsilon=1e-5),
            "rope.dimension_count": rotated,
            "rope.freq_base": settings["rope_theta"],
            "rope.scaling.original_context_length": original,
            "attention.sliding_window": integer(
                config, "sliding_window", 0
            ),  # 0 says none; absent means a guess in old runtimes
            **keys,
        },
        context=context,
        tied=tied,
        constants=constants,
        warnings=untied + shortened + factors_switch(switch),
    )
    fused = {"qkv": shape.hidden + 2 * shape.kv_heads * shape.head_dim, "gate_up": 2 * shape.ff}
    return replace(facts, sizes={**facts.sizes, **fused}, rope_switch=switch)


def rotated_size(settings: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> int:
    """Return how many dimensions of a head are rotated."""
    part = number(settings, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    size = int(head_dim * part)
    if part > 1 or size < 2 or size % 2:
        raise UnsupportedModel(
            f"config.json has partial_rotary_factor {part!r}, which rotates {size} of {head_dim} dimensions of a head",
            hint="an even number of them is needed",
        )
    return size


def long_rope(
    settings: Mapping[str, Any], rotated: int, ratio: float, original: int
) -> tuple[Keys, tuple[TensorPlan, ...]]:
    """Return what carries LongRoPE (https://arxiv.org/abs/2402.13753): divisors of the frequencies for short and for long texts.

    RATIO is the context divided by the ORIGINAL one, of which the factor of cosine and sine is made where nothing gives it.
    """
    factor = number(settings, "factor", ratio)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    keys: Keys = {"rope.scaling.attn_factor": number(settings, "attention_factor", usual)}
    return keys, tuple(divisors(settings, name, rotated) for name in ("long", "short"))


def divisors(settings: Mapping[str, Any], name: str, rotated: int) -> TensorPlan:
    """Return the tensor of the divisors `long_factor` or `short_factor`, (rotated / 2,)."""
    import numpy as np

    values = settings.get(f"{name}_factor")
    if not isinstance(values, list) or len(values) != rotated // 2:
        shown = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise BrokenCheckpoint(
            f"config.json has {name}_factor of {shown}, and {rotated // 2} numbers are needed", hint=COPY_CONFIG
        )
    numbers = [number({f"{name}_factor": value}, f"{name}_factor") for value in values]
    return TensorPlan(
        name=f"rope_factors_{name}.weight", shape=(rotated // 2,), constant=np.array(numbers, dtype=np.float32)
    )


def factors_switch(original: int | None) -> Warnings:
    """Return a warning about when the runtime takes the long divisors: by the size of its context, not of the text."""
    if original is None:
        return ()
    message = f"the source takes its long rope factors once a text has more than {original} tokens, the runtime whenever its context has: "
    return (("rope-switch", message + f"for shorter texts use a context of at most {original}"),)


FAMILY = Family(
    architecture="phi3",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=INV_FREQ,
)
