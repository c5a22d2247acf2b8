"""Decode tensors from ggml's types to float32, with libggml's own kernels: exact for every type, and what the runtime would read."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

from converters.errors import UnsupportedModel
from converters.quantize import BLOCK, NUMBER, libggml

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["decodable", "decode"]

WHOLE = ("F32", "F64")
"""Types that are numbers by themselves, and that libggml has no kernel for."""


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def kernel(kind: str) -> Any:
    """Return libggml's function that turns KIND into float32: (data, result, count of weights); None where there is none."""
    lib = libggml()
    lib.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    traits = lib.ggml_get_type_traits(NUMBER[kind]).contents
    assert (traits.blck_size, traits.type_size) == BLOCK[kind], kind  # noqa: S101 - else the structure is another one
    if not traits.to_float:
        return None
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)


def decodable(kind: str) -> bool:
    """Whether KIND holds weights that can be decoded; whole numbers and formats for activations cannot."""
    return kind in WHOLE or kernel(kind) is not None


def decode(data: bytes | memoryview, kind: str, columns: int) -> F32:
    """Return DATA of the ggml type KIND as (rows, COLUMNS) float32; COLUMNS must be whole blocks. Raises UnsupportedModel."""
    import numpy as np

    if kind in WHOLE:
        return np.frombuffer(data, "<f4" if kind == "F32" else "<f8").astype(np.float32).reshape(-1, columns)
    run = kernel(kind)
    if run is None:
        raise UnsupportedModel(
            f"the type {kind} cannot be turned into numbers", hint="convert the full-precision model it was made from"
        )
    block, size = BLOCK[kind]
    result = np.empty((len(data) // size * block // columns, columns), np.float32)
    run(np.frombuffer(data, np.uint8).ctypes.data, result.ctypes.data, result.size)
    return result
