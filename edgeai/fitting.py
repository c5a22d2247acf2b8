"""The first room that fits on this machine, with its layers on GPUs as far as they go; or what is short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeai.device import Device
from edgeai.memory import Estimate, Settings, Split, cpu_features, estimate, flash_possible
from edgeai.offload import Budget, offload
from edgeai.placement import CPU
from edgeai.room import Room
from edgeai.shape import ModelShape

__all__ = ["Placed", "Shortage", "budget_of", "place"]

GPU_RESERVE = 256 << 20
"""Bytes of each GPU that are left alone, or a 25th of what is free if that is more: kernels, cuBLAS, and what the screen needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why nothing fits: what the least room needs where, and what is free there."""

    room: Room
    place: str
    needs: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A room that fits, where its layers go, and what it takes; `best` is the room that would have been chosen with more memory."""

    room: Room
    best: Room
    split: Split
    estimate: Estimate


def place(
    shape: ModelShape, wanted: Sequence[Room], device: Device, budget: Budget, *, gpu_layers: int | None = None
) -> Placed | Shortage:
    """Return the first of WANTED that fits, with GPU_LAYERS on the GPUs of BUDGET, or as many as fit.

    With GPUs, rooms with the best context are first tried for all layers there; a smaller context does not buy more of them.
    """
    best = next(room for room in wanted if not room.comfort)
    if budget.gpus and gpu_layers is None:
        for room in wanted:
            if room.context == best.context and (placed := _try(shape, room, best, device, budget, whole=True)):
                return placed
    for room in wanted:
        if placed := _try(shape, room, best, device, budget, exactly=gpu_layers):
            return placed
    return _shortage(shape, wanted[-1], device, budget, gpu_layers or 1)


def _try(
    shape: ModelShape, room: Room, best: Room, device: Device, budget: Budget, *, whole: bool = False, exactly: int | None = None
) -> Placed | None:  # fmt: skip
    settings = _settings(shape, room, device, budget)
    split: Split = ()
    found = estimate(shape, settings)
    if budget.gpus:
        offloaded = offload(shape, settings, budget, exactly=len(shape.layers) + 1 if whole else exactly)
        if offloaded is None:
            return None
        split, found = offloaded.split, offloaded.estimate
    if budget.ram_short(found) > 0 or (room.comfort and not _plentiful(found, budget, room.comfort)):
        return None
    return Placed(room=room, best=best, split=split, estimate=found)


def _plentiful(found: Estimate, budget: Budget, part: float) -> bool:
    """Whether the KV cache takes at most PART of every device, so that it need not be shared more tightly."""
    room = {CPU: budget.ram, **budget.gpus}
    return all(share.kv_bytes <= room[share.device] * part for share in found.placement.shares)


def _settings(shape: ModelShape, room: Room, device: Device, budget: Budget) -> Settings:
    features = cpu_features(device.library.features) if device.library.verdict.extra_bufts else frozenset[str]()
    return room.settings(flash=flash_possible(shape, cuda=bool(budget.gpus)), features=features)


def _shortage(shape: ModelShape, room: Room, device: Device, budget: Budget, layers: int) -> Shortage:
    """Say what is short for the least ROOM: the memory of the GPUs for LAYERS, else main memory."""
    settings = _settings(shape, room, device, budget)
    if budget.gpus:
        name = max(budget.gpus, key=lambda name: budget.gpus[name])
        count = min(layers, len(shape.layers) + 1)
        found = estimate(shape, settings, [(name, count)])
        if offload(shape, settings, budget, exactly=count) is None:
            needs = budget.on(name, found.gpu_bytes)
            return Shortage(room=room, place=name, needs=needs, free=sum(budget.gpus.values()))
    else:
        found = estimate(shape, settings)
    return Shortage(room=room, place=CPU, needs=budget.on(CPU, found.needed_ram_bytes), free=budget.ram)


def budget_of(
    device: Device, correction: Mapping[str, float], beside: int, most: Mapping[str, int], *, gpu: bool
) -> Budget:
    """Return what may be taken of DEVICE: GPUs with GPU only, main memory less BESIDE bytes, and no more of a device than MOST says."""
    gpus = {
        found.name: max(0, found.memory_free - max(GPU_RESERVE, found.memory_free // 25))
        for found in device.cuda_devices
    }
    kept = {name: min(free, most.get(name, free)) for name, free in gpus.items()} if gpu else {}
    ram = device.memory.available - beside
    return Budget(ram=max(0, min(ram, most.get(CPU, ram))), gpus=kept, correction=correction, beside=beside)
