"""Where the training runs, in which precision, and why."""

from __future__ import annotations

from dataclasses import dataclass

import pynvml
import torch

from edgeai.device import cpu_facts
from edgeai.errors import DeviceUnavailable, UsageError
from edgeai.types import Notice

__all__ = ["Accelerator", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The device of a run. `bf16`: matrix products in bfloat16; weights and optimiser are fp32 either way."""

    device: str
    name: str
    bf16: bool = False
    threads: int = 0
    notices: tuple[Notice, ...] = ()

    def __str__(self) -> str:
        if self.device == "cpu":
            return f"CPU {self.threads} threads fp32" if self.threads != 1 else "CPU 1 thread fp32"
        return f"CUDA {self.name} {'bf16' if self.bf16 else 'fp32'}"


def choose(wanted: str) -> Accelerator:
    """Return the device for WANTED: `cpu`, `cuda` (or DeviceUnavailable), or `auto`.

    `auto` falls back to the CPU, with a notice only where there is an NVIDIA GPU that it then leaves idle.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {wanted!r} is not possible", hint="device must be one of: auto, cpu, cuda")
    reason = _why_no_cuda() if wanted != "cpu" else None
    if wanted == "cuda" and reason:
        raise DeviceUnavailable(f"'cuda' cannot run here: {reason}", hint="use --device cpu")
    if wanted == "cpu" or reason:
        gpu = _nvidia_gpu() if wanted == "auto" else None
        notices = (
            (Notice(code="cpu_fallback", message=f"training on the CPU although there is a {gpu}: {reason}"),)
            if gpu
            else ()
        )
        return Accelerator(device="cpu", name="CPU", threads=_cores(), notices=notices)
    # bfloat16 has the exponent range of fp32, so it needs no loss scaling; without it fp32 is right and fp16 is not.
    return Accelerator(device="cuda", name=torch.cuda.get_device_name(), bf16=torch.cuda.is_bf16_supported())


def _why_no_cuda() -> str | None:
    """Return why torch cannot use CUDA, or None when it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU or driver"
    return None


def _nvidia_gpu() -> str | None:
    """Return the name of the first NVIDIA GPU that the driver knows, whatever torch can do with it."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            return None
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return str(name)


def _cores() -> int:
    """Return the number of cores to compute on: what affinity and cgroup leave this process."""
    return cpu_facts().threads
