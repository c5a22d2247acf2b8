"""The network: transformers' Llama, built from a recipe."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from edgeai.errors import RecipeError
from edgeai.training.recipe import Recipe
from edgeai.training.tokenizer import BOS, EOS, PAD

__all__ = ["build", "config", "parameter_count"]


def config(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """Return the LlamaConfig of RECIPE; its vocabulary is the tokenizer's, or RecipeError is raised."""
    size = tokenizer.get_vocab_size()
    if size != recipe.tokenizer.vocab_size:
        raise RecipeError(
            f"the tokenizer has {size!r} tokens and the recipe {recipe.tokenizer.vocab_size!r}",
            hint="train the tokenizer and the model from one recipe",
        )
    shape = recipe.model
    return LlamaConfig(
        vocab_size=size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        initializer_range=shape.init_std,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        use_cache=True,
        attn_implementation="sdpa",
    )


def build(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """Return a new LlamaForCausalLM in fp32, its weights drawn from the recipe's seed alone."""
    settings = config(recipe, tokenizer)
    with torch.random.fork_rng(devices=[]):  # the draw must not depend on, or move, what the caller has drawn
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(settings).float()


def parameter_count(model: Any) -> int:
    """Return the number of trained numbers; tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())
