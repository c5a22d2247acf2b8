"""What two sets of logits have to do with each other, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeai.evaluation.stream import Slab

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]
    Logits = npt.NDArray[np.float32]

__all__ = ["TIE", "Measures", "compare", "join", "log_softmax", "measure"]

SLAB_ITEMS = 1 << 18
"""Logits compared at once: few enough for the processor's cache, and for the memory whatever the vocabulary."""
LARGEST = 80.0
"""Differences beyond this would overflow float32: such a file is broken whatever its exact KL."""
TINY = 1e-30
TIE = 1e-4
"""Two logits closer than this part of their position's spread are the same first choice: rounding decides between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was measured at each position; every array is (positions,) float64.

    `error` is Σ(candidate - reference)² over the vocabulary and `power` Σ reference²; `kl` is KL(reference ‖ candidate) in nats; `gap`
    is by how much the reference prefers its first choice to the candidate's, in standard deviations of its logits; `loss` is the
    difference of the negative log-probabilities of the token that follows in the text, NaN where none does.
    """

    error: F64
    power: F64
    kl: F64
    gap: F64
    loss: F64

    @property
    def nmse(self) -> float:
        """Σ error / Σ power, as in llama.cpp's tests."""
        power = float(self.power.sum())
        error = float(self.error.sum())
        return error / power if power else (float("inf") if error else 0.0)  # weights of zeros give logits of zeros

    @property
    def mean_kl(self) -> float:
        """Mean over the positions, in nats."""
        return float(self.kl.mean())

    def without_worst(self, share: float) -> Measures:
        """Return the measures without the positions of the largest relative error: SHARE of them, rounded up, and never all."""
        import numpy as np

        count = min(math.ceil(share * len(self.kl)), len(self.kl) - 1)
        kept = np.sort(np.argsort(self.error / np.maximum(self.power, TINY), kind="stable")[: len(self.kl) - count])
        return Measures(**{name: getattr(self, name)[kept] for name in Measures.__slots__})

    def same(self, tie: float = TIE) -> F64:
        """Return 1 where the first choices agree and 0 where not; two that are closer than TIE are the same."""
        agree: F64 = (self.gap <= tie).astype("float64")
        return agree

    @property
    def top1(self) -> float:
        """Share of equal first choices."""
        return float(self.same().mean())


def measure(reference: Slab, candidate: Slab, ids: Sequence[int]) -> Measures:
    """Compare the logits of one prompt of token IDS, slab by slab.

    Raises ValueError when the two have other numbers of positions or another vocabulary.
    """
    if (reference.positions, reference.vocab) != (candidate.positions, candidate.vocab):
        raise ValueError(
            f"logits of shape {(reference.positions, reference.vocab)} and {(candidate.positions, candidate.vocab)}"
        )
    step = max(1, SLAB_ITEMS // reference.vocab)
    parts = []
    for first in range(0, reference.positions, step):
        last = min(first + step, reference.positions)
        follows = [*ids[first + 1 : last + 1], *([-1] * (last == reference.positions))]
        parts.append(compare(reference.rows(first, last), candidate.rows(first, last), follows))
    return join(parts)


def compare(reference: Logits, candidate: Logits, follows: Sequence[int] | None = None) -> Measures:
    """Compare two (positions, vocab) arrays; FOLLOWS is the next token of each position, -1 where there is none.

    With p the reference's probabilities and d the difference of the logits less its mean under p, KL(reference ‖ candidate) is
    log Σ p·exp(d): that loses no digits where the two are close, so float32 is enough. Raises ValueError when the shapes differ.
    """
    import numpy as np

    if reference.shape != candidate.shape:
        raise ValueError(f"logits of shape {reference.shape} and {candidate.shape} cannot be compared")
    places = np.arange(len(reference))
    best = reference.max(-1)
    p = np.exp(reference - best[:, None])
    p /= p.sum(-1, keepdims=True, dtype=np.float64).astype(p.dtype)
    d = candidate - reference
    error = np.einsum("pv,pv->p", d, d, dtype=np.float64)
    d -= np.einsum("pv,pv->p", p, d, dtype=np.float64).astype(d.dtype)[:, None]
    with np.errstate(invalid="ignore"):  # where something is not a number, so is the result, and that is below no limit
        p *= np.expm1(np.minimum(d, LARGEST))
    kl = np.log1p(np.maximum(p.sum(-1, dtype=np.float64), -0.5))
    chosen = reference[places, candidate.argmax(-1)]
    loss = np.full(len(reference), np.nan)
    if follows is not None:
        there = np.flatnonzero(np.asarray(follows) >= 0)
        loss[there] = kl[there] - d[there, np.asarray(follows)[there]]
    return Measures(
        error=error,
        power=np.einsum("pv,pv->p", reference, reference, dtype=np.float64),
        kl=kl,
        gap=((best - chosen) / (reference.std(-1) + TINY)).astype(np.float64),
        loss=loss,
    )


def join(parts: Sequence[Measures]) -> Measures:
    """Return PARTS one after the other."""
    import numpy as np

    names = ("error", "power", "kl", "gap", "loss")
    return Measures(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the log-probabilities of LOGITS along the last axis."""
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[Any] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
