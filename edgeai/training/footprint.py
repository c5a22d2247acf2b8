"""What a run needs, by arithmetic on its recipe: asked before the first tensor is made."""

from __future__ import annotations

import torch

from edgeai.device import memory_facts
from edgeai.errors import DoesNotFit
from edgeai.training.accelerator import Accelerator
from edgeai.training.recipe import Recipe

__all__ = ["check_memory", "disk_bytes", "memory_bytes", "parameters"]


def parameters(recipe: Recipe) -> int:
    """Return the number of trained numbers of the recipe's Llama; tied embeddings count once."""
    m = recipe.model
    attention = m.hidden_size * m.head_dim * (2 * m.heads + 2 * m.kv_heads)  # q and o, k and v
    layer = attention + 3 * m.hidden_size * m.intermediate_size + 2 * m.hidden_size
    embeddings = recipe.tokenizer.vocab_size * m.hidden_size * (1 if m.tie_embeddings else 2)
    return m.layers * layer + embeddings + m.hidden_size


def memory_bytes(recipe: Recipe) -> int:
    """Return about what one step holds at once: weights, gradients and two moments, and what backward needs.

    Kept for backward is, per token and layer, about ten rows of the hidden and four of the intermediate size, and
    three times the logits (themselves, their log-softmax and its gradient); all in fp32.
    """
    m, t = recipe.model, recipe.training
    tokens = (t.micro_batch_size or t.batch_size) * m.context
    rows = m.layers * (10 * m.hidden_size + 4 * m.intermediate_size) + 3 * recipe.tokenizer.vocab_size
    return 4 * (4 * parameters(recipe) + tokens * rows)


def disk_bytes(recipe: Recipe) -> int:
    """Return what a run writes at most: three checkpoints (two kept, one new; weights and two moments), an export."""
    return 4 * parameters(recipe) * (3 * 3 + 1) + 2**20


def check_memory(recipe: Recipe, chosen: Accelerator) -> None:
    """Raise DoesNotFit when a step of RECIPE needs more memory than the device has free."""
    need = memory_bytes(recipe)
    free = torch.cuda.mem_get_info()[0] if chosen.device == "cuda" else memory_facts().available
    if need > free:
        raise DoesNotFit(
            f"a step of {recipe.name!r} needs about {need / 1e9:.1f} GB of memory and {chosen} has {free / 1e9:.1f} GB free",
            hint="lower training.micro_batch_size (the result stays the same), model.context, or the model's size",
        )
