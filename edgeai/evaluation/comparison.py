"""Two streams of logits compared prompt by prompt, and the rows that come of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeai.evaluation.intervals import Interval, mean_interval, quantile_interval, share_interval
from edgeai.evaluation.limits import Limit, at_least, at_most, stated
from edgeai.evaluation.prompts import BLOCK, EXACT_NMSE, Prompt, far_limit
from edgeai.evaluation.score import TIE, Measures, join, log_softmax, measure
from edgeai.evaluation.stream import Slab, Stream
from edgeai.types import Row

if TYPE_CHECKING:
    from edgeai.evaluation.intervals import Ints

__all__ = ["Comparison", "End", "blocks_of", "compare_streams", "exact_rows", "quantized_rows", "stored_rows", "tie_of"]

END_TOLERANCE = 1e-3
"""Difference of the log-probabilities of the end token between two float32 implementations."""

FAR_NMSE = 0.5
"""What quantized weights may do to the few positions that see across a gap: in Gemma-3-270M with 7 bits per weight it is 0.14 across 32751
tokens. That positions are right is proved by the unquantized export, to five digits."""
TIED_ROUTERS = 0.02
"""The share of positions at which routers may be at a tie. Mixtral as it is initialised, hidden size 64: one of 522, with an NMSE of 7e-3,
where the others have 5e-14."""
TIED_NMSE = 1e-2
"""What such positions may add to the NMSE of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The likeliest end token after a finished answer: its log-probability in nats and its rank, 1 being the likeliest of all tokens."""

    log_probability: float
    rank: int


@dataclass(slots=True)
class Comparison:
    """What was measured on each prompt, in their order, and the end token in the reference and in the candidate."""

    prompts: Sequence[Prompt]
    measures: list[Measures] = field(default_factory=list)
    ends: list[tuple[End, End]] = field(default_factory=list)

    def of(self, *kinds: str) -> Measures:
        """Return what was measured on the prompts of KINDS."""
        return join([found for prompt, found in zip(self.prompts, self.measures, strict=True) if prompt.kind in kinds])

    def has(self, kind: str) -> bool:
        """Whether there is a prompt of KIND."""
        return any(prompt.kind == kind for prompt in self.prompts)

    def far(self) -> dict[int, Measures]:
        """Return distance → what was measured at the positions that see across the gap."""
        found = {}
        for prompt, item in zip(self.prompts, self.measures, strict=True):
            if prompt.kind == "far":
                across = slice(prompt.head + 1, None)
                found[prompt.start] = Measures(**{name: getattr(item, name)[across] for name in Measures.__slots__})
        return found

    def text(self) -> TextMeasures:
        """Return the measures on long text with their intervals."""
        import numpy as np

        found = self.of("window")
        lengths = [len(prompt.ids) for prompt in self.prompts if prompt.kind == "window"]
        blocks = blocks_of(lengths)
        loss = ~np.isnan(found.loss)
        ratio = mean_interval(found.loss[loss], blocks[loss])
        kl = mean_interval(found.kl, blocks)
        return TextMeasures(
            windows=len(lengths),
            positions=len(found.kl),
            blocks=int(blocks[-1]) + 1,
            mean_kl=Interval(value=kl.value, low=max(0.0, kl.low), high=kl.high),
            p99_kl=quantile_interval(found.kl, blocks, 0.99),
            top1=share_interval(found.same(), blocks),
            perplexity=Interval(value=math.exp(ratio.value), low=math.exp(ratio.low), high=exponential(ratio.high)),
        )

    def summary(self) -> dict[str, float | str]:
        """Return the measures on long text as plain numbers."""
        text = self.text()
        return {
            "mean_kl": text.mean_kl.value,
            "mean_kl_high": text.mean_kl.high,
            "p99_kl": text.p99_kl.value,
            "top1": text.top1.value,
            "perplexity_ratio": text.perplexity.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMeasures:
    """How far a file is from its source on long text. `perplexity` is the file's divided by the source's."""

    windows: int
    positions: int
    blocks: int
    mean_kl: Interval
    p99_kl: Interval
    top1: Interval
    perplexity: Interval


def exponential(value: float) -> float:
    """Return e to the VALUE, infinity where that is too large."""
    return math.exp(value) if value < 700 else math.inf


def blocks_of(lengths: Sequence[int]) -> Ints:
    """Return the number of the block that each position belongs to, for windows of LENGTHS; none reaches across windows.

    A block is 64 positions, fewer where there would be less than eight, and what is left at the end of a window belongs to its last one.
    """
    import numpy as np

    size = max(1, min(BLOCK, sum(lengths) // 8))
    found: list[int] = []
    first = 0
    for length in lengths:
        count = max(1, length // size)
        found += [first + min(at // size, count - 1) for at in range(length)]
        first += count
    return np.asarray(found, np.int64)


def compare_streams(
    reference: Stream, candidate: Stream, prompts: Sequence[Prompt], stops: Sequence[int]
) -> Comparison:
    """Compare the next logits of both streams, which are those of PROMPTS; STOPS are the source's end tokens.

    Raises ValueError where they are of different shapes, ChildDied and ChildFailed.
    """
    found = Comparison(prompts)
    for prompt, left, right in zip(prompts, reference.take(len(prompts)), candidate.take(len(prompts)), strict=True):
        found.measures.append(measure(left, right, prompt.ids))
        if prompt.kind == "end":
            found.ends.append((end_of(left, stops), end_of(right, stops)))
    return found


def end_of(slab: Slab, stops: Sequence[int]) -> End:
    """Return how likely an end token is after the last position of SLAB."""
    import numpy as np

    row = slab.rows(slab.positions - 1, slab.positions)[0].astype(np.float64)
    best = max(stops, key=lambda token: float(row[token]))
    return End(log_probability=float(log_softmax(row)[best]), rank=int((row > row[best]).sum()) + 1)


def exact_rows(found: Comparison, more: float = 0.0, *, experts: bool = False) -> list[Row]:
    """Return the rows about an export that must be torch's equal; MORE is the NMSE that the runtime's activations add.

    With EXPERTS a token whose router is at a tie may go to another one, which the order of additions decides: a few positions with the
    largest errors are then left out, and what they are is stated. An error in the file is at all positions.
    """

    def kept(measures: Measures) -> Measures:
        return measures.without_worst(TIED_ROUTERS) if experts else measures

    everything = found.of("text", "noise", "end", "window")
    near = kept(everything)
    rows = [at_most("F32 logits against torch: NMSE", near.nmse, EXACT_NMSE + more)]
    if experts:
        count, of = len(everything.kl) - len(near.kl), len(everything.kl)
        name = f"the same with the worst {count} of {of} positions (ties of routers)"
        rows.append(at_most(name, everything.nmse, TIED_NMSE))
    rows += [
        at_most(f"F32 logits {away} tokens apart: NMSE", kept(item).nmse, far_limit(away) + more)
        for away, item in found.far().items()
    ]
    if found.has("cached"):
        rows.append(at_most("F32 logits with the cache: NMSE", kept(found.of("cached")).nmse, EXACT_NMSE + more))
    everywhere = found.of("text", "noise", "end", "window", "cached")
    rows.append(same_choice("F32 first choice as torch", kept(everywhere), more))
    count = sum(len(prompt.ids) for prompt in found.prompts)
    rows.append(Row(name="positions compared", value=f"{count} in {len(found.prompts)} prompts"))
    for left, right in found.ends:
        apart = abs(left.log_probability - right.log_probability)
        rows.append(at_most("F32 end of an answer: difference of log p", apart, END_TOLERANCE + 10 * math.sqrt(more)))
        rows.append(Row(name="rank of the end token", value=ranks(left, right)))
    return rows


def same_choice(name: str, found: Measures, more: float) -> Row:
    """Return the row that all first choices agree; where the logits may differ by MORE in NMSE, so may what is a tie."""
    share = float(found.same(tie_of(more)).mean())
    return Row(name=name, value=share, limit="= 1", ok=share == 1)


def tie_of(more: float) -> float:
    """Return how close two logits are a tie, in standard deviations, where logits may differ by an NMSE of MORE.

    The difference of two errors is sqrt(2) of one, and among some hundred positions there are some four times as large.
    """
    return max(TIE, 6 * math.sqrt(more))


def quantized_rows(found: Comparison, limit: Limit, of: str, *, min_top1: float | None = None) -> list[Row]:
    """Return the rows about a quantized file; OF names the reference. MIN_TOP1 is the least share of equal first choices."""
    text = found.text()
    rows = [at_most(f"logits against {of}: NMSE", found.of("noise", "window").nmse, limit.nmse)]
    apart = max(limit.nmse, FAR_NMSE)
    rows += [at_most(f"logits {away} tokens apart: NMSE", item.nmse, apart) for away, item in found.far().items()]
    rows += [
        at_most("mean KL on text, nats", text.mean_kl, limit.mean_kl),
        stated("99th percentile of KL, nats", text.p99_kl),
        stated(f"first choice as {of}", text.top1)
        if min_top1 is None
        else at_least(f"first choice as {of}", text.top1, min_top1),
        stated(f"perplexity divided by {of}'s", text.perplexity),
        Row(name="text compared", value=f"{text.positions} tokens in {text.windows} windows, {text.blocks} blocks"),
    ]
    for left, right in found.ends:
        rows.append(
            Row(
                name="end of an answer",
                value=f"p {math.exp(right.log_probability):.3g}, in the source {math.exp(left.log_probability):.3g}",
            )
        )
        rows.append(Row(name="rank of the end token", value=ranks(left, right)))
    return rows


def ranks(left: End, right: End) -> str:
    """Return the ranks of an end token as text."""
    return f"{right.rank}, in the source {left.rank}"


def stored_rows(found: Comparison, base: str, limit: float, *, gated: bool = True) -> list[Row]:
    """Return the rows about a file of halves, against torch with its weights rounded to the same type; stated only unless GATED."""
    near, name = found.of("text", "window"), f"logits against torch in {base}: NMSE"
    if not gated:
        return [Row(name=name, value=near.nmse)]
    return [at_most(name, near.nmse, limit), same_choice(f"first choice as torch in {base}", near, limit)]
