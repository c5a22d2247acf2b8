"""Write a GGUF file: keys from the plan and the vocabulary, tensors one slab of rows at a time.

`gguf.GGUFWriter` collects the keys under their usual names; the bytes are written here, so that neither a vocabulary nor a tensor has to
be in memory twice, and with the types of `converters.ggml_types`, some of which that package does not know. Same input, same bytes:
nothing that depends on the time, the path or the number of threads goes into the file. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from converters.families import ModelPlan, TensorPlan, Value
from converters.ggml_types import GGML_TYPES
from converters.gguf_cursor import ARRAY, CODES, STRING
from converters.kept import Kept
from converters.quantmap import QuantMap, is_matrix
from converters.tokenizer import Vocabulary, add_vocabulary, plain_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFWriter

    from converters.feedback import Feedback

    F32 = npt.NDArray[np.float32]

__all__ = ["file_bytes", "write_header", "write_model", "write_vocabulary"]

ALIGNMENT = 32
VERSION = 3
NUMBERS = {item.name: number for number, item in GGML_TYPES.items()}
Extra = Mapping[str, Value]
Progress = Callable[[int, int], None]
TensorEntry = tuple[str, tuple[int, ...], str, int]
"""Name, shape in numpy's order, type, bytes."""


def write_vocabulary(path: Path, architecture: str, vocabulary: Vocabulary, keys: Extra) -> None:
    """Write a GGUF file without tensors, which libllama can load with `vocab_only`."""
    writer = collector(architecture)
    if vocabulary.needs_name:
        writer.add_name(vocabulary.needs_name)
    add_keys(writer, architecture, keys)
    add_vocabulary(writer, vocabulary)
    with path.open("wb") as file:
        write_header(file, writer, [])


def write_model(
    path: Path,
    plan: ModelPlan,
    vocabulary: Vocabulary,
    quantmap: QuantMap,
    extra: Extra,
    progress: Progress | None = None,
    *,
    threads: int = 1,
    importance: Mapping[str, F32] | None = None,
    feedback: Callable[[TensorPlan], Feedback | None] = lambda _tensor: None,
    kept: Kept | None = None,
) -> None:
    """Write the model PLAN with the types of QUANTMAP to PATH. EXTRA holds keys with their full names.

    PROGRESS gets bytes written and in all; the bytes do not depend on THREADS. IMPORTANCE is tensor name → (matrices, columns), what
    an error in each column costs; a tensor without one is encoded as if all columns were alike. FEEDBACK returns what a tensor is to be
    encoded with instead, see `converters.feedback`, and is asked when its turn comes. What KEPT has of a matrix is not encoded again.

    Raises BrokenCheckpoint where a tensor holds a value that is not a number.
    """
    from converters.quantize import encoded_slabs

    total, done = quantmap.nbytes, 0
    with path.open("wb") as file:
        write_header(file, all_keys(plan, vocabulary, quantmap, extra), entries(plan, quantmap))
        for tensor in plan.tensors:
            written, kind, nbytes = 0, quantmap.type_of(tensor.name), quantmap.bytes_of(tensor.name)

            def encoded(tensor: TensorPlan = tensor, kind: str = kind) -> Iterator[memoryview]:
                weights = importance.get(tensor.name) if importance else None
                return encoded_slabs(tensor, kind, threads, weights, feedback(tensor))

            for slab in (
                kept.slabs(tensor.name, kind, nbytes, encoded) if kept is not None and is_matrix(tensor) else encoded()
            ):
                file.write(slab)
                written += len(slab)
                if progress:
                    progress(done + written, total)
            assert written == nbytes, tensor.name  # noqa: S101 - a wrong length would shift all that follows
            pad(file, written)
            done += written
        file.flush()
        os.fsync(file.fileno())


def file_bytes(plan: ModelPlan, vocabulary: Vocabulary, quantmap: QuantMap, extra: Extra) -> int:
    """Return the exact size of the file that `write_model` would write."""
    sink = io.BytesIO()
    write_header(sink, all_keys(plan, vocabulary, quantmap, extra), entries(plan, quantmap))
    return sink.tell() + sum(-(-choice.nbytes // ALIGNMENT) * ALIGNMENT for choice in quantmap.choices.values())


def all_keys(plan: ModelPlan, vocabulary: Vocabulary, quantmap: QuantMap, extra: Extra) -> GGUFWriter:
    """Return every key of the file, in its order."""
    writer = collector(plan.architecture)
    for key, value in extra.items():
        add_value(writer, key, plain_name(str(value), vocabulary.needs_name) if key == "general.name" else value)
    writer.add_file_type(quantmap.file_type)
    writer.add_quantization_version(2)
    add_keys(writer, plan.architecture, plan.keys)
    add_vocabulary(writer, vocabulary)
    return writer


def entries(plan: ModelPlan, quantmap: QuantMap) -> list[TensorEntry]:
    """Return what the header says about each tensor."""
    return [
        (tensor.name, tensor.shape, quantmap.type_of(tensor.name), quantmap.bytes_of(tensor.name))
        for tensor in plan.tensors
    ]


def collector(architecture: str) -> GGUFWriter:
    """Return a writer that never opens its file: it collects keys, the architecture first."""
    from gguf import GGUFWriter

    return GGUFWriter(None, architecture)  # type: ignore[arg-type, unused-ignore]


def write_header(file: BinaryIO, keys: GGUFWriter, tensors: Sequence[TensorEntry]) -> None:
    """Write everything before the tensor data to FILE, padded to the alignment."""
    values = keys.kv_data[0]
    size = file.write(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(values)))
    for key, item in values.items():
        size += write_string(file, key)
        size += file.write(struct.pack("<I", item.type))
        size += write_value(file, item.value, int(item.type), item.sub_type)
    offset = 0
    for name, shape, kind, nbytes in tensors:
        size += write_string(file, name)
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        size += file.write(dims + struct.pack("<IQ", NUMBERS[kind], offset))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    pad(file, size)


def write_string(file: BinaryIO, text: str | bytes) -> int:
    """Write a string with its length; return how many bytes that were."""
    return file.write(packed_string(text))


def packed_string(text: str | bytes) -> bytes:
    """Return a string as GGUF stores it: its length in bytes, then the bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def write_value(file: BinaryIO, value: Any, kind: int, item: int | None) -> int:
    """Write a value of the `gguf_type` KIND, an array of ITEM where it is one; return how many bytes that were."""
    if kind == STRING:
        return write_string(file, value)
    if kind != ARRAY:
        return file.write(struct.pack(f"<{CODES[kind]}", value))
    item = int(item) if item is not None else item_type(value)
    size = file.write(struct.pack("<IQ", item, len(value)))
    if item == STRING:
        return size + file.write(b"".join(map(packed_string, value)))
    return size + file.write(struct.pack(f"<{len(value)}{CODES[item]}", *value))


def item_type(values: Any) -> int:
    """Return the `gguf_type` of the items of an array, as GGUFWriter chooses it."""
    from gguf import GGUFValueType

    return 0 if isinstance(values, bytes) else int(GGUFValueType.get_type(values[0]))


def pad(file: BinaryIO, size: int) -> None:
    """Write zeros up to the next multiple of the alignment."""
    file.write(bytes(-size % ALIGNMENT))


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
