"""Several files of one model compared with torch on the same text, one after the other, by one torch process that waits for the next.

The text is not the one that types were chosen on. torch begins while the first file is being written, and its logits stay on the disk
for the others, as long as there is not too much of them; then it runs again for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.families import ModelPlan
from edgeai.device import cpu_facts
from edgeai.evaluation import corpus
from edgeai.evaluation.embedding import EmbeddingProof
from edgeai.evaluation.intervals import Interval
from edgeai.evaluation.passport import Proof
from edgeai.evaluation.prompts import Prompt
from edgeai.evaluation.stream import Recorded, Stream

__all__ = ["EmbeddingHeldOut", "HeldOut", "Measured", "held_out_bytes", "held_out_class", "held_out_tokens"]

MOST_TOKENS = 4096
WORK = 1.2e12
"""Parameters times tokens."""
RECORDED_BYTES = 2 << 30
"""Of torch's logits on the disk, which those of the bundled text never need more of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How far one file is from its source: `quality` is the mean KL in nats, or 1 - the mean cosine of an embedding model's vectors; `top1`
    the share of positions with the same first choice, `p999` the KL that one of a thousand positions exceeds."""

    quality: Interval
    top1: Interval | None = None
    p999: float | None = None


def held_out_tokens(parameters: int, vocabulary: int) -> int:
    """Return how many tokens of the bundled text files of a model are compared on."""
    return max(corpus.FEWEST_TOKENS, min(MOST_TOKENS, int(WORK / parameters), RECORDED_BYTES // (4 * vocabulary)))


def held_out_bytes(plan: ModelPlan) -> int:
    """Return how many bytes torch's logits of the held-out text take on the disk, at most."""
    if plan.pooling is not None:
        return 0
    most = max(held_out_tokens(plan.parameters, plan.vocab_size), corpus.GIVEN_TOKENS)
    return min(RECORDED_BYTES, 4 * plan.vocab_size * most)


@dataclass(slots=True)
class HeldOut(Proof):
    """The comparison of up to `files` files of a language model."""

    files: int = 8
    _windows: list[Prompt] = field(default_factory=list, init=False)
    _recorded: Recorded | None = field(default=None, init=False)

    def _choose(self) -> None:
        found = corpus.windows(self.plan, self.vocabulary, self.text, self.tokens)
        self._windows = [Prompt(kind="window", ids=ids) for ids in found]
        self._loose = self._windows * (1 if self._records() else self.files)

    def _records(self) -> bool:
        """Whether torch's logits are few enough to stay."""
        return 4 * self.plan.vocab_size * sum(len(prompt.ids) for prompt in self._windows) <= RECORDED_BYTES

    def _ahead(self) -> int:
        return RECORDED_BYTES if self._records() else Proof._ahead(self)

    def _threads(self) -> int:
        alone = self._recorded is not None and self._recorded.complete
        return cpu_facts().threads if alone else Proof._threads(self)

    def _request(self) -> dict[str, Any]:
        return {**Proof._request(self), "continue": [], "conversations": []}

    def measure(self, path: Path) -> Measured:
        """Run the file PATH and compare it. Raises ProofFailed where it does not run."""
        import numpy as np

        assert self._torch is not None  # noqa: S101 - the block has been entered, and torch is there
        self._facts()
        reference: Stream = self._torch
        if self._records():
            self._recorded = self._recorded or Recorded(stream=self._torch, folder=self.place("reference"))
            reference = self._recorded
        run = self._run(path, self._windows)
        found = self._compare(reference, run.stream, self._windows)
        text = found.text()
        self._open.pop().close()
        return Measured(quality=text.mean_kl, top1=text.top1, p999=float(np.quantile(found.of("window").kl, 0.999)))


@dataclass(slots=True)
class EmbeddingHeldOut(EmbeddingProof):
    """The comparison of files of an embedding model."""

    files: int = 8

    def measure(self, path: Path) -> Measured:
        """Run the file PATH and compare its vectors of texts."""
        if self._reference is None:
            self._facts()
            assert self._torch is not None  # noqa: S101 - the block has been entered, and torch is there
            self._reference = self._vectors(self._torch.folder)
        found = self._reference.mean_cosine(self._embed(path)[1])
        self._open.pop().close()
        return Measured(quality=Interval(value=1 - found.value, low=max(0.0, 1 - found.high), high=1 - found.low))


def held_out_class(pooling: str | None) -> type[HeldOut] | type[EmbeddingHeldOut]:
    """Return the class of the comparison for a model with this POOLING; None is a language model."""
    return HeldOut if pooling is None else EmbeddingHeldOut
