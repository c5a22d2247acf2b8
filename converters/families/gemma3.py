"""Gemma 3: norms of 1 + weight around each part, five layers with a sliding window to one without, two rotary bases.

The language model of Gemma3ForConditionalGeneration is the same; its images are left out, and a warning says so.

Sources: `Gemma3TextConfig` and `modeling_gemma3.py` in transformers; src/models/gemma3.cpp in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Facts, Family, Keys, Rule, Warnings
from converters.families.activations import GELU_TABLE_NMSE
from converters.families.decoder import (
    INV_FREQ,
    Shape,
    base_keys,
    decoder_facts,
    read_shape,
    require,
    sliding_layers,
    ties,
)
from converters.families.rope import rope_settings
from converters.families.rules import add_one
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["FAMILY"]

LAYER = "{p}layers.{i}"
ATTN, MLP = f"{LAYER}.self_attn", f"{LAYER}.mlp"

PER_LAYER = (
    Rule(
        target="blk.{i}.attn_norm.weight",
        source=f"{LAYER}.input_layernorm.weight",
        shape=("hidden",),
        transform=add_one,
    ),
    Rule(target="blk.{i}.attn_q.weight", source=f"{ATTN}.q_proj.weight", shape=("q", "hidden")),
    Rule(
        target="blk.{i}.attn_q_norm.weight",
        source=f"{ATTN}.q_norm.weight",
        shape=("head",),
        transform=add_one,
        factor="query",
    ),
    Rule(target="blk.{i}.attn_k.weight", source=f"{ATTN}.k_proj.weight", shape=("kv", "hidden")),
    Rule(
        target="blk.{i}.attn_k_norm.weight",
        source=f"{ATTN}.k_norm.weight",
        shape=("head",),
        transform=add_one,
    ),
    Rule(target="blk.{i}.attn_v.weight", source=f"{ATTN}.v_proj.weight", shape=("kv", "hidden")),
    Rule(target="blk.{i}.attn_output.weight", source=f"{ATTN}.o_proj.weight", shape=("hidden", "q")),
    Rule(
        target="blk.{i}.post_attention_norm.weight",
        source=f"{LAYER}.post_attention_layernorm.weight",
        shape=("hidden",),
        transform=add_one,
    ),
    Rule(
        target="blk.{i}.ffn_norm.weight",
        source=f"{LAYER}.pre_feedforward_layernorm.weight",
        shape=("hidden",),
        transform=add_one,
    ),
    Rule(target="blk.{i}.ffn_gate.weight", source=f"{MLP}.gate_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_up.weight", source=f"{MLP}.up_proj.weight", shape=("ff", "hidden")),
    Rule(target="blk.{i}.ffn_down.weight", source=f"{MLP}.down_proj.weight", shape=("hidden", "ff")),
    Rule(
        target="blk.{i}.post_ffw_norm.weight",
        source=f"{LAYER}.post_feedforward_layernorm.weight",
        shape=("hidden",),
        transform=add_one,
    ),
)
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
"""`Gemma3TextConfig`. The published 4B to 27B leave most of it out of their text_config."""
PATTERN = 6
"""One layer in six has no window, in transformers and in the runtime, unless they are told otherwise."""
BIG = 62
"""A model of so many layers is the 27B to the runtime, which then divides by √(hidden / heads) instead of √head_dim."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Gemma 3 configuration."""
    config, left_out = text_config(checkpoint)
    require(
        config, "hidden_activation", "gelu_pytorch_tanh", why="GGUF's gemma3 architecture always computes that GELU"
    )
    for key in ("attention_bias", "use_bidirectional_attention", "attn_logit_softcapping"):
        require(config, key, False, why="GGUF's gemma3 architecture cannot say so")
    shape = read_shape(config, head_dim=DEFAULTS["head_dim"])
    tied, untied = ties(checkpoint, default=True, embedding=embedding_of(checkpoint))
    step = integer(config, "sliding_window_pattern", PATTERN)
    slides = sliding_layers(config, [bool((layer + 1) % step) for layer in range(shape.layers)])
    keys = {**base_keys(config, shape, shape.context), **rope_keys(config, slides), **window_keys(config, slides)}
    if config.get("final_logit_softcapping") is not None:
        keys["final_logit_softcapping"] = number(config, "final_logit_softcapping")
    facts = decoder_facts(shape, keys, context=shape.context, tied=tied, warnings=left_out + untied)
    window = integer(config, "sliding_window") if any(slides) else None
    return replace(
        facts,
        factors={"query": query_factor(config, shape)},
        window=window,
        activation_nmse=shape.layers * GELU_TABLE_NMSE,
    )


def text_config(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Warnings]:
    """Return the configuration of the language model with its defaults, and a warning where something else is left out."""
    config = checkpoint.config
    kind = checkpoint.architecture or checkpoint.model_type
    if kind in ("Gemma3ForCausalLM", "gemma3_text"):
        return {**DEFAULTS, **config}, ()
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise BrokenCheckpoint(f"config.json has text_config {text!r}, and a JSON object is needed", hint=COPY_CONFIG)
    return {**DEFAULTS, **text}, (("images-left-out", "the file holds the language model only: it cannot read images"),)


def embedding_of(checkpoint: Checkpoint) -> str:
    """Return the name of the embeddings in CHECKPOINT."""
    names = (f"{prefix}embed_tokens.weight" for prefix in PREFIXES)
    return next((name for name in names if name in checkpoint.tensors), "")


def query_factor(config: Mapping[str, Any], shape: Shape) -> float:
    """Return what makes the runtime's attention scale that of the configuration; the norm of the queries takes it up."""
    divisor = shape.hidden // shape.heads if shape.layers == BIG else shape.head_dim
    return math.sqrt(divisor / number(config, "query_pre_attn_scalar"))


def window_keys(config: Mapping[str, Any], slides: Sequence[bool]) -> Keys:
    """Return the keys of the sliding window; layers are listed only where they are not what the runtime takes for granted."""
    if not any(slides):
        return {}
    keys: Keys = {"attention.sliding_window": integer(config, "sliding_window")}
    if list(slides) != [bool((layer + 1) % PATTERN) for layer in range(len(slides))]:
        keys["attention.sliding_window_pattern"] = tuple(slides)
    return keys


def rope_keys(config: Mapping[str, Any], slides: Sequence[bool]) -> Keys:
    """Return the keys of the two rotary bases; only that of layers without a window can be scaled (`Gemma3TextConfig`)."""
    nested, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    kinds = ("full_attention", "sliding_attention")
    sets = [scaling, *(nested.values() if isinstance(nested, dict) else [])]
    if (
        not isinstance(nested, dict)
        or not nested.keys() <= set(kinds)
        or not all(isinstance(item or {}, dict) for item in sets)
    ):
        raise UnsupportedModel(
            f"config.json has rope_parameters {nested!r}, and settings for {' and '.join(kinds)} are needed",
            hint=COPY_CONFIG,
        )
    partial = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    everywhere = {"rope_parameters": {**(nested.get(kinds[0]) or {}), **scaling}, **partial}
    windowed = {"rope_parameters": nested.get(kinds[1]) or {}, **partial}
    full = rope_settings(everywhere, ("default", "linear"), theta=number(config, "rope_theta", 1e6))
    near = rope_settings(windowed, ("default",), theta=number(config, "rope_local_base_freq", 1e4))
    keys: Keys = {"rope.freq_base": full["rope_theta"]}
    if full["kind"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": number(full, "factor")}
    if any(slides):
        keys["rope.freq_base_swa"] = near["rope_theta"]
    return keys


PREFIXES = ("model.language_model.", "model.")
FAMILY = Family(
    architecture="gemma3",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="{p}embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="{p}norm.weight", shape=("hidden",), transform=add_one),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=(*INV_FREQ, r"model\.vision_tower\..*", r"model\.multi_modal_projector\..*"),
    prefixes=PREFIXES,
    aliases=(
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    ),
)
"""transformers 4 wrote `language_model.model.…`, transformers 5 writes `model.language_model.…`."""
