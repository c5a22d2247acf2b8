"""LoRA adapters beside a model: checked before native code reads them, scaled and switched per request."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.header import GGUFHeader, TensorInfo, read_header
from edgeai import native
from edgeai.errors import InvalidModel, UsageError

__all__ = ["AdapterSet", "Selection"]

Selection = tuple[tuple[int, float], ...]
"""(number of the adapter, scale), in order of the numbers, scales of 0 left out: equal for requests that may share a batch and a prefix."""

TEXT_KEYS = ("general.type", "general.architecture", "adapter.type")
ALORA = "adapter.alora.invocation_tokens"
A, B = ".lora_a", ".lora_b"
TABLE = "token_embd.weight"
CONVERT = "make it with edgeai convert ADAPTER --base BASE"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An adapter in memory. `number` is never used twice, so what was computed with a removed one is never taken for its successor's."""

    number: int
    pointer: Any


class AdapterSet:
    """The adapters of one loaded model, used by the thread that owns its context. They are freed with the model."""

    def __init__(self, lib: Any, model: Any, base: Path) -> None:
        self._lib, self._model, self._base = lib, model, base
        self._loaded: dict[str, _Loaded] = {}
        self._count = 0
        self._selected: Selection = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._loaded)

    def load(self, name: str, path: Path) -> None:
        """Load the adapter file PATH as NAME.

        Raises InvalidModel for a file that is damaged or no adapter, UsageError for one of another base and for a name that is taken.
        """
        if not name or name in self._loaded:
            raise UsageError(
                f"the adapter name {name!r} is empty or taken", hint=f"taken: {', '.join(self.names) or 'none'}"
            )
        check_adapter(read_header(path), read_header(self._base))
        with native.captured_log() as log:
            pointer = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not pointer:
            said = "; ".join(line.text.strip() for line in log if line.level == native.ERROR) or "it says no more"
            raise InvalidModel(f"the native library does not take the adapter {str(path)!r}: {said}", hint=CONVERT)
        self._count += 1
        self._loaded[name] = _Loaded(self._count, pointer)

    def remove(self, name: str) -> None:
        """Forget NAME and free its memory; no request with it may be running. Raises UsageError for a name that is not there."""
        self._find(name)
        gone = self._loaded.pop(name)
        self._selected = (*self._selected, (-1, 0.0))  # whatever it is, the next select puts adapters on anew
        self._lib.llama_adapter_lora_free(gone.pointer)

    def selection(self, wanted: Iterable[tuple[str, float]]) -> Selection:
        """Return what WANTED, (name, scale) pairs, means. Raises UsageError for a name that is unknown or there twice."""
        found: dict[int, float] = {}
        for name, scale in wanted:
            number = self._find(name).number
            if number in found:
                raise UsageError(f"the adapter {name!r} is there twice", hint="give each adapter one scale")
            found[number] = float(scale)
        return tuple(sorted((number, scale) for number, scale in found.items() if scale))

    def _find(self, name: str) -> _Loaded:
        if name not in self._loaded:
            raise UsageError(f"no adapter {name!r} is loaded", hint=f"loaded: {', '.join(self.names) or 'none'}")
        return self._loaded[name]

    def select(self, context: Any, selection: Selection) -> None:
        """Have CONTEXT compute with SELECTION from now on. libllama plans its memory anew, so only a change is passed on.

        Raises UsageError where an adapter has been removed since.
        """
        if selection == self._selected:
            return
        by_number = {item.number: item.pointer for item in self._loaded.values()}
        if gone := [number for number, _ in selection if number not in by_number]:
            raise UsageError(f"adapter number {gone[0]} was removed while a request waited for it", hint="ask again")
        kind, count = self._lib.llama_adapter_lora_p_ctypes, len(selection)
        pointers = (kind * count)(*(ctypes.cast(by_number[number], kind) for number, _ in selection))
        scales = (ctypes.c_float * count)(*(scale for _, scale in selection))
        if self._lib.llama_set_adapters_lora(context, pointers, count, scales) != 0:
            raise InvalidModel("the native library does not put the adapters on the model", hint="edgeai doctor")
        self._selected = selection


# ---- the file, before native code sees it


def check_adapter(adapter: GGUFHeader, base: GGUFHeader) -> None:
    """Raise unless ADAPTER is a LoRA adapter for BASE, whole, every matrix of the right size.

    Where libllama's own checks (llama-adapter.cpp) end in an abort or look away, this one says what is wrong.
    """
    where = repr(str(adapter.path))
    _check_keys(adapter, base, where)
    pairs = _pairs(adapter, where)
    known = {tensor.name: tensor for tensor in base.tensors}
    for name, (a, b) in pairs.items():
        tensor = known.get(name)
        if tensor is None:
            raise UsageError(
                f"the adapter {where} changes {name!r}, which {base.path.name!r} does not have", hint=_OTHER_BASE
            )
        if name == TABLE and "output.weight" not in known:
            raise UsageError(
                f"the adapter {where} changes {name!r}, which is the output matrix of {base.path.name!r} too",
                hint="merge it into the base: edgeai convert … --merge",
            )
        if not _fits(tensor, a, b):
            raise UsageError(
                f"the adapter {where} has {list(a.shape)} and {list(b.shape)} for {name!r}, which is {list(tensor.shape)}",
                hint=_OTHER_BASE,
            )
    _check_numbers(adapter, where)


_OTHER_BASE = "the adapter was made for another base model"


def _check_keys(adapter: GGUFHeader, base: GGUFHeader, where: str) -> None:
    said: Mapping[str, Any] = {key: adapter.kv.get(key) for key in TEXT_KEYS}
    if said["general.type"] != "adapter" or said["adapter.type"] != "lora":
        raise InvalidModel(f"{where} is no LoRA adapter: its type is {said['general.type']!r}", hint=CONVERT)
    if said["general.architecture"] != base.arch:
        raise UsageError(
            f"the adapter {where} is for the architecture {said['general.architecture']!r}, and {base.path.name!r} is {base.arch!r}",
            hint=_OTHER_BASE,
        )
    alpha = adapter.kv.get("adapter.lora.alpha")
    if adapter.types.get("adapter.lora.alpha") != "f32" or not isinstance(alpha, float) or not abs(alpha) < 1e9:
        raise InvalidModel(f"{where} has adapter.lora.alpha {alpha!r}, and a finite f32 is needed", hint=CONVERT)
    if ALORA in adapter.kv:
        raise UsageError(
            f"{where} is an aLoRA adapter, which begins in the middle of a prompt", hint="use a plain LoRA"
        )


def _pairs(adapter: GGUFHeader, where: str) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Return the two matrices by the name of the base's tensor."""
    found = {tensor.name: tensor for tensor in adapter.tensors}
    other = sorted(name for name in found if not name.endswith((A, B)))
    if other or not found:
        what = f"the tensor {other[0]!r}, which is no part of a LoRA" if other else "no tensors"
        raise InvalidModel(f"the adapter {where} has {what}", hint=CONVERT)
    stems = sorted({name[: -len(A)] for name in found})
    for stem in stems:
        if missing := [stem + part for part in (A, B) if stem + part not in found]:
            raise InvalidModel(f"the adapter {where} lacks the tensor {missing[0]!r}", hint=CONVERT)
    return {stem: (found[stem + A], found[stem + B]) for stem in stems}


def _fits(base: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether A and B make a matrix like BASE; the table of tokens has them the other way round (llama-graph.cpp, build_inp_embd)."""
    if (
        not len(base.shape) == len(a.shape) == len(b.shape) >= 2
        or base.shape[2:] != a.shape[2:]
        or a.shape[2:] != b.shape[2:]
    ):
        return False
    if base.name == TABLE:
        return (b.shape[1], a.shape[1], b.shape[0]) == (base.shape[0], base.shape[1], a.shape[0])
    return (a.shape[0], b.shape[1], a.shape[1]) == (base.shape[0], base.shape[1], b.shape[0])


def _check_numbers(adapter: GGUFHeader, where: str) -> None:
    import numpy as np

    from converters.imports.source import stored_tensors

    for name, tensor in stored_tensors(adapter).items():
        if not np.isfinite(tensor.rows(0, tensor.shape[0])).all():
            raise InvalidModel(f"the adapter {where} has a number that is not finite in {name!r}", hint=CONVERT)
