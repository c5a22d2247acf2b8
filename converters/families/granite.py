"""Granite 3 (dense): Llama with four multipliers, for embeddings, attention, residuals and logits.

Sources: `GraniteConfig` and `modeling_granite.py` in transformers; src/models/granite.cpp in llama.cpp, which divides by the logit scale.
"""

from __future__ import annotations

from collections.abc import Mapping

from converters.checkpoint import Checkpoint
from converters.families import Facts, Family
from converters.families.decoder import base_keys, decoder_facts, read_shape, require, ties
from converters.families.llama import FAMILY as LLAMA
from converters.families.llama import biases
from converters.families.rope import rope
from converters.families.settings import number

__all__ = ["FAMILY"]

MULTIPLIERS: Mapping[str, str] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
"""Key of the file → key of the configuration. All are 1 where they are absent, also the one of attention."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a Granite configuration. Defaults of absent keys are those of `GraniteConfig`."""
    config = checkpoint.config
    require(config, "hidden_act", "silu", "swish", why="GGUF's granite architecture always computes 'silu'")
    shape = read_shape(config)
    tied, untied = ties(checkpoint)
    rope_keys, constants = rope(config, shape.head_dim, shape.context, divisors=True)
    scales = {key: number(config, name, 1.0) for key, name in MULTIPLIERS.items()}
    return decoder_facts(
        shape,
        {**base_keys(config, shape, shape.context), **rope_keys, **scales},
        context=shape.context,
        tied=tied,
        facts=biases(config),
        constants=constants,
        warnings=untied,
    )


FAMILY = Family(
    architecture="granite",
    read=read,
    once_before=LLAMA.once_before,
    per_layer=LLAMA.per_layer,
    once_after=LLAMA.once_after,
    ignored=LLAMA.ignored,
)
