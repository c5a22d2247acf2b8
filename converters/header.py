"""Read the header of a GGUF file, trusting nothing in it.

Every count, length, offset and type is checked against the bytes that are there before anything is built from it,
and all work is bounded, so that a hostile file costs little time and memory and ends in `InvalidModel`. Source of the
format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; where ggml's own reader (ggml/src/gguf.cpp) is
stricter, so is this one. Large arrays (vocabulary, merges) are walked without building Python strings and decoded
only when asked for.
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import InvalidModel
from converters.ggml_types import GGML_TYPES, REMOVED_TYPES
from converters.gguf_cursor import DAMAGED, STRING, TYPE_NAMES, Cursor, GGUFArray

__all__ = ["GGUFArray", "GGUFHeader", "TensorInfo", "read_header"]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_KEY_BYTES = 1 << 16
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 63
"""GGML_MAX_NAME less the closing zero."""
MIN_KEY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
TOKEN_ARRAYS: Mapping[str, tuple[str, ...]] = {"tokens": ("string",), "scores": ("f32",), "token_type": ("i32", "u32")}

RawTensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape, type number, offset in the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (the contiguous dimension first), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFHeader:
    """Everything before the tensor data.

    `kv` holds scalars, short numeric arrays as tuples, and other arrays as `GGUFArray`; `types` names the type of
    each value as the format does (u32, string, …).
    """

    path: Path
    version: int
    kv: Mapping[str, Any]
    types: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    alignment: int
    file_bytes: int

    @property
    def arch(self) -> str:
        """The value of general.architecture."""
        return str(self.kv["general.architecture"])

    def array(self, key: str) -> list[Any]:
        """Return the items of the array KEY, decoded from the file; an absent key is an empty list."""
        value = self.kv.get(key, ())
        if isinstance(value, tuple):
            return list(value)
        if not isinstance(value, GGUFArray):
            raise InvalidModel(f"{str(self.path)!r} is not valid: {key!r} is {value!r}, not an array", hint=DAMAGED)
        with self.path.open("rb") as file:
            file.seek(value.start)
            data = file.read(value.size)
        cursor = Cursor(path=self.path, data=data, size=len(data), base=value.start)
        kind = TYPE_NAMES.index(value.item)
        if kind == STRING:
            return [cursor.string(f"a string in {key!r}") for _ in range(value.length)]
        return list(cursor.numbers(kind, value.length, key))


def read_header(path: Path, *, model: bool = True) -> GGUFHeader:
    """Return the checked header of the GGUF file PATH, reading no tensor data.

    A MODEL must name its architecture; an importance matrix has none.

    Raises InvalidModel for anything that is not a whole, valid, little-endian GGUF file of version 2 or 3.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a FIFO would wait for a writer
            raise InvalidModel(f"{str(path)!r} is not a file", hint="name a .gguf file")
        with path.open("rb") as file:
            check_magic(path, file.read(512))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(Cursor(path=path, data=data, size=len(data), at=len(MAGIC)), model=model)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidModel(f"{str(path)!r} cannot be read: {reason}", hint="check the path and permissions") from None


def check_magic(path: Path, head: bytes) -> None:
    """Raise InvalidModel, with a hint for what the file looks like, unless HEAD begins a GGUF file."""
    if not head:
        raise InvalidModel(f"{str(path)!r} is empty (0 bytes)", hint="download or convert it again")
    if not head.startswith(MAGIC):
        raise InvalidModel(f"{str(path)!r} is not a GGUF file (it begins with {head[:16]!r})", hint=recognise(head))


def recognise(head: bytes) -> str:
    """Return a hint for a file that begins with HEAD and is no GGUF file."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page, saved in place of the model: use the link of the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not the model: run `git lfs pull` in the repository it came from"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "this is a GGML file from before GGUF: convert the original model again"
    if head[8:9] == b"{":
        return "this is a safetensors file: name the folder that holds it and its config.json"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "this is a PyTorch or zip file: convert the original model with `edgeai convert`"
    return "name a .gguf file, or make one with `edgeai convert`"


def parse(cursor: Cursor, *, model: bool = True) -> GGUFHeader:
    """Read version, counts, keys and tensors, in the order of the file."""
    version = cursor.u32("its version")
    if version and not version & 0xFFFF:
        cursor.fail("is a big-endian GGUF file", hint="use the little-endian file, or convert the model here")
    if version not in (2, 3):
        cursor.fail(f"is GGUF version {version}, and versions 2 and 3 can be read", hint="convert the model again")
    tensor_count, key_count = cursor.u64("its tensor count"), cursor.u64("its key count")
    check_count(cursor, "tensors", tensor_count, MIN_TENSOR_BYTES, MAX_TENSORS)
    check_count(cursor, "keys", key_count, MIN_KEY_BYTES, MAX_KEYS)
    kv = dict(read_keys(cursor, key_count))
    check_keys(cursor, kv, model=model)
    alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
    raw = [read_tensor(cursor) for _ in range(tensor_count)]
    data_offset = align(cursor.at, alignment)
    return GGUFHeader(
        path=cursor.path,
        version=version,
        kv=kv,
        types=cursor.types,
        tensors=place(cursor, raw, data_offset, alignment),
        data_offset=data_offset,
        alignment=alignment,
        file_bytes=cursor.size,
    )


def align(offset: int, alignment: int) -> int:
    """Return the first multiple of ALIGNMENT that is not below OFFSET."""
    return -(-offset // alignment) * alignment


def check_count(cursor: Cursor, what: str, count: int, least: int, most: int) -> None:
    """Raise InvalidModel when COUNT things of at LEAST so many bytes cannot be in the file."""
    left = cursor.size - cursor.at
    if count * least > left:
        cursor.fail(f"is not valid: it says it has {count} {what}, and {left} bytes are left in the file")
    if count > most:
        cursor.fail(f"is not valid: it says it has {count} {what}, and at most {most} are possible")


def read_keys(cursor: Cursor, count: int) -> Iterator[tuple[str, Any]]:
    """Yield each key and its value."""
    for index in range(count):
        key = cursor.string(f"the name of key {index}", MAX_KEY_BYTES)
        if not key:
            cursor.fail(f"is not valid: key {index} has no name")
        if key in cursor.types:
            cursor.fail(f"is not valid: the key {key!r} is there twice")
        kind = cursor.u32(f"the type of {key!r}")
        cursor.types[key] = TYPE_NAMES[kind] if kind < len(TYPE_NAMES) else str(kind)
        yield key, cursor.value(kind, key)


def check_keys(cursor: Cursor, kv: Mapping[str, Any], *, model: bool) -> None:
    """Check the keys that the rest of the file, or a reader of any family, depends on."""
    arch = kv.get("general.architecture")
    if model and (not isinstance(arch, str) or not arch):
        cursor.fail(f"does not name its architecture: general.architecture is {arch!r}")
    alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        rule = f"it must be a power of two from 8 to {MAX_ALIGNMENT}"
        cursor.fail(f"is not valid: general.alignment is {alignment!r}, and {rule}")
    check_vocabulary(cursor, kv)


def check_vocabulary(cursor: Cursor, kv: Mapping[str, Any]) -> None:
    """Check that the arrays of the vocabulary have the right item types and the same length."""
    tokens: int | None = None
    for name, items in TOKEN_ARRAYS.items():
        key = f"tokenizer.ggml.{name}"
        value = kv.get(key)
        if value is None:
            continue
        wrong = value.item not in items if isinstance(value, GGUFArray) else not isinstance(value, tuple)
        if wrong:
            cursor.fail(f"is not valid: {key!r} is not an array of {' or '.join(items)}")
        length = value.length if isinstance(value, GGUFArray) else len(value)
        if tokens is not None and length != tokens:
            cursor.fail(f"is not valid: its vocabulary has {tokens} tokens, and {key!r} has {length} items")
        tokens = length


def read_tensor(cursor: Cursor) -> RawTensor:
    """Read one tensor's name, shape, type number and offset in the data."""
    name = cursor.string("the name of a tensor", MAX_NAME_BYTES)
    if not name:
        cursor.fail("is not valid: a tensor has no name")
    dims = cursor.u32(f"the dimensions of {name!r}")
    if not 1 <= dims <= 4:
        cursor.fail(f"is not valid: tensor {name!r} has {dims} dimensions, and 1 to 4 are possible")
    start = cursor.need(8 * dims, f"the shape of {name!r}")
    shape: tuple[int, ...] = struct.unpack_from(f"<{dims}Q", cursor.data, start)
    return name, shape, cursor.u32(f"the type of {name!r}"), cursor.u64(f"the offset of {name!r}")


def tensor_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], kind: int) -> int:
    """Return how many bytes the tensor takes, after checking its shape and type."""
    elements = math.prod(shape)
    if not 0 < elements < 1 << 63:
        cursor.fail(f"is not valid: tensor {name!r} has the shape {list(shape)}")
    known = GGML_TYPES.get(kind)
    if known is None:
        old = REMOVED_TYPES.get(kind)
        what = f"the type {old}, which ggml has removed" if old else f"the type {kind}, which is not known here"
        cursor.fail(f"cannot be used: tensor {name!r} has {what}", hint="convert the model again, or update edgeai")
    if shape[0] % known.block:
        rule = f"{known.name} needs a multiple of {known.block}"
        cursor.fail(f"is not valid: tensor {name!r} has rows of {shape[0]}, and {rule}")
    return elements // known.block * known.size


def place(cursor: Cursor, raw: list[RawTensor], data_offset: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Return the tensors with offsets in the file.

    They must follow each other in order without a hole, each at the next multiple of the alignment, as ggml demands
    (gguf.cpp: "has offset …, expected …"); so none overlaps another, and the last one tells where the file must end.
    """
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    expected, end = 0, 0
    for name, shape, kind, offset in raw:
        nbytes = tensor_bytes(cursor, name, shape, kind)
        if name in names:
            cursor.fail(f"is not valid: the tensor {name!r} is there twice")
        if offset != expected:
            what = "overlaps the one before it" if offset < expected else "leaves a hole before it"
            cursor.fail(f"is not valid: tensor {name!r} {what}: it begins at {offset}, and {expected} is expected")
        names.add(name)
        end = data_offset + offset + nbytes
        expected = align(offset + nbytes, alignment)
        kind_name = GGML_TYPES[kind].name
        tensors.append(TensorInfo(name=name, shape=shape, type=kind_name, offset=data_offset + offset, nbytes=nbytes))
    if end > cursor.size:
        cursor.fail(f"is cut off: it has {cursor.size} bytes and needs {end}, {end - cursor.size} are missing")
    return tuple(tensors)
