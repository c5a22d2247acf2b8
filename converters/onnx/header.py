"""Read the structure of an ONNX file, trusting nothing in it: operators, inputs, tensors, and where their data lies.

Format: onnx.proto of https://github.com/onnx/onnx. No tensor's data is read. What native code would follow blindly is checked here:
sizes of tensors against their bytes, and external data, whose path must stay in the file's own folder and whose bytes must be there.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from converters.errors import InvalidModel
from converters.onnx.wire import LEN, VARINT, Message, signed

__all__ = ["STANDARD_DOMAINS", "Header", "Port", "Tensor", "data_files", "read_header"]

BITS: Mapping[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32), 7: ("int64", 64),
    8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64),
    14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8), 18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8), 21: ("uint4", 4), 22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8),
    25: ("uint2", 2), 26: ("int2", 2), 27: ("float6e2m3", 6), 28: ("float6e3m2", 6),
}  # fmt: skip
"""`TensorProto.DataType` → name and bits of one number; a string has no fixed size."""
STANDARD_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""The domains of operators that onnxruntime itself has."""
MAX_DIMS, MAX_TENSORS, MAX_NODES = 32, 1_000_000, 4_000_000
MAX_METADATA_BYTES = 64 << 20
EXTERNAL = 1
NUMBERS: Mapping[str, str] = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "INT8", "uint8": "INT8",
    "int4": "INT4", "uint4": "INT4",
}  # fmt: skip
"""The types that weights have, by the names they get here; shapes and indices are no weights."""
TABLES = ("cos_cache", "sin_cache")
TABLE_BYTES = tuple(name.encode() for name in TABLES)
"""Angles of positions, which onnxruntime-genai's builder computes from the configuration."""
BLOCKS = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
"""Operators of com.microsoft on weights in blocks → the place of the codes among their inputs."""
EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}
DRIVE = re.compile(r"[A-Za-z]:")
ADDRESS = "_ORT_MEM_ADDR_"
"""By this part of a location onnxruntime takes the offset for an address in its own memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A stored tensor. `nbytes` is what its numbers take; `file` is where they are if they are not in the ONNX file itself.

    They begin at `offset`; None where they are in the file and not in one piece.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str | None = None
    offset: int | None = None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of the graph. A dimension is a number, a name where it varies, or None where nothing is said."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A matrix of `rows` × `columns` weights of `bits` bits in blocks of `block`; `inputs` names its tensors: codes, scales, zero points.

    An embedding does not say its size: its rows and columns are 0.
    """

    bits: int
    rows: int
    columns: int
    block: int
    inputs: tuple[str, ...]

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return self.rows * self.columns


@dataclass(slots=True, kw_only=True)
class Header:
    """What an ONNX file says of itself. `operators` counts (domain, type); `functions` are those the file defines itself.

    `tables` are the tables of positions that nodes take.
    """

    path: Path
    file_bytes: int
    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    nodes: int = 0
    functions: set[tuple[str, str]] = field(default_factory=set)
    packed: list[Packed] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)

    @property
    def data_bytes(self) -> int:
        """What all its tensors take, in the file and beside it."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """How many weights it has: of blocks those that are packed in them, and no scales; tables of positions are none."""
        return sum(self.by_type().values())

    def by_type(self) -> Counter[str]:
        """Return type → weights: FLOAT32, INT8, INT4 …; of weights in blocks the type of the codes."""
        found: Counter[str] = Counter()
        inside_blocks = {name for item in self.packed for name in item.inputs}
        named = {tensor.name: tensor for tensor in self.tensors}
        for codes, item in {item.inputs[0]: item for item in self.packed}.items():
            stored = named.get(codes)
            bytewise = stored is not None and stored.dtype == "uint8"
            held = 0 if stored is None else stored.elements * (8 // item.bits if bytewise else 1)
            found[f"INT{item.bits}"] += item.elements or held
        for tensor in self.tensors:
            counted = (
                tensor.dtype in NUMBERS and tensor.name not in inside_blocks and not tensor.name.startswith(TABLES)
            )
            scale = tensor.name.endswith(("_scale", "_zero_point"))
            if counted and not scale and tensor.elements:
                found[NUMBERS[tensor.dtype]] += tensor.elements
        return found

    def unknown_operators(self, known: Iterable[tuple[str, str]] | None = None) -> list[str]:
        """Return the operators that the runtime does not have: those of other domains, and not among KNOWN where it is given."""
        have = (
            None
            if known is None
            else {(domain.replace("ai.onnx", "", 1) if domain == "ai.onnx" else domain, name) for domain, name in known}
        )
        found = set()
        for domain, name in self.operators:
            if (domain, name) in self.functions:
                continue
            plain = "" if domain == "ai.onnx" else domain
            if domain not in STANDARD_DOMAINS or (have is not None and (plain, name) not in have):
                found.add(f"{domain}.{name}" if domain else name)
        return sorted(found)


def read_header(path: Path) -> Header:
    """Return what the ONNX file PATH says of itself.

    Raises InvalidModel when it is cut off, not an ONNX file, or names data that is not there or lies outside of its folder.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 16:
                raise InvalidModel(f"{str(path)!r} is no ONNX file: it has {size} bytes", hint="name a .onnx file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _model(Message(path, data, 0, size))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise InvalidModel(
                f"{str(path)!r} cannot be read: {error.strerror or error}", hint="check the path and permissions"
            ) from None
        raise


def _model(message: Message) -> Header:
    header = Header(path=message.path, file_bytes=message.end)
    graphs, text = 0, 0
    for number, kind, a, b in message.fields():
        if number == 1 and kind == VARINT:
            header.ir_version = a
        elif number == 2 and kind == LEN:
            header.producer = message.text(a, b, "the producer", 4096)
        elif number == 8 and kind == LEN:
            domain, version = _opset(message.inner(a, b))
            header.opsets[domain] = version
        elif number == 14 and kind == LEN:
            text += b - a
            if text > MAX_METADATA_BYTES:
                message.fail(f"is not valid: it has more than {MAX_METADATA_BYTES} bytes of metadata")
            key, value = _pair(message.inner(a, b))
            header.metadata[key] = value
        elif number == 7 and kind == LEN:
            graphs += 1
            _graph(message.inner(a, b), header, top=True)
        elif number == 25 and kind == LEN:
            _function(message.inner(a, b), header)
    if not graphs or not header.opsets or not 3 <= header.ir_version < 1000:
        raise InvalidModel(
            f"{str(message.path)!r} is no ONNX file", hint="name a .onnx file, or a folder that holds one"
        )
    if graphs > 1:
        message.fail("is not valid: it has more than one graph")
    if not header.outputs:
        message.fail("is not valid: its graph has no output")
    return header


def _opset(message: Message) -> tuple[str, int]:
    domain, version = "", 0
    for number, kind, a, b in message.fields():
        if number == 1 and kind == LEN:
            domain = message.text(a, b, "a domain", 1024)
        elif number == 2 and kind == VARINT:
            version = a
    return domain, version


def _pair(message: Message) -> tuple[str, str]:
    key = value = ""
    for number, kind, a, b in message.fields():
        if number == 1 and kind == LEN:
            key = message.text(a, b, "a key", 1 << 16)
        elif number == 2 and kind == LEN:
            value = message.text(a, b, f"the value of {key!r}")
    return key, value


def _function(message: Message, header: Header) -> None:
    domain = name = ""
    for number, kind, a, b in message.fields():
        if number == 1 and kind == LEN:
            name = message.text(a, b, "the name of a function", 4096)
        elif number == 10 and kind == LEN:
            domain = message.text(a, b, "a domain", 1024)
        elif number == 7 and kind == LEN:
            _node(message.inner(a, b), header)
        elif number == 11 and kind == LEN:  # what an attribute is where a call does not give it
            _attribute(message.inner(a, b), header)
    header.functions.add((domain, name))


def _graph(message: Message, header: Header, *, top: bool = False) -> None:
    """Read a graph; only what the TOP one has as inputs and outputs is the model's."""
    for number, kind, a, b in message.fields():
        if kind != LEN:
            continue
        if number == 1:
            _node(message.inner(a, b), header)
        elif number == 5:
            _tensor(message.inner(a, b), header)
        elif number == 15:
            _sparse(message.inner(a, b), header)
        elif top and number in (11, 12):
            (header.inputs if number == 11 else header.outputs).append(_port(message.inner(a, b)))
    if top:
        stored = {tensor.name for tensor in header.tensors}
        header.inputs = [
            port for port in header.inputs if port.name not in stored
        ]  # before IR version 4 weights were inputs


def _sparse(message: Message, header: Header) -> None:
    """Read a sparse tensor: its values, and where they are."""
    for number, kind, a, b in message.fields():
        if number in (1, 2) and kind == LEN:
            _tensor(message.inner(a, b), header)


def _node(message: Message, header: Header) -> None:
    kind_of_node = domain = ""
    inputs: list[tuple[int, int]] = []
    values: dict[str, int] = {}
    for number, kind, a, b in message.fields():
        if kind != LEN:
            continue
        if number == 4:
            kind_of_node = message.text(a, b, "the type of a node", 4096)
        elif number == 7:
            domain = message.text(a, b, "a domain", 1024)
        elif number == 1:
            inputs.append((a, b))
            if bytes(message.data[a : min(b, a + len(TABLES[0]))]).startswith(TABLE_BYTES):
                header.tables.add(message.text(a, b, "the name of an input", 1 << 16))
        elif number == 5:
            name, value = _attribute(message.inner(a, b), header)
            values[name] = value
    header.operators[domain, kind_of_node] += 1
    header.nodes += 1
    if header.nodes > MAX_NODES:
        message.fail(f"is not valid: it has more than {MAX_NODES} nodes")
    if kind_of_node in BLOCKS and domain == "com.microsoft":
        at = BLOCKS[kind_of_node]
        names = tuple(message.text(a, b, "the name of an input", 1 << 16) for a, b in inputs)[at::1]
        names = names if at else (names[0], *names[2:]) if names else ()
        if names:
            bits, columns, rows, block = (
                values.get(key, usual) for key, usual in (("bits", 4), ("K", 0), ("N", 0), ("block_size", 0))
            )
            if not 1 <= bits <= 8 or not 0 <= columns < 1 << 40 or not 0 <= rows < 1 << 40 or not 0 <= block < 1 << 40:
                message.fail(f"is not valid: {kind_of_node} has {columns} × {rows} weights of {bits} bits")
            header.packed.append(Packed(bits=bits, rows=rows, columns=columns, block=block, inputs=names))


def _attribute(message: Message, header: Header) -> tuple[str, int]:
    """Look through an attribute; return its name, and its value if it is a whole number."""
    name, value, single = "", 0, 0
    for number, kind, a, b in message.fields():
        if number == 3 and kind == VARINT:
            value = signed(a)
        if kind != LEN:
            continue
        if number == 1:
            name = message.text(a, b, "the name of an attribute", 4096)
        elif number in (5, 10):
            single += number == 5
            _tensor(message.inner(a, b), header)
        elif number in (22, 23):
            single += number == 22
            _sparse(message.inner(a, b), header)
        elif number in (6, 11):
            _graph(message.inner(a, b), header)
    if single > 1:  # protobuf would make one of them, of which each half alone says something else
        message.fail(f"is not valid: the attribute {name!r} has {single} values")
    return name, value


def _port(message: Message) -> Port:
    name, dtype, shape = "", "?", None
    for number, kind, a, b in message.fields():
        if number == 1 and kind == LEN:
            name = message.text(a, b, "the name of an input", 1 << 16)
        elif number == 2 and kind == LEN:
            for inner, kind_, c, d in message.inner(a, b).fields():
                if inner == 1 and kind_ == LEN:
                    dtype, shape = _tensor_type(message.inner(c, d))
    return Port(name=name, dtype=dtype, shape=shape)


def _tensor_type(message: Message) -> tuple[str, tuple[int | str | None, ...] | None]:
    dtype: str = "?"
    shape: tuple[int | str | None, ...] | None = None
    for number, kind, a, b in message.fields():
        if number == 1 and kind == VARINT:
            dtype = BITS.get(a, ("?", 0))[0]
        elif number == 2 and kind == LEN:
            dims = message.inner(a, b)
            shape = tuple(
                _dimension(dims.inner(c, d)) for inner, kind_, c, d in dims.fields() if inner == 1 and kind_ == LEN
            )
    return dtype, shape


def _dimension(message: Message) -> int | str | None:
    for number, kind, a, b in message.fields():
        if number == 1 and kind == VARINT:
            return signed(a)
        if number == 2 and kind == LEN:
            return message.text(a, b, "a dimension", 4096)
    return None


def _tensor(message: Message, header: Header) -> None:
    """Read a tensor and check that its data is there, and as much as its shape says."""
    name, code, shape, held, external = "", 0, list[int](), -1, dict[str, str]()
    offset: int | None = None
    location = 0
    for number, kind, a, b in message.fields():
        if number == 1:
            shape += _dims(message, len(shape), kind, a, b)
        elif number == 2 and kind == VARINT:
            code = a
        elif number == 8 and kind == LEN:
            name = message.text(a, b, "the name of a tensor", 1 << 16)
        elif number == 9 and kind == LEN:
            held, offset = b - a, a
        elif number == 13 and kind == LEN:
            key, value = _pair(message.inner(a, b))
            external[key] = value
        elif number == 14 and kind == VARINT:
            location = a
    if code not in BITS:
        message.fail(f"is not valid: the tensor {name!r} is of the type {code}, and 1 to {max(BITS)} are known")
    if len(shape) > MAX_DIMS or any(not 0 <= size < 1 << 40 for size in shape) or len(header.tensors) >= MAX_TENSORS:
        message.fail(f"is not valid: the tensor {name!r} has the shape {shape[:MAX_DIMS]}")
    dtype, bits = BITS[code]
    nbytes = -(-math.prod(shape) * bits // 8)
    where = None
    if location == EXTERNAL or external:
        where, offset = _external(message, name, external, nbytes if bits else None, said=location == EXTERNAL)
    elif held >= 0 and bits and held != nbytes:
        message.fail(
            f"is not valid: the tensor {name!r} has {held} bytes of data, and its shape {shape} needs {nbytes}"
        )
    header.tensors.append(Tensor(name=name, dtype=dtype, shape=tuple(shape), nbytes=nbytes, file=where, offset=offset))


def _dims(message: Message, before: int, kind: int, a: int, b: int) -> list[int]:
    """Return more dimensions of a shape that has BEFORE: a list that is too long is not read."""
    if before > MAX_DIMS or (kind == LEN and b - a > 10 * MAX_DIMS):
        message.fail(f"is not valid: a tensor has more than {MAX_DIMS} dimensions")
    return message.numbers(kind, a, b)


def _external(
    message: Message, name: str, values: Mapping[str, str], nbytes: int | None, *, said: bool
) -> tuple[str, int]:
    """Return the file and the offset of a tensor's data, which must lie in the folder of the ONNX file and be whole.

    SAID: the tensor says that its data is in a file, and does not only name one.
    """
    path = message.path
    if not said:
        message.fail(f"is not valid: the tensor {name!r} has data in the file, and names {values.get('location')!r}")
    if unknown := values.keys() - EXTERNAL_KEYS:
        message.fail(f"is not valid: the data of {name!r} is described by {min(unknown)!r}, which is not known")
    place = inside(path.parent, values.get("location", ""), what=f"the data of {name!r} in {str(path)!r}")
    offset, length = (_count(message, name, key, values.get(key)) for key in ("offset", "length"))
    try:
        facts = place.stat()
    except OSError:
        facts = None
    if facts is None or not stat.S_ISREG(facts.st_mode):
        raise InvalidModel(
            f"{str(place)!r} is missing: {path.name!r} keeps its weights there",
            hint="copy the whole folder, or convert it again",
        )
    size = facts.st_size
    start = offset or 0
    need = length if length is not None else nbytes if nbytes is not None else 0
    if nbytes is not None and length is not None and length != nbytes:
        message.fail(f"is not valid: the data of {name!r} has {length} bytes, and its shape needs {nbytes}")
    if start + need > size:
        missing = start + need - size
        raise InvalidModel(
            f"{str(place)!r} is cut off: it has {size} bytes, and {missing} more are needed for {name!r}",
            hint="the file is damaged or incomplete: download or convert it again",
        )
    return values["location"], start


def _count(message: Message, name: str, key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        message.fail(f"is not valid: the {key} of the data of {name!r} is {text!r}")
    return int(text)


def inside(folder: Path, name: Any, *, what: str) -> Path:
    """Return the file NAME of FOLDER. Raises InvalidModel for a name, or a link, that leads out of it."""
    outside = f"{what} is said to be in {name!r:.200}, which is outside of its folder"
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidModel(f"{what} is said to be in {name!r:.200}, which is no file", hint="do not use this file")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if (
        posix.is_absolute()
        or windows.is_absolute()
        or windows.drive
        or ".." in posix.parts
        or ".." in windows.parts
        or DRIVE.match(name)
        or ADDRESS in name
    ):
        raise InvalidModel(outside, hint="do not use this file: it would read from elsewhere on this machine")
    place = folder / posix
    if not place.resolve().is_relative_to(folder.resolve()):
        raise InvalidModel(f"{outside} through a link", hint="do not use this file, or put the data in its folder")
    return place


def data_files(header: Header) -> list[Path]:
    """Return the files beside the ONNX file that hold its data."""
    return [
        header.path.parent / name
        for name in sorted({tensor.file for tensor in header.tensors if tensor.file is not None})
    ]
