"""Encode tensors in ggml's types, one slab of rows at a time, with libggml's own kernels.

`ggml_quantize_chunk` is used and not `llama_model_quantize`, for five reasons: no unquantized file has to be on disk first, memory is a
few slabs, progress and Ctrl-C work between slabs, types can be chosen by tensor for every base type, and a failure is an exception
here instead of a file with a zeroed header (llama.cpp's function also kills the process when output == input). The bytes are the
same; a test compares them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import BrokenCheckpoint, ConvertError
from converters.families import TensorPlan
from converters.ggml_types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["encode", "encoded_slabs"]

SLAB_ITEMS = 1 << 20
"""Weights in a slab: 4 MB of float32."""
LARGEST_F16 = 65504.0
NUMBER = {item.name: number for number, item in GGML_TYPES.items()}
BLOCK = {item.name: (item.block, item.size) for item in GGML_TYPES.values()}


def encoded_slabs(tensor: TensorPlan, kind: str, threads: int = 1) -> Iterator[bytes]:
    """Yield the data of TENSOR in the type KIND, in order. The bytes do not depend on THREADS.

    Raises BrokenCheckpoint for a value that is not finite, ConvertError for one that is too large for F16.
    """
    columns = 1
    for dim in tensor.shape[1:]:
        columns *= dim
    step = max(1, SLAB_ITEMS // columns // tensor.block_rows) * tensor.block_rows
    starts = range(0, tensor.shape[0], step)
    if len(tensor.shape) == 1:  # the blocks of a vector would run across slabs, and vectors are small
        starts, step = range(1), tensor.shape[0]
    if len(starts) == 1:
        yield encode_rows(tensor, 0, tensor.shape[0], kind)
        return
    pending: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for start in starts:
            pending.append(pool.submit(encode_rows, tensor, start, min(start + step, tensor.shape[0]), kind))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_rows(tensor: TensorPlan, first: int, last: int, kind: str) -> bytes:
    """Return the rows FIRST to LAST of TENSOR in the type KIND, after checking their values."""
    import numpy as np

    rows = tensor.rows(first, last)
    name = tensor.shown_name
    if not np.isfinite(rows).all():
        raise BrokenCheckpoint(
            f"tensor {name!r} has values that are not finite numbers, in rows {first} to {last - 1}",
            hint="the training that made it went wrong, or the file is damaged",
        )
    if kind == "F16" and float(np.abs(rows).max(initial=0.0)) > LARGEST_F16:
        raise ConvertError(
            f"tensor {name!r} has values above {LARGEST_F16:.0f}, which F16 cannot hold", hint="use --quant bf16"
        )
    return encode(rows, kind)


def encode(rows: F32, kind: str) -> bytes:
    """Return ROWS, (rows, columns) float32, in the ggml type KIND; columns must be whole blocks."""
    import numpy as np

    if kind == "F32":
        return np.ascontiguousarray(rows, "<f4").tobytes()
    block, size = BLOCK[kind]
    rows = np.ascontiguousarray(rows, np.float32)
    columns = rows.shape[-1]
    assert columns % block == 0, (kind, columns)  # noqa: S101 - the quant map has made sure
    count = rows.size // columns
    data = ctypes.create_string_buffer(rows.size // block * size)
    written = libggml().ggml_quantize_chunk(NUMBER[kind], rows.ctypes.data, data, 0, count, columns, None)
    assert written == len(data), (kind, written, len(data))  # noqa: S101 - libggml says how much it wrote
    return data.raw


class InitParams(ctypes.Structure):
    """`struct ggml_init_params` in ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_lock = threading.Lock()


def libggml() -> Any:
    """Return libggml-base, loaded once."""
    with _lock:
        return load_libggml()


@cache
def load_libggml() -> Any:
    """Load libggml-base with its tables ready. Raises ConvertError where it is not there or does not load."""
    hint = f"{sys.executable} -m pip install llama-cpp-python==0.3.36"
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ConvertError("llama-cpp-python is not installed", hint=hint)
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(spec.submodule_search_locations[0]) / "lib")
    names = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}
    path = folder / names.get(sys.platform, "libggml-base.so")
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConvertError(f"{str(path)!r} does not load: {error}", hint=hint) from error
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    lib.ggml_init.restype, lib.ggml_init.argtypes = ctypes.c_void_p, (InitParams,)
    lib.ggml_free.restype, lib.ggml_free.argtypes = None, (ctypes.c_void_p,)
    lib.ggml_free(lib.ggml_init(InitParams(1024, None, True)))  # fills the tables of half-precision numbers
    return lib
