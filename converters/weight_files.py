"""Read the headers of a Hugging Face folder's safetensors files, trusting nothing in them.

Format: https://github.com/huggingface/safetensors#format: eight bytes of length, a JSON object, the data. A folder has
one `model.safetensors`, or shards named by `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from converters.errors import InvalidModel

__all__ = ["WeightInfo", "read_json", "read_weights"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself (MAX_HEADER_SIZE in safetensors/src/tensor.rs)."""
MAX_JSON_BYTES = 64_000_000
MAX_DIMS = 16
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
DAMAGED = "the file is damaged or incomplete: download or save it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightInfo:
    """One tensor of a checkpoint: `shape` in torch's order, `offset` from the start of `file`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def fail(path: Path, what: str, hint: str = DAMAGED) -> NoReturn:
    """Raise InvalidModel with WHAT is wrong with PATH."""
    raise InvalidModel(f"{str(path)!r} {what}", hint=hint) from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in PATH; raises InvalidModel when it is not one, or larger than LIMIT bytes."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        fail(path, f"cannot be read: {error.strerror or error}", "check the path and permissions")
    if len(raw) > limit:
        fail(path, f"has more than {limit} bytes, too many for a JSON file of a model")
    return decode(path, raw)


def decode(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the JSON object RAW, read from PATH."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        fail(path, f"is not JSON: {error}")
    if not isinstance(value, dict):
        fail(path, f"is not a JSON object (it begins with {raw[:16]!r})")
    return value


def read_weights(folder: Path) -> tuple[WeightInfo, ...]:
    """Return every tensor in FOLDER's safetensors files, reading no data.

    Raises InvalidModel when a header is not valid, a file is cut off, or the index and the files do not agree.
    """
    index = folder / INDEX
    if not index.exists():
        return single(folder)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        fail(index, "has no weight_map")
    tensors: dict[str, WeightInfo] = {}
    for name in sorted({shard_name(index, value) for value in where.values()}):
        for tensor in read_safetensors(folder / name):
            if where.get(tensor.name) != name:
                fail(index, f"places {tensor.name!r} in {where.get(tensor.name)!r}, and {name!r} has it")
            tensors[tensor.name] = tensor
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        fail(index, f"names {len(missing)} tensors that no file has, the first is {missing[0]!r}")
    return tuple(tensors.values())


def single(folder: Path) -> tuple[WeightInfo, ...]:
    """Return the tensors of a folder without an index."""
    path = folder / SINGLE
    if path.exists():
        return read_safetensors(path)
    if any(folder.glob("*.bin")):
        hint = "PyTorch .bin files can run code when they are opened: save the model with safe_serialization=True"
        fail(folder, "has its weights in .bin files only", hint)
    fail(folder, f"has no {SINGLE} and no {INDEX}", "name a folder with config.json and safetensors files")


def shard_name(index: Path, value: object) -> str:
    """Return VALUE when it is the name of a file beside INDEX."""
    if not isinstance(value, str) or not value.endswith(".safetensors") or value != Path(value).name or "\\" in value:
        fail(index, f"names the shard {value!r}, and only a .safetensors file beside it is possible")
    return value


def read_safetensors(path: Path) -> tuple[WeightInfo, ...]:
    """Return the tensors of one safetensors file, in the order of their data."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(size - 8, MAX_HEADER_BYTES):
                fail(path, f"is not a whole safetensors file: it has {size} bytes and a header of {length}")
            header = decode(path, file.read(length))
    except OSError as error:
        fail(path, f"cannot be read: {error.strerror or error}", "check the path and permissions")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = sorted((read_entry(path, name, entry, start) for name, entry in header.items()), key=place)
    check_extents(path, tensors, start, size)
    return tuple(tensors)


def place(tensor: WeightInfo) -> tuple[int, int]:
    """Return the sort key of a tensor: its place in the file."""
    return tensor.offset, tensor.nbytes


def read_entry(path: Path, name: str, entry: object, start: int) -> WeightInfo:
    """Return the tensor that ENTRY of a header describes, after checking its type, shape and size."""
    if not isinstance(entry, dict):
        fail(path, f"is not valid: the entry of {name!r} is {str(entry)[:40]!r}")
    dtype, shape, extent = entry.get("dtype"), numbers(entry.get("shape")), numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        fail(path, f"cannot be used: tensor {name!r} has the type {dtype!r}, which is not known here")
    if shape is None or len(shape) > MAX_DIMS or not math.prod(shape) < 1 << 63:
        fail(path, f"is not valid: tensor {name!r} has the shape {str(entry.get('shape'))[:80]}")
    if extent is None or len(extent) != 2 or extent[0] > extent[1]:
        fail(path, f"is not valid: tensor {name!r} has the data_offsets {str(entry.get('data_offsets'))[:80]}")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if extent[1] - extent[0] != nbytes:
        what = f"{extent[1] - extent[0]} bytes, and {dtype} of shape {list(shape)} needs {nbytes}"
        fail(path, f"is not valid: tensor {name!r} has {what}")
    return WeightInfo(name=name, shape=shape, dtype=dtype, file=path, offset=start + extent[0], nbytes=nbytes)


def numbers(value: object) -> tuple[int, ...] | None:
    """Return VALUE when it is a list of whole numbers from 0 to 2**63 - 1, else None."""
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return tuple(value)
    return None


def check_extents(path: Path, tensors: list[WeightInfo], start: int, size: int) -> None:
    """Raise InvalidModel unless the sorted TENSORS fill the file from START to SIZE exactly, as the format demands."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            fail(path, f"is not valid: tensor {tensor.name!r} {what}")
        end += tensor.nbytes
    if end > size:
        fail(path, f"is cut off: it has {size} bytes and needs {end}, {end - size} are missing")
    if end < size:
        fail(path, f"is not valid: {size - end} bytes follow its last tensor")
