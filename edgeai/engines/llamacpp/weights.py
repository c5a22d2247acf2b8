"""The weights of a model: loaded on the devices of the plan, and read back where they and the context's buffers really are.

What runs where is never taken from the plan, nor from the library's line "offloaded N/M layers to GPU", which repeats what was asked for
even when there is no GPU (llama.cpp, llama-model.cpp, load_tensors). It is read from the buffers that were allocated and from the device
that each layer was given to.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from converters.header import TensorInfo, read_header
from edgeai import native
from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.failures import context_error, load_error
from edgeai.errors import DeviceUnavailable
from edgeai.native import LogLine
from edgeai.placement import CPU, Placement, Share, merged
from edgeai.plan import Plan
from edgeai.types import Notice

__all__ = ["Weights", "read_placement"]


class Weights:
    """Owns a llama_model. `placement` says where it is; opening a context adds the context's buffers to it.

    `notices` tell what is less than planned: layers that no GPU took, weights or operations that stay on the CPU.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        """Load ARTIFACT as PLAN says. Raises DeviceUnavailable, DoesNotFit, InvalidModel."""
        self.lib = native.library()
        self._artifact, self._plan = artifact, plan
        self.notices: tuple[Notice, ...] = ()
        with native.captured_log() as log:
            self.model = _load(self.lib, artifact, plan)
        if not self.model:
            raise load_error(artifact, log)
        self.placement = read_placement(log)
        try:
            if plan.device == "cuda":
                self._check_offload()
        except BaseException:
            self.free()
            raise

    def _check_offload(self) -> None:
        """Hold what the GPUs got against the plan."""
        got, wanted = self.placement.gpu_layers, min(self._plan.gpu_layers, self.placement.layers)
        if wanted and self.placement.backend != "cuda":
            raise DeviceUnavailable(
                f"{wanted} layers were planned for CUDA and the native library put none there", hint="edgeai doctor"
            )
        if got < wanted:
            self._note("fewer-gpu-layers", f"{got} of the {wanted} layers that were planned for the GPU are there")
        missing = _missing_bytes(self._artifact, self.placement)
        if missing:
            self._note(
                "weights-on-cpu",
                f"{missing / 1e6:.0f} MB of the layers on the GPU stay in main memory: CUDA has no kernel for their type",
            )

    def _note(self, code: str, message: str) -> None:
        self.notices = (*self.notices, Notice(code=code, message=message))

    def open_context(self, params: Any) -> Any:
        """Return a new llama_context with PARAMS; its buffers are then part of `placement`.

        Raises DoesNotFit when a buffer cannot be allocated, UsageError for a KV type this model cannot have, EngineCrashed otherwise.
        """
        if not self.placement.gpus:  # on a build with a GPU backend both mean work for it
            params.offload_kqv = params.op_offload = False
        with native.captured_log() as log:
            context = self.lib.llama_init_from_model(self.model, params)
        if not context:
            raise context_error(self._artifact, self._plan, log)
        self.placement = self.placement.plus(read_placement(log))
        if self.placement.gpus:
            for what in sorted({found[1] for line in log if (found := _TURNED_OFF.search(line.text))}):
                message = f"{what} is off: the GPU has no kernel of it for this model, slower ones do its work"
                self._note("kernel-missing", message)
        self._check_splits(log)
        return context

    def _check_splits(self, log: Iterable[LogLine]) -> None:
        """Say when tokens go back and forth between the GPUs and the CPU although every layer is on a GPU."""
        placement = self.placement
        found = [match for line in log if (match := _SPLITS.search(line.text))]
        if not found or placement.gpu_layers < placement.layers:
            return
        splits = int(found[-1][2] or found[-1][1])
        if splits > len(placement.gpus) + SPARE_SPLITS:
            self._note(
                "operation-on-cpu",
                f"each token changes {splits - 1} times between GPU and CPU: the GPU has no kernel for an operation of this model, or for "
                f"attention with a KV cache of type {self._plan.kv_type}",
            )

    def free(self) -> None:
        """Free the model; safe to call twice. Its contexts must be gone."""
        if self.model:
            self.lib.llama_model_free(self.model)
            self.model = None


def _load(lib: Any, artifact: Artifact, plan: Plan) -> Any:
    params = lib.llama_model_default_params()
    params.use_extra_bufts = plan.extra_bufts
    # Without a list the library takes every GPU it finds, even for no layers: pinned buffers, a CUDA context, large matrices sent over.
    names = _gpu_names(plan)
    devices = native.device_list(names)
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.n_gpu_layers = plan.gpu_layers if names else 0
    params.split_mode = lib.LLAMA_SPLIT_MODE_LAYER
    if plan.tensor_split and names:
        split = (ctypes.c_float * max(lib.llama_max_devices(), len(plan.tensor_split)))(*plan.tensor_split)
        params.tensor_split = split
    return lib.llama_model_load_from_file(os.fsencode(artifact.path), params)


def _gpu_names(plan: Plan) -> Sequence[str]:
    """Return the GPUs that PLAN gives layers to. Raises DeviceUnavailable when it plans CUDA and there is no such device."""
    if plan.device != "cuda" or plan.gpu_layers == 0:
        return ()
    names = plan.devices or tuple(device.name for device in native.backend_devices() if device.name.startswith("CUDA"))
    if not names:
        raise DeviceUnavailable("the model was planned for CUDA and no CUDA device is there", hint="edgeai doctor")
    return names


# ---- read back


MIB = 1 << 20
_SIZE = r"(\S+) +{} buffer size = +([\d.]+) MiB"
_LAYER = re.compile(r"load_tensors: layer +\d+ assigned to device ([^,\s]+)")
_BUFFERS = (
    (re.compile(_SIZE.format("model")), "weights_bytes"),
    (re.compile(_SIZE.format("(?:KV|RS|DSV4 .*state)")), "kv_bytes"),
    (re.compile(_SIZE.format("(?:output|compute)")), "compute_bytes"),
)
"""Lines of llama.cpp's log (llama-model.cpp, llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-context.cpp) → fields of Share.

The same figures are behind `llama_get_memory_breakdown`, which has a C++ interface only (llama-ext.h).
"""
_SPLITS = re.compile(r"graph.*: nodes = .*, splits = (\d+)(?: / (\d+))?,")
"""Parts of the graph that run on one device without a pause, for a prompt and for a token where they differ (llama-context.cpp)."""
SPARE_SPLITS = 3
"""A token's graph has a part for each GPU and one on the CPU, which looks up the embedding; a few more cost little."""
_TURNED_OFF = re.compile(r": (.+) not supported, set to disabled")


def read_placement(log: Iterable[LogLine]) -> Placement:
    """Return where the buffers are that LOG, of a model's or a context's creation, says were allocated; ±5 kB each."""
    shares = []
    for line in log:
        if found := _LAYER.search(line.text):
            shares.append(Share(device=found[1], layers=1))
        for pattern, name in _BUFFERS:
            if found := pattern.search(line.text):
                shares.append(_share(found[1], name, round(float(found[2]) * MIB)))
    return Placement(shares=merged(shares))


def _share(buffer: str, field: str, size: int) -> Share:
    """Return the share that a buffer called BUFFER is.

    Its name is the device's, maybe with more: CUDA0 and CUDA0_Split are of CUDA0; CPU, CPU_Mapped, CPU_REPACK and pinned memory (CUDA_Host)
    are main memory.
    """
    device, _, more = buffer.partition("_")
    if more == "Host" or device == "CPU":
        device = CPU
    if field == "weights_bytes" and more == "Mapped":
        field = "mapped_bytes"
    return Share(device=device, **{field: size})


def _missing_bytes(artifact: Artifact, placement: Placement) -> int:
    """Return how many bytes of the layers that were given to GPUs are not there; 0 for less than 2 % of them."""
    expected = _bytes_of_last_layers(read_header(artifact.path).tensors, placement.gpu_layers)
    missing = expected - sum(share.weights_bytes + share.mapped_bytes for share in placement.gpus)
    return missing if missing > expected * 0.02 + MIB else 0


def _bytes_of_last_layers(tensors: Sequence[TensorInfo], count: int) -> int:
    """Return the bytes of the output layer and the COUNT - 1 layers before it: those are offloaded first."""
    layers = [int(found[1]) for tensor in tensors if (found := re.match(r"blk\.(\d+)\.", tensor.name))]
    first = max(layers, default=-1) + 2 - count
    return sum(
        tensor.nbytes
        for tensor in tensors
        if tensor.name.startswith("output.")
        or ((found := re.match(r"blk\.(\d+)\.", tensor.name)) and int(found[1]) >= first)
    )
