"""The prompts that a file and its source are run on: prose, random ids, tokens far apart, the cache, the end of an answer, long text.

Rotary positions are relative: a wrong scaling factor turns the slow frequencies by so little within a hundred tokens that no logit shows
it, wherever the hundred begin. So some prompts have a gap: a head at position 0, and a tail at up to the end of the context that
attends to it. libllama takes only consecutive positions in a sequence, but a second sequence may begin anywhere and can be given the
first one's tokens. The one token that begins it, the bridge, sees nothing but itself, and torch gets a mask that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from converters.families import ModelPlan
from converters.stress import PROSE
from converters.tokenizer import Vocabulary, source_tokenizer

__all__ = ["BLOCK", "EXACT_NMSE", "Kind", "Prompt", "far_limit", "near_prompts", "window_tokens"]

Kind = Literal["text", "noise", "far", "cached", "end", "window"]
"""What a prompt is for; `window` is long text, on which the measures of a quantized file are taken."""
TEXT_TOKENS, RANDOM_TOKENS = 48, 96
HEAD, TAIL = 16, 17
"""Tokens before and after a gap; the first of the tail is the bridge."""
PREFILL, STEPS = 24, 12
"""Tokens at once, and tokens one by one with the cache behind them."""
WINDOW, BLOCK = 512, 64
"""The longest window, and the positions that are one unit of the statistics."""
WINDOW_BYTES = 128 << 20
"""Logits of one window: with a large vocabulary, windows are shorter."""
CACHE_BYTES = 1 << 30
"""The largest cache that a proof makes only to have a long context."""
LEAST_CONTEXT = 256
"""libllama makes no smaller one."""
EXACT_NMSE = 1e-6
"""Two correct float32 implementations are four to six orders below; a wrong row order or rope is five above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids, as the two children get them.

    Where `head` is not 0, the first `head` of them are at position 0 and up, and the others at `start` and up. Where `prefill` is not
    0, the runtime computes so many at once and the others one by one. `context` is the least context that the runtime must have for
    it, 0 for none: some models turn their heads by other angles in a long one.
    """

    kind: Kind
    ids: list[int]
    head: int = 0
    start: int = 0
    prefill: int = 0
    context: int = 0


def near_prompts(plan: ModelPlan, vocabulary: Vocabulary, *, exact: bool) -> list[Prompt]:
    """Return the prompts that are not long text: for an EXACT comparison all kinds, otherwise random ids and gaps."""
    import numpy as np

    draw = np.random.default_rng(20240229)
    before = list(vocabulary.before)
    noise: list[int] = draw.integers(0, plan.vocab_size, min(plan.context, RANDOM_TOKENS)).tolist()
    found = [Prompt(kind="noise", ids=noise)]
    switch = rope_switch(plan)
    for start in distances(plan):
        ids: list[int] = draw.integers(0, plan.vocab_size, HEAD + TAIL).tolist()
        beyond = switch is not None and start + TAIL > switch
        found.append(
            Prompt(kind="far", ids=ids, head=HEAD, start=start, context=switch + 1 if switch and beyond else 0)
        )
    if not exact:
        return found
    tokenizer = source_tokenizer(vocabulary.spec)
    texts = [[*before, *tokenizer.encode(text, add_special_tokens=False).ids] for text in PROSE]
    most = min(plan.context, TEXT_TOKENS)
    found += [Prompt(kind="text", ids=text[:most]) for text in texts if text]
    steps = [token for text in texts for token in text][: min(plan.context, PREFILL + STEPS)]
    if len(steps) > 1:
        found.append(Prompt(kind="cached", ids=steps, prefill=min(PREFILL, len(steps) // 2)))
    return found


def window_tokens(plan: ModelPlan) -> int:
    """Return how long a window is: at most 512 tokens, the context, and what its logits take of memory; whole blocks where it can."""
    most = min(WINDOW, plan.context, rope_switch(plan) or WINDOW, max(32, WINDOW_BYTES // (4 * plan.vocab_size)))
    return most // BLOCK * BLOCK or most


def distances(plan: ModelPlan) -> list[int]:
    """Return where the tails of the prompts with a gap begin; none where the random ids fill the context anyway.

    With sliding-window attention there is one more, half of whose tail sees half of the head in those layers.
    """
    if plan.context <= RANDOM_TOKENS or not plan.gaps:
        return []
    wanted = {plan.context // 8, plan.context // 2, plan.context - TAIL}
    if plan.window is not None:
        wanted.add(plan.window - TAIL // 2 + HEAD // 2)
    switch = rope_switch(plan)
    last = plan.context - TAIL
    if (
        switch is not None
    ):  # a gap within the short factors, and others where a context of the long ones fits into memory
        wanted |= {switch // 2, switch - TAIL}
        last = last if cache_bytes(plan, switch + 1) <= CACHE_BYTES else switch - TAIL
    return sorted(start for start in wanted if HEAD <= start <= last)


def rope_switch(plan: ModelPlan) -> int | None:
    """Return the length of text after which the source turns heads by other angles (longrope), None where it never does.

    libllama decides by its context instead of the text (`get_rope_factors` in llama-model.cpp).
    """
    if not any(tensor.name.startswith("rope_factors_long") for tensor in plan.tensors):
        return None
    original = plan.keys.get("rope.scaling.original_context_length")
    return original if isinstance(original, int) and LEAST_CONTEXT <= original < plan.context else None


def cache_bytes(plan: ModelPlan, context: int) -> int:
    """Return the bytes of a float32 cache of CONTEXT tokens, at most."""
    hidden = plan.keys.get("embedding_length")
    head = plan.keys.get("attention.key_length") or (hidden if isinstance(hidden, int) else 0) // max(1, plan.heads)
    return context * plan.layers * plan.kv_heads * (head if isinstance(head, int) else 256) * 2 * 4


def far_limit(distance: int) -> float:
    """Return the limit for the NMSE of float32 logits across a gap of DISTANCE tokens.

    An angle of DISTANCE radians has a rounding error of DISTANCE · 2⁻²⁴ in float32, several times that where the frequencies come of
    repeated multiplication, as ggml has them; its square goes into the NMSE. Random models of head size 64: with theta 5e5 2.3e-8 is
    measured at 16384 (limit 1.5e-5) and 2e-6 at 131055 (limit 9.8e-4); with theta 1e4 and large weights 1.3e-6 at 16384 and 4.8e-6
    at 32751 (limit 6.1e-5). A scaling factor of 24 instead of 32 gives 1.1e-3 and 5.5e-2.
    """
    return float(max(EXACT_NMSE, (4 * distance * 2.0**-24) ** 2))


def positions(prompts: Sequence[Prompt]) -> int:
    """Return how many positions PROMPTS have."""
    return sum(len(prompt.ids) for prompt in prompts)
