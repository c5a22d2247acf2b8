"""A stand-in for libllama that loads no weights: it writes the log of a load and hands out model and context pointers."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from edgeai import native
from edgeai.native import BackendDevice, LogLine


def gpu(index: int = 0, free: int = 8 << 30) -> BackendDevice:
    return BackendDevice(name=f"CUDA{index}", description="RTX", kind="gpu", memory_free=free, memory_total=8 << 30)


CPU_DEVICE = BackendDevice(name="CPU", description="x", kind="cpu", memory_free=0, memory_total=0)


class StubLibrary:
    """What `native.library()` returns. `loading` and `opening` are the log lines of a model's and a context's creation."""

    LLAMA_SPLIT_MODE_LAYER = 1

    def __init__(self, loading: Sequence[LogLine], opening: Sequence[LogLine], *, loads: bool, opens: bool) -> None:
        self.loading, self.opening = loading, opening
        self.loads, self.opens = loads, opens
        self.log: list[LogLine] = []
        self.freed: list[str] = []
        self.model_params: Any = None
        self.devices: list[int | None] = []
        self.split: list[float] = []

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace(tensor_split=None)

    def llama_max_devices(self) -> int:
        return 16

    def llama_model_load_from_file(self, _path: bytes, params: Any) -> str | None:
        self.model_params = params
        address, size = params.devices.value or 0, ctypes.sizeof(ctypes.c_void_p)
        while (device := ctypes.c_void_p.from_address(address).value) is not None:
            self.devices.append(device)
            address += size
        self.split = [] if params.tensor_split is None else list(params.tensor_split)
        self.log += self.loading
        return "model" if self.loads else None

    def llama_init_from_model(self, _model: str, _params: Any) -> str | None:
        self.log += self.opening
        return "context" if self.opens else None

    def llama_model_free(self, model: str) -> None:
        self.freed.append(model)


def install(
    monkeypatch: pytest.MonkeyPatch,
    *,
    devices: Sequence[BackendDevice] = (gpu(), CPU_DEVICE),
    loading: Sequence[LogLine] = (),
    opening: Sequence[LogLine] = (),
    loads: bool = True,
    opens: bool = True,
) -> StubLibrary:
    """Put a StubLibrary with DEVICES in the place of the native library."""
    stub = StubLibrary(loading, opening, loads=loads, opens=opens)

    @contextlib.contextmanager
    def captured() -> Iterator[list[LogLine]]:
        stub.log = []
        yield stub.log

    def device_list(names: Sequence[str]) -> Any:
        places = {device.name: 1 + index for index, device in enumerate(devices)}
        return (ctypes.c_void_p * (len(names) + 1))(*(places[name] for name in names), None)

    monkeypatch.setattr(native, "library", lambda: stub)
    monkeypatch.setattr(native, "captured_log", captured)
    monkeypatch.setattr(native, "backend_devices", lambda: tuple(devices))
    monkeypatch.setattr(native, "device_list", device_list)
    return stub
