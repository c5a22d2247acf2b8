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
from converters.feedback import one_thread_each
from converters.ggml_types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from converters.feedback import Feedback

    F32 = npt.NDArray[np.float32]

__all__ = ["encode", "encode_with_feedback", "encoded_slabs"]

SLAB_ITEMS = 1 << 20
"""Weights in a slab: 4 MB of float32."""
FED_ITEMS = 1 << 18
"""The same where blocks of columns come one after the other: then slabs of rows are what threads share."""
LARGEST_F16 = 65504.0
MOST_CHANGE = 0.4
"""How much a row of a block may be changed to make up for errors before it, as a part of its length."""
NUMBER = {item.name: number for number, item in GGML_TYPES.items()}
BLOCK = {item.name: (item.block, item.size) for item in GGML_TYPES.values()}


def encoded_slabs(
    tensor: TensorPlan, kind: str, threads: int = 1, importance: F32 | None = None, feedback: Feedback | None = None
) -> Iterator[memoryview]:
    """Yield the data of TENSOR in the type KIND, in order. The bytes depend neither on THREADS nor on how the slabs are cut.

    IMPORTANCE is (matrices, columns): one row for each matrix that is stacked in TENSOR, see `encode`. With FEEDBACK each block of columns
    makes up for the errors of those before it.

    Raises BrokenCheckpoint for a value that is not finite, ConvertError for one that KIND cannot hold.
    """
    columns = 1
    for dim in tensor.shape[1:]:
        columns *= dim
    items = SLAB_ITEMS if feedback is None else FED_ITEMS
    step = max(1, items // columns // tensor.block_rows) * tensor.block_rows
    starts = range(0, tensor.shape[0], step)
    if len(tensor.shape) == 1:  # the blocks of a vector would run across slabs, and vectors are small
        starts, step = range(1), tensor.shape[0]
    if len(starts) == 1 and feedback is None:
        yield encode_rows(tensor, 0, tensor.shape[0], kind, importance)
        return
    if feedback is not None:
        with one_thread_each():
            yield from pooled_slabs(tensor, kind, starts, step, threads, feedback)
        return
    yield from pooled_slabs(tensor, kind, starts, step, threads, importance=importance)


def pooled_slabs(
    tensor: TensorPlan,
    kind: str,
    starts: range,
    step: int,
    threads: int,
    feedback: Feedback | None = None,
    importance: F32 | None = None,
) -> Iterator[memoryview]:
    """Yield the slabs of STEP rows of TENSOR that begin at STARTS, in their order, computed by THREADS."""
    pending: deque[Future[memoryview]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for start in starts:
            end = min(start + step, tensor.shape[0])
            pending.append(pool.submit(encode_rows, tensor, start, end, kind, importance, feedback))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_rows(
    tensor: TensorPlan,
    first: int,
    last: int,
    kind: str,
    importance: F32 | None = None,
    feedback: Feedback | None = None,
) -> memoryview:
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
    if importance is not None and len(tensor.shape) > 2:
        importance = importance[first:last]
    try:
        return encode(rows, kind, importance) if feedback is None else encode_with_feedback(rows, kind, feedback)[0]
    except OverflowError:
        raise ConvertError(
            f"tensor {name!r} has values too large for the scales of {kind}, in rows {first} to {last - 1}",
            hint=f"use --quant bf16, or --type '{tensor.name.removesuffix('.weight')}=bf16'",
        ) from None


def encode(rows: F32, kind: str, importance: F32 | None = None) -> memoryview:
    """Return ROWS, (…, columns) float32, in the ggml type KIND; columns must be whole blocks.

    IMPORTANCE, (matrices, columns) float32, says how much an error in each column of a matrix costs: the mean of its squared
    inputs. Where ROWS is (matrices, rows, columns) each matrix has a row of it. The scales are then chosen for the smallest weighted
    error. Raises OverflowError where a block's scale is no finite number.
    """
    import numpy as np

    rows = np.ascontiguousarray(rows, np.float32)
    if kind == "F32":
        return as_bytes(rows)
    block, size = BLOCK[kind]
    columns = rows.shape[-1]
    assert columns % block == 0, (kind, columns)  # noqa: S101 - the quant map has made sure
    data = np.empty(rows.size // block * size, np.uint8)
    matrices = 1 if importance is None else len(importance)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        stacked = rows.shape[0] if rows.ndim > 2 else 1
        assert importance.shape == (stacked, columns), (importance.shape, rows.shape)  # noqa: S101 - checked when it was read
    lib, count = libggml(), rows.size // columns // matrices
    for index in range(matrices):
        wanted = len(data) // matrices
        written = lib.ggml_quantize_chunk(
            NUMBER[kind],
            rows.ctypes.data + index * count * columns * 4,
            data.ctypes.data + index * wanted,
            0,
            count,
            columns,
            None if importance is None else importance.ctypes.data + index * columns * 4,
        )
        assert written == wanted, (kind, written, wanted)  # noqa: S101 - libggml says how much it wrote
    if kind != "F16" and not lib.ggml_validate_row_data(NUMBER[kind], data.ctypes.data, len(data)):
        raise OverflowError(kind)
    return as_bytes(data)


def encode_with_feedback(rows: F32, kind: str, feedback: Feedback) -> tuple[memoryview, F32]:
    """Return ROWS, (rows, columns), in the ggml type KIND and what is left of the error in each block, (rows, columns), times its factor.

    The sum of squares of the latter is what the error costs with the second moments of FEEDBACK. Raises OverflowError.
    """
    import numpy as np

    from converters.dequantize import decode

    count, columns = rows.shape
    block, size = BLOCK[kind] if kind != "F32" else (1, 4)
    data = np.empty((count, columns // block, size), np.uint8)
    rows = np.ascontiguousarray(rows, np.float32)
    errors, left = (
        np.empty_like(rows),
        np.empty_like(rows),
    )  # W - the decoded codes, and that with what is owed, times M_aa
    for first, last in feedback.blocks(kind):
        inner = feedback.factor[first:last, first:last]
        owed = errors[:, :first] @ feedback.factor[:first, first:last]  # (rows, block)
        wanted = np.ascontiguousarray(rows[:, first:last])
        if first:
            wanted = wanted + held_back((owed @ inverse(inner)).astype(np.float32), wanted)
        codes = encode(wanted, kind, np.ascontiguousarray(feedback.importance[:, first:last]))
        found = decode(codes, kind, last - first)
        errors[:, first:last] = rows[:, first:last] - found
        left[:, first:last] = (wanted - found) @ inner
        data[:, first // block : last // block] = np.frombuffer(codes, np.uint8).reshape(count, -1, size)
    return data.reshape(-1).data, left


def held_back(change: F32, block: F32) -> F32:
    """Return CHANGE, (rows, columns of a block), no row of it longer than `MOST_CHANGE` of the same row of BLOCK.

    A column that hardly ever has an input can make up for much on the calibration text, and for nothing on another.
    """
    import numpy as np

    length, most = np.linalg.norm(change, axis=1), MOST_CHANGE * np.linalg.norm(block, axis=1)
    share = np.minimum(1, most / np.maximum(length, np.float32(1e-30)))
    found: F32 = change * share[:, None].astype(np.float32)
    return found


def inverse(triangle: F32) -> F32:
    """Return the inverse of an upper triangular matrix, by float64."""
    import numpy as np

    found: F32 = np.linalg.inv(triangle.astype(np.float64)).astype(np.float32)
    return found


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return the memory of ARRAY, little-endian as GGUF is, without copying it."""
    import numpy as np

    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


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
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    lib.ggml_init.restype, lib.ggml_init.argtypes = ctypes.c_void_p, (InitParams,)
    lib.ggml_free.restype, lib.ggml_free.argtypes = None, (ctypes.c_void_p,)
    lib.ggml_free(lib.ggml_init(InitParams(1024, None, True)))  # fills the tables of half-precision numbers
    return lib
