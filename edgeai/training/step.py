"""One optimiser step, and the numbers around it; each a pure function of its arguments."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it

from edgeai.training.recipe import TrainingSettings

__all__ = ["accumulate", "evaluate", "learning_rate", "optimizer", "update"]


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of STEP, counted from 0: linear warm-up, then cosine or WSD down to `min_lr`.

    The horizon is the recipe's `steps`, wherever this run stops, so a resumed run gets the rates of a straight one.
    WSD (warm-up, stable, decay) holds `lr` until the last `decay_steps`, and then falls linearly (Hu et al. 2024,
    MiniCPM, section 4).
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    span = settings.lr - settings.min_lr
    if settings.schedule == "wsd":
        left = min(max(settings.steps - step, 0), settings.decay_steps)
        return settings.lr if settings.decay_steps == 0 else settings.min_lr + span * left / settings.decay_steps
    done = min((step - settings.warmup_steps) / (settings.steps - settings.warmup_steps), 1.0)
    return settings.min_lr + span * 0.5 * (1.0 + math.cos(math.pi * done))


def optimizer(model: Any, settings: TrainingSettings) -> Any:
    """Return AdamW; only matrices decay, for pulling a norm's gain towards zero has no meaning."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


def loss_sum(model: Any, batch: Any, *, bf16: bool = False) -> Any:
    """Return the summed cross-entropy, in nats, of a (windows, context + 1) BATCH of ids."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    amp = torch.autocast(batch.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    with amp:
        logits = model(input_ids=inputs, use_cache=False).logits  # (windows, context, vocab)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


def accumulate(model: Any, batch: Any, micro_batch_size: int, *, bf16: bool = False) -> float:
    """Put the gradient of BATCH's mean loss into the parameters, and return that loss in nats per token.

    Each micro-batch's summed loss is divided by the token count of the whole batch, once: a mean of means weighs
    the tokens of a short micro-batch more (transformers issue 34191).
    """
    tokens = batch[:, 1:].numel()
    total = torch.zeros((), dtype=torch.float32, device=batch.device)
    for part in batch.split(micro_batch_size):
        loss = loss_sum(model, part, bf16=bf16) / tokens
        loss.backward()
        total += loss.detach()
    return float(total)


def update(model: Any, adamw: Any, rate: float, grad_clip: float) -> float:
    """Take one step with learning rate RATE and clipped gradients; return the gradient's norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip))
    if math.isfinite(norm):
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    adamw.zero_grad(set_to_none=True)
    return norm


def evaluate(
    model: Any, tokens: npt.NDArray[np.integer], context: int, batch_size: int = 16, *, bf16: bool = False
) -> float:
    """Return the cross-entropy in nats per token on all TOKENS but the first.

    Windows do not overlap: a target sees between 1 and CONTEXT tokens before it, so this is an upper bound of what
    a sliding window would give, on exactly the targets of `bigram_loss`.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    count = len(ids) - 1
    whole = count // context
    parts = list(ids[: whole * context + 1].unfold(0, context + 1, context).split(batch_size)) if whole else []
    if whole * context < count:
        parts.append(ids[whole * context :][None])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        total = sum(float(loss_sum(model, part.to(device), bf16=bf16)) for part in parts)
    model.train(was_training)
    return total / count
