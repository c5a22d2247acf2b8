"""Rotary embeddings: what a configuration says of them in either layout, and the keys and computed tensors that carry it.

Sources: transformers' modeling_rope_utils.py; `ggml_rope_ext` in ggml.h and `rope_yarn` in ggml-cpu/ops.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Keys
from converters.families.rules import TensorPlan
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["ROPE_KINDS", "rope", "rope_settings"]

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def rope_settings(
    config: Mapping[str, Any], kinds: Sequence[str] = ROPE_KINDS, *, partial: bool = False, theta: float = 10000.0
) -> dict[str, Any]:
    """Return `kind`, `rope_theta` and the other rope settings from either layout; KINDS are those that the family can carry.

    transformers 5 has everything in `rope_parameters`, 4 had `rope_theta` and `rope_scaling` with `type` or `rope_type`; where both are,
    the older holds (`convert_rope_params_to_dict`). PARTIAL says that the family may rotate a part of a head
    (`partial_rotary_factor`), THETA is what an absent `rope_theta` means.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    settings = config.get(key) or {}
    if not isinstance(settings, dict) or any(isinstance(item, dict) for item in settings.values()):
        raise UnsupportedModel(
            f"config.json has {key} {settings!r}, and one set of settings for all layers is needed", hint=COPY_CONFIG
        )
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in kinds:
        raise UnsupportedModel(
            f"the rope scaling {kind!r} cannot be converted", hint=f"known kinds: {', '.join(kinds)}"
        )
    part = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if not partial and part not in (None, 1, 1.0):
        raise UnsupportedModel(
            f"config.json has partial_rotary_factor {part!r}, and this family rotates all of a head",
            hint="no file could say so to the runtime",
        )
    theta = number(settings, "rope_theta", number(config, "rope_theta", theta))
    if theta <= 1:
        raise BrokenCheckpoint(f"config.json has rope_theta {theta}, and more than 1 is needed")
    return settings | {"kind": kind, "rope_theta": theta}


def rope(
    config: Mapping[str, Any], head_dim: int, context: int, *, divisors: bool, theta: float = 10000.0
) -> tuple[Keys, tuple[TensorPlan, ...]]:
    """Return the keys and computed tensors that carry the rotary embedding; THETA is what an absent `rope_theta` means.

    DIVISORS says whether the runtime's architecture reads `rope_freqs.weight`; without it only what its keys can say is possible.
    """
    kinds = ROPE_KINDS if divisors else tuple(kind for kind in ROPE_KINDS if kind != "llama3")
    settings = rope_settings(config, kinds, theta=theta)
    if config.get("original_max_position_embeddings") is not None:  # comes first, as in `standardize_rope_params`
        settings["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    keys: Keys = {"rope.freq_base": settings["rope_theta"]}
    if settings["kind"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": number(settings, "factor")}
    if settings["kind"] == "yarn":
        return yarn(settings, head_dim, context, divisors=divisors)
    if settings["kind"] == "llama3":
        return keys, (llama3_divisors(settings, head_dim, context),)
    return keys, ()


def yarn(
    settings: Mapping[str, Any], head_dim: int, context: int, *, divisors: bool
) -> tuple[Keys, tuple[TensorPlan, ...]]:
    """Return what carries YaRN scaling (https://arxiv.org/abs/2309.00071, `_compute_yarn_parameters` in transformers).

    The runtime knows it by name, with correction bounds of 32 and 1 rotations that most of its architectures cannot change. Other
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
        if not divisors:
            raise UnsupportedModel(
                f"config.json has yarn bounds of {fast:g} and {slow:g} rotations, and the runtime's are 32 and 1",
                hint="its architecture of this family cannot be told of others",
            )
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
