"""Llama 1 to 3 and what is laid out like them: SmolLM2, TinyLlama, Yi, Mistral.

Sources: `LlamaConfig` and `modeling_llama.py` in transformers; `LLM_ARCH_LLAMA` in llama.cpp (src/llama-arch.cpp, src/models/llama.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import ITEM_BYTES, Checkpoint, SourceTensor
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import COPY_CONFIG, Facts, Family, Rule, TensorPlan, integer, interleave_halves, number

__all__ = ["FAMILY"]

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

Keys = dict[str, int | float | str | bool]
ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Llama configuration. Defaults of absent keys are those of `LlamaConfig`."""
    config = checkpoint.config
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    head_dim = integer(config, "head_dim", max(1, hidden // heads))
    if heads % kv_heads:
        raise BrokenCheckpoint(
            f"config.json has {heads} attention heads and {kv_heads} key/value heads, which do not divide"
        )
    if head_dim % 2:
        raise UnsupportedModel(f"config.json has head_dim {head_dim}, and rotary embeddings need an even one")
    activation = config.get("hidden_act") or "silu"
    if activation != "silu":
        raise UnsupportedModel(
            f"config.json has hidden_act {activation!r}", hint="GGUF's llama architecture always computes 'silu'"
        )
    for key in ("rms_norm_eps", "max_position_embeddings"):
        if key in config and config[key] is None:  # transformers knows a default for absence, and none for null
            raise BrokenCheckpoint(f"config.json has {key} null, and a number is needed", hint=COPY_CONFIG)
    layers, context = integer(config, "num_hidden_layers", most=4096), integer(config, "max_position_embeddings", 2048)
    sizes = {
        "hidden": hidden,
        "ff": integer(config, "intermediate_size"),
        "vocab": integer(config, "vocab_size", most=1 << 24),
        "q": heads * head_dim,
        "kv": kv_heads * head_dim,
    }
    tied, warnings = ties(checkpoint)
    facts = {name for name in ("attention_bias", "mlp_bias") if config.get(name)} | (set() if tied else {"untied"})
    rope_keys, constants = rope(config, head_dim, context)
    context, shortened = window(config, context)
    warnings += shortened
    return Facts(
        sizes=sizes,
        facts=frozenset(facts),
        head_dim=head_dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        context=context,
        keys={
            "context_length": context,
            "embedding_length": hidden,
            "block_count": layers,
            "feed_forward_length": sizes["ff"],
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps", 1e-6),
            "vocab_size": sizes["vocab"],
            "rope.dimension_count": head_dim,
            **rope_keys,
        },
        constants=constants,
        skip=("lm_head.weight",) if tied else (),
        warnings=warnings,
    )


def ties(checkpoint: Checkpoint) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Return whether the output matrix is the embedding.

    A folder may say so and hold an lm_head.weight all the same: if it is another matrix it is kept, as transformers 5 does.
    """
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    tensors = [checkpoint.tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight")]
    embedding, head = tensors
    if not tied or embedding is None or head is None or same_values(embedding, head):
        return tied, ()
    message = "config.json ties lm_head.weight to the embeddings, and the two differ: the file keeps both"
    return False, (("untied", message),)


def same_values(left: SourceTensor, right: SourceTensor, step: int = 1024) -> bool:
    """Whether two tensors hold the same numbers, read a slab at a time."""
    if left.shape != right.shape or not {left.dtype, right.dtype} <= ITEM_BYTES.keys():
        return False
    starts = range(0, left.shape[0], step)
    return all(
        bool((left.rows(at, min(at + step, left.shape[0])) == right.rows(at, min(at + step, left.shape[0]))).all())
        for at in starts
    )


def window(config: Mapping[str, Any], context: int) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return the context within which sliding-window attention is the same as full attention, which the runtime computes."""
    size = config.get("sliding_window")
    if size is None or integer(config, "sliding_window") >= context:
        return context, ()
    message = f"the context is {size} instead of {context}: beyond the sliding window the runtime would compute something else"
    return int(size), (("context-shortened", message),)


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind, theta and the other rope settings from either layout.

    transformers 5 has everything in `rope_parameters`, 4 had `rope_theta` and `rope_scaling` with `type` or `rope_type`.
    """
    settings: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
            raise UnsupportedModel(f"config.json has {key} {value!r}, and one set of settings for all layers is needed")
        settings |= value
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise UnsupportedModel(
            f"the rope scaling {kind!r} cannot be converted", hint=f"known kinds: {', '.join(ROPE_KINDS)}"
        )
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedModel(
            f"config.json has partial_rotary_factor {partial!r}, and the llama family rotates all of a head"
        )
    theta = number(settings, "rope_theta", number(config, "rope_theta", 10000.0))
    if theta <= 1:
        raise BrokenCheckpoint(f"config.json has rope_theta {theta}, and more than 1 is needed")
    return settings | {"kind": kind, "rope_theta": theta}


def rope(config: Mapping[str, Any], head_dim: int, context: int) -> tuple[Keys, tuple[TensorPlan, ...]]:
    """Return the keys and computed tensors that carry the rotary embedding."""
    settings = rope_settings(config)
    keys: Keys = {"rope.freq_base": settings["rope_theta"]}
    if settings["kind"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": number(settings, "factor")}
    if settings["kind"] == "yarn":
        return yarn(settings, head_dim, context)
    if settings["kind"] == "llama3":
        return keys, (llama3_divisors(settings, head_dim, context),)
    return keys, ()


def yarn(settings: Mapping[str, Any], head_dim: int, context: int) -> tuple[Keys, tuple[TensorPlan, ...]]:
    """Return what carries YaRN scaling (https://arxiv.org/abs/2309.00071, `_compute_yarn_parameters` in transformers).

    The runtime knows it by name, with correction bounds of 32 and 1 rotations that its llama architecture cannot change. Other
    bounds are written out as divisors of the frequencies, and the factor of cosine and sine beside them.
    """
    factor = number(settings, "factor")
    original = integer(settings, "original_max_position_embeddings", context)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    wanted = settings.get("attention_factor")
    if wanted is None and settings.get("mscale") and settings.get("mscale_all_dim"):
        logarithm = math.log(max(factor, 1.0))
        scale, scale_all = number(settings, "mscale"), number(settings, "mscale_all_dim")
        wanted = (0.1 * scale * logarithm + 1.0) / (0.1 * scale_all * logarithm + 1.0)
    attention = usual if wanted is None else number({"attention_factor": wanted}, "attention_factor")
    fast, slow = number(settings, "beta_fast", 32.0), number(settings, "beta_slow", 1.0)
    keys: Keys = {"rope.freq_base": settings["rope_theta"]}
    if (fast, slow, settings.get("truncate", True)) != (32.0, 1.0, True):
        keys["rope.scaling.attn_factor"] = attention
        return keys, (yarn_divisors(settings, head_dim, factor, original, (fast, slow)),)
    keys |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    if not math.isclose(attention, usual, rel_tol=1e-9):  # ggml multiplies by the usual factor itself
        keys["rope.scaling.attn_factor"] = attention / usual
    return keys, ()


def yarn_divisors(
    settings: Mapping[str, Any], head_dim: int, factor: float, original: int, rotations: tuple[float, float]
) -> TensorPlan:
    """Return `rope_freqs.weight` for YaRN: 1 where a dimension turns often enough, FACTOR where it does not, blended between."""
    import numpy as np

    theta = settings["rope_theta"]
    low, high = (head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in rotations)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    divisors = 1.0 / (ramp / factor + (1.0 - ramp))
    return TensorPlan(name="rope_freqs.weight", shape=(head_dim // 2,), constant=divisors.astype(np.float32))


def llama3_divisors(settings: Mapping[str, Any], head_dim: int, context: int) -> TensorPlan:
    """Return `rope_freqs.weight`: what each rotary frequency is divided by, (head_dim / 2,) float32.

    Wavelengths below original/high_freq_factor stay, those above original/low_freq_factor are divided by `factor`, and between them
    the frequency is blended. Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    import numpy as np

    factor, low, high = (number(settings, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise BrokenCheckpoint(f"config.json has high_freq_factor {high}, which is not above low_freq_factor {low}")
    original = integer(settings, "original_max_position_embeddings", context)
    frequency = 1.0 / settings["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelength = 2 * math.pi / frequency
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    divisors = 1.0 / ((1.0 - blend) / factor + blend)
    return TensorPlan(name="rope_freqs.weight", shape=(head_dim // 2,), constant=divisors.astype(np.float32))


FAMILY = Family(
    architecture="llama",
    read=read,
    once_before=(Rule(target="token_embd.weight", source="model.embed_tokens.weight", shape=("vocab", "hidden")),),
    per_layer=PER_LAYER,
    once_after=(
        Rule(target="output_norm.weight", source="model.norm.weight", shape=("hidden",)),
        Rule(target="output.weight", source="lm_head.weight", shape=("vocab", "hidden"), when="untied"),
    ),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq"),
)
