"""Which layers go on which GPU: the last ones of the model, as many as fit, the first GPU filled first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeai.memory import Estimate, Settings, Split, estimate
from edgeai.shape import ModelShape

__all__ = ["Budget", "Offload", "offload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be taken, in bytes: of main memory, and of each GPU (libggml's name → bytes), in the order in which they are filled.

    `correction`: device → what an earlier measurement of this model there says that predictions must be multiplied with.
    `beside`: bytes of main memory for what is loaded with the model; `ram` is without them.
    """

    ram: int
    gpus: Mapping[str, int]
    correction: Mapping[str, float]
    beside: int = 0

    def on(self, device: str, predicted: int) -> int:
        """Return PREDICTED bytes of DEVICE, corrected."""
        return round(predicted * self.correction.get(device, 1.0))

    def ram_short(self, found: Estimate) -> int:
        """Return by how many bytes FOUND is too much for main memory; negative when it fits."""
        return self.on("CPU", found.needed_ram_bytes) - self.ram

    def gpu_short(self, found: Estimate) -> int:
        """Return by how many bytes FOUND is too much for the GPU that lacks most; negative when it fits on all."""
        over = [self.on(share.device, share.total_bytes) - self.gpus[share.device] for share in found.placement.gpus]
        return max(over, default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """A split that fits on the GPUs, and what it takes."""

    split: Split
    estimate: Estimate

    @property
    def layers(self) -> int:
        """How many layers are on GPUs, the output layer counted."""
        return sum(count for _, count in self.split)


def offload(shape: ModelShape, settings: Settings, budget: Budget, *, exactly: int | None = None) -> Offload | None:
    """Return the most layers that fit on the GPUs of BUDGET, or EXACTLY so many; None where that does not fit, or no layer does.

    A single GPU that can hold all of them is preferred to several: nothing then travels between them.
    """
    whole = len(shape.layers) + 1
    low, high = (0, whole) if exactly is None else (min(exactly, whole) - 1, min(exactly, whole))
    best: list[tuple[str, int]] | None = None
    while low < high:
        middle = (low + high + 1) // 2
        split = _fill(shape, settings, budget, list(budget.gpus), middle)
        if split is None:
            high = middle - 1
        else:
            low, best = middle, split
    if best is None:
        return None
    alone = (_fill(shape, settings, budget, [name], low) for name in budget.gpus)
    split = next((found for found in alone if found is not None), best)
    return Offload(split=tuple(split), estimate=estimate(shape, settings, split))


def _fill(
    shape: ModelShape, settings: Settings, budget: Budget, names: Sequence[str], count: int
) -> list[tuple[str, int]] | None:
    """Return a split of COUNT layers over NAMES in order, each as full as it gets; None where they are too small together."""
    split: list[tuple[str, int]] = []
    left = count
    for name in names:
        fitting = _most(shape, settings, budget, split, name, left)
        if fitting:
            split.append((name, fitting))
            left -= fitting
        if not left:
            return split
    return None


def _most(shape: ModelShape, settings: Settings, budget: Budget, split: Split, name: str, left: int) -> int:
    """Return how many of the LEFT layers that follow those in SPLIT fit on the GPU NAME: a bisection, for more layers never take less."""

    def fits(count: int) -> bool:
        behind = (
            left - count
        )  # layers for the GPUs after this one: they must be counted, or these would be the last of the model
        tried = [*split, (name, count), *([("later", behind)] if behind else [])]
        found = estimate(shape, settings, tried)
        share = next(share for share in found.placement.shares if share.device == name)
        return budget.on(name, share.total_bytes) <= budget.gpus[name]

    low, high = 0, left
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
