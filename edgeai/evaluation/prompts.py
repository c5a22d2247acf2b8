"""The prompts that a file and its source are run on: prose, random ids, and tokens that are far apart.

Rotary positions are relative: a wrong scaling factor turns the slow frequencies by so little within a hundred tokens that no logit shows
it, wherever the hundred begin. So some prompts have a gap: a head at position 0, and a tail at up to the end of the context that
attends to it. libllama takes only consecutive positions in a sequence, but a second sequence may begin anywhere and can be given the
first one's tokens. The one token that begins it, the bridge, sees nothing but itself, and torch gets a mask that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from converters.families import ModelPlan
from converters.stress import PROSE
from converters.tokenizer import Vocabulary, source_tokenizer

__all__ = ["Prompt", "Prompts", "choose_prompts", "far_limit", "scratch_bytes"]

TEXT_TOKENS, RANDOM_TOKENS = 48, 96
HEAD, TAIL = 16, 17
"""Tokens before and after a gap; the first of the tail is the bridge."""
MAX_LOGITS = 96_000_000
"""Positions · vocabulary: 384 MB in each file of logits."""
EXACT_NMSE = 1e-6
"""Two correct float32 implementations are four to six orders below; a wrong row order or rope is five above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids; the first `head` of them are at position 0 and up, and the others at `start` and up."""

    ids: list[int]
    head: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """All prompts in their order: prose, random ids, those with a gap."""

    text: list[Prompt] = field(default_factory=list)
    noise: list[Prompt] = field(default_factory=list)
    far: list[Prompt] = field(default_factory=list)

    def all(self) -> list[Prompt]:
        """Return the prompts in the order of their logits."""
        return [*self.text, *self.noise, *self.far]

    @property
    def text_positions(self) -> int:
        """How many positions are prose; they come first."""
        return positions(self.text)

    @property
    def near_positions(self) -> int:
        """How many positions belong to prompts without a gap."""
        return positions([*self.text, *self.noise])

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return positions(self.all())

    def gaps(self) -> Iterator[tuple[int, slice]]:
        """Yield (distance in tokens, where its logits are) for each gap: the positions that see across it."""
        at = self.near_positions
        for prompt in self.far:
            yield prompt.start, slice(at + prompt.head + 1, at + len(prompt.ids))
            at += len(prompt.ids)


def positions(prompts: list[Prompt]) -> int:
    """Return how many positions PROMPTS have."""
    return sum(len(prompt.ids) for prompt in prompts)


def choose_prompts(plan: ModelPlan, vocabulary: Vocabulary) -> Prompts:
    """Choose the gaps first, then prose, then random ids of the whole vocabulary, as far as the room for logits goes."""
    import numpy as np

    draw = np.random.default_rng(20240229)
    tokenizer = source_tokenizer(vocabulary.spec)
    bos = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
    most = min(plan.context, TEXT_TOKENS)
    texts = [[*bos, *tokenizer.encode(text, add_special_tokens=False).ids][:most] for text in PROSE]
    noise: list[int] = draw.integers(0, plan.vocab_size, min(plan.context, RANDOM_TOKENS)).tolist()
    chosen = Prompts()
    for start in distances(plan.context):
        ids: list[int] = draw.integers(0, plan.vocab_size, HEAD + TAIL).tolist()
        chosen.far.append(Prompt(ids=ids, head=HEAD, start=start))
    room = near_room(plan)
    for part, ids in [*((chosen.text, text) for text in texts if text), (chosen.noise, noise)]:
        if len(ids) <= room:
            part.append(Prompt(ids=ids))
            room -= len(ids)
    return chosen


def near_room(plan: ModelPlan) -> int:
    """Return how many positions without a gap there is room for."""
    far = len(distances(plan.context)) * (HEAD + TAIL)
    return max(2 * min(plan.context, TEXT_TOKENS), MAX_LOGITS // plan.vocab_size - far)


def scratch_bytes(plan: ModelPlan) -> int:
    """Return how many bytes of logits a proof writes at most: those of torch, of the export and of the quantized file."""
    near = min(near_room(plan), len(PROSE) * TEXT_TOKENS + RANDOM_TOKENS)
    return 3 * 4 * plan.vocab_size * (near + len(distances(plan.context)) * (HEAD + TAIL))


def distances(context: int) -> list[int]:
    """Return where the tails of the prompts with a gap begin; none where the random ids fill the context anyway."""
    if context <= RANDOM_TOKENS:
        return []
    return sorted({start for start in (context // 8, context // 2, context - TAIL) if start >= HEAD})


def far_limit(distance: int) -> float:
    """Return the limit for the NMSE of float32 logits across a gap of DISTANCE tokens.

    An angle of DISTANCE radians has a rounding error of DISTANCE · 2⁻²⁴ in float32, and its square goes into the NMSE. Random models
    of head size 64, theta 5e5: 2.3e-8 is measured at 16384 (limit 1e-6) and 2e-6 at 131055 (limit 6.1e-5); a scaling factor of 24
    instead of 32 gives 1.1e-3 and 5.5e-2.
    """
    return float(max(EXACT_NMSE, (distance * 2.0**-24) ** 2))
