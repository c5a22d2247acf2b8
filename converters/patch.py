"""Change the value of one key of a GGUF file in place: nothing moves, so the tensors stay where they are.

For values that are known only after the file was written, such as the outcome of its proof. The writer puts a placeholder there.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from converters.gguf_cursor import CODES, TYPE_NAMES, Cursor
from converters.header import MAGIC, read_header

__all__ = ["patch_keys"]

WALKED_BYTES = 1 << 28
"""Keys further into a file than this are not changed; the largest headers have some 20 MB."""


def patch_keys(path: Path, values: Mapping[str, bool | int | float]) -> None:
    """Give each key of VALUES in the GGUF file PATH its value; all of them, or none where one does not fit.

    The file must be whole and valid (InvalidModel). Raises KeyError for a key that is not there, TypeError for a value of another kind
    than the file has there (text and arrays cannot be changed), OverflowError for a number that its type cannot hold.
    """
    read_header(path)
    places = find(path)
    writes = []
    for key, value in values.items():
        if key not in places:
            raise KeyError(key)
        offset, kind = places[key]
        writes.append((offset, encoded(key, value, kind)))
    with path.open("r+b") as file:
        for offset, data in writes:
            file.seek(offset)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def find(path: Path) -> dict[str, tuple[int, int]]:
    """Return key → (offset of its value, number of its type) for the keys of PATH that are no text and no arrays."""
    with path.open("rb") as file:
        data = file.read(WALKED_BYTES)
    cursor = Cursor(path=path, data=data, size=len(data))
    cursor.need(len(MAGIC) + 4 + 8, "its head")
    found = {}
    for _ in range(cursor.u64("its key count")):
        key = cursor.string("the name of a key")
        kind = cursor.u32(f"the type of {key!r}")
        if kind in CODES:
            found[key] = (cursor.at, kind)
        cursor.value(kind, key)
    return found


def encoded(key: str, value: bool | int | float, kind: int) -> bytes:
    """Return VALUE as bytes of the type number KIND, which must be of the same sort."""
    name = TYPE_NAMES[kind]
    wanted: type = bool if name == "bool" else float if name.startswith("f") else int
    if type(value) is not wanted:
        raise TypeError(f"{key!r} is {name} in the file, and {value!r} is not")
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError(f"{key!r} cannot be {value!r}")
    try:
        return struct.pack(f"<{CODES[kind]}", value)
    except struct.error as error:
        raise OverflowError(f"{key!r} is {name} in the file, which does not hold {value!r}") from error
