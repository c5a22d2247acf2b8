"""Write a GGUF file: keys from the plan and the vocabulary, tensors one slab of rows at a time.

The header is written by `gguf.GGUFWriter`; the data is appended here, so that no tensor has to be in memory whole. Same input, same
bytes: nothing that depends on the time, the path or the number of threads goes into the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.families import ModelPlan, Value
from converters.quantmap import QuantMap
from converters.tokenizer import Vocabulary, add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["write_model", "write_vocabulary"]

ALIGNMENT = 32
Extra = Mapping[str, Value]
Progress = Callable[[int, int], None]


def write_vocabulary(path: Path, architecture: str, vocabulary: Vocabulary, keys: Extra) -> None:
    """Write a GGUF file without tensors, which libllama can load with `vocab_only`."""
    writer = open_writer(path, architecture)
    add_keys(writer, architecture, keys)
    add_vocabulary(writer, vocabulary)
    finish_header(writer)


def write_model(
    path: Path,
    plan: ModelPlan,
    vocabulary: Vocabulary,
    quantmap: QuantMap,
    extra: Extra,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> None:
    """Write the model PLAN with the types of QUANTMAP to PATH. EXTRA holds keys with their full names.

    PROGRESS gets bytes written and in all; the bytes do not depend on THREADS.

    Raises BrokenCheckpoint where a tensor holds a value that is not a number.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    from converters.quantize import encoded_slabs

    writer = open_writer(path, plan.architecture)
    for key, value in extra.items():
        add_value(writer, key, value)
    writer.add_file_type(quantmap.file_type)
    writer.add_quantization_version(2)
    add_keys(writer, plan.architecture, plan.keys)
    add_vocabulary(writer, vocabulary)
    for tensor in plan.tensors:
        kind = quantmap.type_of(tensor.name)
        shape = quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType[kind])
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.uint8), quantmap.bytes_of(tensor.name), GGMLQuantizationType[kind]
        )
    finish_header(writer)
    total, done = sum(quantmap.bytes_of(tensor.name) for tensor in plan.tensors), 0
    with path.open("ab") as file:
        pad(file, os.fstat(file.fileno()).st_size)
        for tensor in plan.tensors:
            written = 0
            for slab in encoded_slabs(tensor, quantmap.type_of(tensor.name), threads):
                file.write(slab)
                written += len(slab)
                if progress:
                    progress(done + written, total)
            assert written == quantmap.bytes_of(tensor.name), tensor.name  # noqa: S101 - a wrong length would shift all that follows
            pad(file, written)
            done += written
        file.flush()
        os.fsync(file.fileno())


def pad(file: Any, size: int) -> None:
    """Write zeros up to the next multiple of the alignment."""
    file.write(bytes(-size % ALIGNMENT))


def open_writer(path: Path, architecture: str) -> GGUFWriter:
    """Return a writer for PATH whose first key is the architecture."""
    from gguf import GGUFWriter

    return GGUFWriter(path, architecture)


def finish_header(writer: GGUFWriter) -> None:
    """Write everything before the tensor data and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def add_keys(writer: GGUFWriter, architecture: str, keys: Extra) -> None:
    """Add KEYS under the name of the architecture, but those of the tokenizer that depend on the model under their own."""
    for key, value in keys.items():
        add_value(writer, key if key.startswith("tokenizer.") else f"{architecture}.{key}", value)


def add_value(writer: GGUFWriter, key: str, value: Value) -> None:
    """Add one key; whole numbers are u32 and others f32, as libllama reads them."""
    if isinstance(value, tuple):
        writer.add_array(key, list(value))
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
