"""SmolLM3: Llama whose every fourth layer rotates nothing (NoPE, https://arxiv.org/abs/2501.18795).

Sources: `SmolLM3Config` and `modeling_smollm3.py` in transformers; src/models/smollm3.cpp in llama.cpp, where the fourth is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import UnsupportedModel
from converters.families import Facts, Family
from converters.families.decoder import base_keys, decoder_facts, read_shape, require, sliding_layers, ties, window
from converters.families.llama import BIASES
from converters.families.llama import FAMILY as LLAMA
from converters.families.rope import rope
from converters.families.settings import integer

__all__ = ["FAMILY"]

RUNTIME_STEP = 4
"""`n_no_rope_layer_step` in src/models/smollm3.cpp."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a SmolLM3 configuration. Defaults of absent keys are those of `SmolLM3Config`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's smollm3 architecture always computes 'silu'")
    for name in BIASES:
        require(config, name, False, why="GGUF's smollm3 architecture has no such bias")
    shape = read_shape(config, context=32768, kv_heads=4)
    rotates = rotating_layers(config, shape.layers)
    tied, untied = ties(checkpoint, default=True)
    rope_keys, _ = rope(config, shape.head_dim, shape.context, divisors=False, theta=2e6)
    usual = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    slides = any(sliding_layers(config, [usual and not turn for turn in rotates]))
    context, shortened = window(config, shape.context) if slides else (shape.context, ())
    return decoder_facts(
        shape,
        {**base_keys(config, shape, context), **rope_keys},
        context=context,
        tied=tied,
        warnings=untied + shortened,
    )


def rotating_layers(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Return for each layer whether it has rotary embeddings; raises UnsupportedModel unless it is so in the runtime too."""
    usual = [(layer + 1) % RUNTIME_STEP != 0 for layer in range(layers)]
    given = config.get("no_rope_layers")
    if given is None:
        step = integer(config, "no_rope_layer_interval", RUNTIME_STEP)
        found = [(layer + 1) % step != 0 for layer in range(layers)]
    else:
        found = [bool(turn) for turn in given[:layers]] if isinstance(given, list) else []
    if found != usual:
        named = "no_rope_layers" if given is not None else "no_rope_layer_interval"
        raise UnsupportedModel(
            f"config.json has {named} {config.get(named)!r}",
            hint=f"the runtime leaves out rotary embeddings in every layer whose number is a multiple of {RUNTIME_STEP}, and in no other",
        )
    return found


FAMILY = Family(
    architecture="smollm3",
    read=read,
    once_before=LLAMA.once_before,
    per_layer=LLAMA.per_layer,
    once_after=LLAMA.once_after,
    ignored=LLAMA.ignored,
)
