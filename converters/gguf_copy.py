"""Write a GGUF file again with other types of tensors: its keys and its vocabulary byte for byte, its tensors a slab at a time.

No family takes part, so any architecture can be copied; and where a file is compared with what was read from it, nothing that could be
wrong twice.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from converters.families import TensorPlan
from converters.ggml_types import FILE_TYPES, GGML_TYPES
from converters.gguf_cursor import STRING, TYPE_NAMES, Cursor
from converters.header import MAGIC, GGUFHeader, TensorInfo, align, read_keys
from converters.imports.source import stored_tensors
from converters.quantize import encoded_slabs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from converters.families import Value

    Rows = npt.NDArray[np.float32]

__all__ = ["copy_gguf", "type_bytes"]

VERSION = 3
BOOL, U32, F32 = (TYPE_NAMES.index(name) for name in ("bool", "u32", "f32"))
NUMBER = {item.name: number for number, item in GGML_TYPES.items()}
SIZES = {item.name: (item.block, item.size) for item in GGML_TYPES.values()}
MADE_NEW = ("general.file_type", "general.quantization_version")
OURS = "edgeai."
KEPT = ("edgeai.tokenizer.",)
"""Keys of ours that belong to the vocabulary."""
COPY_BYTES = 1 << 22
Progress = Callable[[int, int], None]


def type_bytes(tensor: TensorInfo, kind: str) -> int:
    """Return the bytes of TENSOR in the type KIND."""
    block, size = SIZES[kind]
    return tensor.elements // block * size


def copy_gguf(
    header: GGUFHeader,
    path: Path,
    types: Mapping[str, str],
    file_type: str,
    extra: Mapping[str, Value],
    progress: Progress | None = None,
    *,
    threads: int = 1,
    importance: Mapping[str, Rows] | None = None,
) -> None:
    """Write the file of HEADER to PATH with TYPES (tensor → ggml type), the file type FILE_TYPE and the keys EXTRA.

    A tensor that keeps its type keeps its bytes. IMPORTANCE is tensor → (matrices, columns), as for `write_model`. PROGRESS gets bytes
    written and in all.
    """
    number = next(number for number, name in FILE_TYPES.items() if name == file_type)
    total = sum(type_bytes(tensor, types[tensor.name]) for tensor in header.tensors)
    done = 0
    with path.open("wb") as out:
        made = {"general.file_type": number, "general.quantization_version": 2, **extra}
        keys = [*kept_keys(header), *(entry(key, value) for key, value in made.items())]
        out.write(MAGIC + struct.pack("<IQQ", VERSION, len(header.tensors), len(keys)))
        out.writelines(keys)
        at = 0
        for tensor in header.tensors:
            kind = types[tensor.name]
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            out.write(raw(tensor.name) + shape + struct.pack("<IQ", NUMBER[kind], at))
            at = align(at + type_bytes(tensor, kind), header.alignment)
        pad(out, header.alignment)
        for tensor in header.tensors:
            for slab in data_of(header, tensor, types[tensor.name], threads, (importance or {}).get(tensor.name)):
                out.write(slab)
                done += len(slab)
                if progress:
                    progress(done, total)
            pad(out, header.alignment)
        out.flush()
        os.fsync(out.fileno())


def data_of(
    header: GGUFHeader, tensor: TensorInfo, kind: str, threads: int, importance: Rows | None
) -> Iterator[bytes | memoryview]:
    """Yield the data of TENSOR in the type KIND."""
    if kind == tensor.type:
        with header.path.open("rb") as file:
            file.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                block = file.read(min(left, COPY_BYTES))
                yield block
                left -= len(block) or left
        return
    source = stored_tensors(header)[tensor.name]
    yield from encoded_slabs(
        TensorPlan(name=tensor.name, shape=source.shape, sources=(source,)), kind, threads, importance
    )


def kept_keys(header: GGUFHeader) -> list[bytes]:
    """Return the keys of the file as the bytes that they are, without those that are made new."""
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(path=header.path, data=data, size=len(data), at=len(MAGIC) + 12)
        count, found = cursor.u64("its key count"), []
        start = cursor.at
        for key, _ in read_keys(cursor, count):
            if key not in MADE_NEW and (not key.startswith(OURS) or key.startswith(KEPT)):
                found.append(bytes(data[start : cursor.at]))
            start = cursor.at
    return found


def raw(value: str) -> bytes:
    """Return VALUE as the format writes a string."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: Value) -> bytes:
    """Return a key with a text, a bool, a whole number (u32) or another (f32)."""
    if isinstance(value, str):
        return raw(key) + struct.pack("<I", STRING) + raw(value)
    if isinstance(value, bool):
        return raw(key) + struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return raw(key) + struct.pack("<II", U32, value)
    assert isinstance(value, float)  # noqa: S101 - no arrays are made new
    return raw(key) + struct.pack("<If", F32, value)


def pad(out: BinaryIO, alignment: int) -> None:
    """Write zeros up to the next multiple of ALIGNMENT."""
    out.write(bytes(-out.tell() % alignment))
