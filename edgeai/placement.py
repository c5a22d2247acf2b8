"""Where a loaded model is: which device holds which layers, and how many bytes of weights, KV cache and compute buffers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["CPU", "Placement", "Share"]

CPU = "CPU"
"""The name of the main memory among the devices, as libggml calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one device has of a model. Bytes are of buffers that were allocated.

    `device` is libggml's name: "CPU", "CUDA0", … `layers` counts the output layer, as llama.cpp does. `mapped_bytes` are weights that
    stay in the file and come into memory page by page; the system may drop them again, and `weights_bytes` does not count them.
    """

    device: str
    layers: int = 0
    weights_bytes: int = 0
    mapped_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What the device gives: weights, mapped or not, KV cache and compute buffers."""
        return self.weights_bytes + self.mapped_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The shares of all devices, GPUs before the CPU. The same object for what was predicted and for what was read back after loading."""

    shares: tuple[Share, ...] = field(default_factory=tuple)

    @property
    def gpus(self) -> tuple[Share, ...]:
        """The shares of devices that have memory of their own."""
        return tuple(share for share in self.shares if share.device != CPU)

    @property
    def cpu(self) -> Share:
        """The share in main memory."""
        return next((share for share in self.shares if share.device == CPU), Share(device=CPU))

    @property
    def gpu_layers(self) -> int:
        """How many layers compute on a GPU, the output layer included."""
        return sum(share.layers for share in self.gpus)

    @property
    def layers(self) -> int:
        """How many layers there are, the output layer included."""
        return sum(share.layers for share in self.shares)

    @property
    def backend(self) -> Literal["cpu", "cuda", "gpu"]:
        """What computes: `cuda` when an NVIDIA GPU has layers, `gpu` for one of another kind, otherwise `cpu`."""
        names = [share.device for share in self.gpus if share.layers]
        if not names:
            return "cpu"
        return "cuda" if any(name.startswith("CUDA") for name in names) else "gpu"

    @property
    def device(self) -> str:
        """The devices in words: `CPU`, `CUDA0`, `CUDA0 + CPU (12 of 31 layers)`."""
        named = [share.device for share in self.gpus if share.layers]
        if not named:
            return CPU
        if self.gpu_layers == self.layers:
            return " + ".join(named)
        return f"{' + '.join([*named, CPU])} ({self.gpu_layers} of {self.layers} layers)"

    def plus(self, other: Placement) -> Placement:
        """Return both together: a second context, or a draft model beside its target."""
        return Placement(shares=merged([*self.shares, *other.shares]))

    def to_dict(self) -> dict[str, Any]:
        """Return the placement as JSON-ready values."""
        return {
            "backend": self.backend,
            "shares": [{**asdict(share), "total_bytes": share.total_bytes} for share in self.shares],
        }


def merged(shares: Iterable[Share]) -> tuple[Share, ...]:
    """Return one share for each device, GPUs in the order of their first share, the CPU last."""
    found: dict[str, dict[str, int]] = {}
    for share in shares:
        sums = found.setdefault(share.device, {})
        for name, value in asdict(share).items():
            if name != "device":
                sums[name] = sums.get(name, 0) + value
    whole = [Share(device=device, **sums) for device, sums in found.items()]
    return tuple(sorted(whole, key=lambda share: share.device == CPU))
