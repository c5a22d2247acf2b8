"""Write a checkpoint as a Hugging Face folder: safetensors in shards, a slab of rows at a time, and the files beside them.

Format: https://github.com/huggingface/safetensors#format. Nothing depends on the time or the place, so the same source gives the same
bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.checkpoint import INDEX, SINGLE, Checkpoint, Source
from converters.errors import BrokenCheckpoint, ConvertError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["DTYPES", "Written", "export_bytes", "write_folder"]

DTYPES: Mapping[str, tuple[str, str, int]] = {
    "f32": ("F32", "float32", 4),
    "f16": ("F16", "float16", 2),
    "bf16": ("BF16", "bfloat16", 2),
}
"""Name → in safetensors, in config.json, bytes of a number."""
SHARD_BYTES = 5_000_000_000
"""The largest shard, as `save_pretrained` writes them."""
SLAB_ITEMS = 1 << 20
LARGEST_F16 = 65504.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written: bytes of all tensors, and how many tensors have values that the type had to round."""

    nbytes: int
    tensors: int
    rounded: int


def export_bytes(tensors: Mapping[str, Source], dtype: str) -> int:
    """Return the bytes of all TENSORS as DTYPE."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values()) * DTYPES[dtype][2]


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: str,
    *,
    more: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Written:
    """Write CHECKPOINT with its weights as DTYPE (a key of DTYPES) into the empty FOLDER; MORE is name → JSON of further files.

    PROGRESS gets bytes written and in all. Raises BrokenCheckpoint for a value that is not a number, ConvertError for one that does
    not fit DTYPE.
    """
    name = DTYPES[dtype][1]
    total, done, rounded = export_bytes(checkpoint.tensors, dtype), 0, 0
    shards = list(divide(checkpoint.tensors.values(), DTYPES[dtype][2], shard_bytes))
    places: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys((tensor.name for tensor in shard), file)
        with (folder / file).open("wb") as out:
            out.write(header_of(shard, dtype))
            for tensor in shard:
                lossy = False
                for slab, inexact in slabs(tensor, dtype):
                    out.write(slab)
                    lossy |= inexact
                    done += len(slab)
                    if progress:
                        progress(done, total)
                rounded += lossy
            out.flush()
            os.fsync(out.fileno())
    files: dict[str, Any] = {
        "config.json": {**checkpoint.config, "torch_dtype": name, "dtype": name},
        "generation_config.json": dict(checkpoint.generation_config),
        "tokenizer_config.json": dict(checkpoint.tokenizer_config),
        **(more or {}),
    }
    if len(shards) > 1:
        files[INDEX] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    for file, value in files.items():
        write_text(folder / file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    if checkpoint.tokenizer_json is not None:
        write_text(folder / "tokenizer.json", checkpoint.tokenizer_json)
    return Written(nbytes=total, tensors=len(places), rounded=rounded)


def write_text(path: Path, text: str) -> None:
    """Write TEXT to PATH, with its bytes on the disk."""
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def divide(tensors: Iterator[Source] | Any, item: int, most: int) -> Iterator[Sequence[Source]]:
    """Yield the tensors of each shard, in their order; one that is larger than MOST is alone."""
    shard: list[Source] = []
    size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor.shape) * item
        if shard and size + nbytes > most:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    yield shard


def header_of(shard: Sequence[Source], dtype: str) -> bytes:
    """Return the length and the JSON object that begin a safetensors file; the data begins at a multiple of 8."""
    stored, _, item = DTYPES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard:
        end = at + math.prod(tensor.shape) * item
        entries[tensor.name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def slabs(tensor: Source, dtype: str) -> Iterator[tuple[bytes, bool]]:
    """Yield the data of TENSOR as DTYPE in slabs of rows, each with whether values were rounded."""
    step = max(1, SLAB_ITEMS // max(1, math.prod(tensor.shape[1:])))
    for first in range(0, tensor.shape[0], step):
        yield encode(tensor.rows(first, min(first + step, tensor.shape[0])), dtype, tensor.name)


def encode(rows: F32, dtype: str, name: str) -> tuple[bytes, bool]:
    """Return ROWS as DTYPE, rounded to the nearest, ties to even, and whether that changed a value."""
    import numpy as np

    if not np.isfinite(rows).all():
        raise BrokenCheckpoint(
            f"tensor {name!r} has values that are not finite numbers",
            hint="the file is damaged, or its training went wrong",
        )
    if dtype == "f32":
        return np.ascontiguousarray(rows, "<f4").tobytes(), False
    if dtype == "f16":
        if float(np.abs(rows).max(initial=0.0)) > LARGEST_F16:
            raise ConvertError(
                f"tensor {name!r} has values above {LARGEST_F16:.0f}, which f16 cannot hold",
                hint="use --dtype bf16 or f32",
            )
        half = rows.astype("<f2")
        return half.tobytes(), bool((half.astype(np.float32) != rows).any())
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    upper = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return upper.tobytes(), bool((bits & 0xFFFF).any())
