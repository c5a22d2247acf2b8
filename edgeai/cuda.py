"""Whether CUDA can run here; and when it cannot, why, and what mends it.

The native library is asked first and the driver's management interface (NVML) second: containers often have CUDA without NVML, slices of
a GPU (MIG) are other devices to CUDA than to NVML, and the two number GPUs differently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeai import native
from edgeai.native import BackendDevice

if TYPE_CHECKING:
    from edgeai.device import GPU, Device, NativeLibrary

__all__ = ["Trouble", "built_for", "explain_error", "trouble", "usable_devices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why CUDA cannot run, and what to do about it. `lost`: somebody has a GPU, or a library for one, and does not get it."""

    reason: str
    mend: str
    lost: bool = True


def built_for(features: str) -> tuple[int, ...] | None:
    """Return the compute capabilities, as 89 for 8.9, that FEATURES (llama_print_system_info) say the library has kernels for.

    None for a library without CUDA, () when it does not say. Source: ggml_backend_cuda_get_features, ggml-cuda.cu.
    """
    if not re.search(r"\bCUDA :", features):
        return None
    found = re.search(r"\bCUDA :.*?\bARCHS = ([\d,]+)", features)
    return tuple(int(arch) // 10 for arch in found[1].split(",") if arch) if found else ()


def usable_devices(
    devices: Iterable[BackendDevice], gpus: Sequence[GPU], archs: Sequence[int] | None
) -> tuple[BackendDevice, ...]:
    """Return the CUDA devices among DEVICES that the library has kernels for.

    libggml lists a GPU that is older than every one it was built for, and ends the process at the first kernel. A newer GPU may still run,
    from the portable code in the library. What a device is capable of is known from the GPU of its name in GPUS.
    """
    capability = {gpu.name: _capability(gpu) for gpu in gpus}
    oldest = min(archs or (0,))
    return tuple(
        device
        for device in devices
        if device.name.startswith("CUDA") and capability.get(device.description, oldest) >= oldest
    )


def _capability(gpu: GPU) -> int:
    major, _, minor = gpu.compute_capability.partition(".")
    return int(major) * 10 + int(minor or 0)


def trouble(device: Device, environment: Mapping[str, str] | None = None) -> Trouble | None:
    """Return why CUDA cannot run on DEVICE, or None when it can."""
    library, gpus = device.library, device.gpus
    if library.cuda_failure:
        return Trouble(
            reason=f"a decode on {_name(library, gpus)} fails in a self-test: {library.cuda_failure}",
            mend="update the NVIDIA driver, or build llama-cpp-python on this machine: "
            + native.cuda_install_command(),
        )
    if device.cuda_devices:
        return None
    archs = built_for(library.features)
    if archs is None and not library.gpu_offload:
        return _no_cuda_build(gpus, device.gpu_problem)
    if any(found.name.startswith("CUDA") for found in library.devices):
        have = ", ".join(f"{gpu.name} has compute capability {gpu.compute_capability}" for gpu in gpus)
        need = ", ".join(f"{arch / 10:.1f}" for arch in archs or ())
        return Trouble(reason=f"{have}, and llama-cpp-python is built for {need}", mend=native.cuda_install_command())
    return explain_error(
        library.cuda_error, gpus, device.gpu_problem, os.environ if environment is None else environment
    )


def _name(library: NativeLibrary, gpus: Sequence[GPU]) -> str:
    named = [device.description for device in library.devices if device.name.startswith("CUDA")]
    return (named or [gpu.name for gpu in gpus] or ["the GPU"])[0]


def _no_cuda_build(gpus: Sequence[GPU], gpu_problem: str | None) -> Trouble:
    if gpus:
        return Trouble(
            reason=f"llama-cpp-python is built without CUDA, and {gpus[0].name} stays unused",
            mend=f"install a CUDA build: {native.cuda_install_command()}",
        )
    reason = f": {gpu_problem}" if gpu_problem else ""
    return Trouble(
        reason=f"no usable NVIDIA GPU{reason}", mend="use --device cpu; edgeai doctor shows what is here", lost=False
    )


_RELOAD = "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm"
_ERRORS: tuple[tuple[str, str, str], ...] = (
    ("driver version is insufficient", "the NVIDIA driver{driver} is older than the CUDA version that llama-cpp-python was built with",
     "update the NVIDIA driver (CUDA 12 needs 525 or newer, CUDA 13 580), or build llama-cpp-python with an older CUDA"),
    ("busy or unavailable", "another process has the GPU for itself, or an administrator has closed it",
     "end that process (nvidia-smi lists it); nvidia-smi -q -d COMPUTE shows the compute mode"),
    ("initialization error", "the NVIDIA driver{driver} does not start CUDA, as happens after sleep or an update of the driver",
     f"{_RELOAD}, or restart the machine"),
    ("unknown error", "the NVIDIA driver{driver} fails, as happens after sleep or an update of the driver",
     f"{_RELOAD}, or restart the machine"),
    ("driver combination", "the NVIDIA driver{driver} and its CUDA library are of two versions",
     "restart the machine after an update of the driver"),
    ("no CUDA-capable device", "CUDA finds no GPU", "nvidia-smi shows what the driver sees; a container needs --gpus all"),
    ("out of memory", "the memory of the GPU is full", "end what uses it: nvidia-smi lists the processes"),
)  # fmt: skip
"""What cudaGetErrorString says → what it means → what mends it.

Codes 35, 46, 3, 999, 803, 100, 2 of cudaError_t (CUDA Runtime API, "Error handling"); least driver versions: CUDA compatibility guide.
"""


def explain_error(
    error: str | None, gpus: Sequence[GPU], gpu_problem: str | None, environment: Mapping[str, str]
) -> Trouble:
    """Return what ERROR, with which a CUDA build failed to start, means here."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    said = error or "it says no more"
    if hidden is not None and "no CUDA-capable device" in (error or "no CUDA-capable device"):
        return Trouble(
            reason=f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU", mend="unset CUDA_VISIBLE_DEVICES, or name a GPU"
        )
    driver = f" {gpus[0].driver}" if gpus else ""
    for text, meaning, mend in _ERRORS:
        if text in said:
            more = "" if gpus or not gpu_problem else f"; {gpu_problem}"
            return Trouble(reason=f"{meaning.format(driver=driver)} (CUDA: {said}{more})", mend=mend)
    return Trouble(
        reason=f"llama-cpp-python is built with CUDA and finds no GPU ({error or gpu_problem or said})",
        mend="nvidia-smi shows what the driver sees; a container needs --gpus all",
    )
