"""Values between two processes as JSON: what may travel is a closed list, so that neither side can make the other run code.

A value that JSON has is itself; any other is an object with one key, its tag: `tuple`, `map` (pairs, so that keys keep their type),
`path`, `array` and `bytes` (their bytes travel beside the JSON), `error`, or the name of one of DATACLASSES.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from edgeai import alternatives, errors, options, placement, plan, types

__all__ = ["DATACLASSES", "BrokenValue", "from_json", "to_json"]

DATACLASSES: dict[str, type] = {
    name: value
    for module in (types, options, placement, alternatives, plan)
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
}
"""The frozen dataclasses of these modules, by name: what is asked of a model, how it runs, and what it answers."""

ERRORS: dict[str, type[Exception]] = {
    **{
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EdgeAIError)
    },
    **{
        kind.__name__: kind
        for kind in (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, RuntimeError)
    },
}
"""Errors that are raised again as what they are; a subclass that is not here becomes its nearest base that is."""


class BrokenValue(Exception):
    """JSON that is no value of ours."""


def to_json(value: Any, raw: list[bytes]) -> Any:
    """Return VALUE as something that `json.dumps` takes; bytes and arrays are appended to RAW. Raises TypeError for what may not travel."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [to_json(item, raw) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [to_json(item, raw) for item in value]}
    if isinstance(value, Mapping):
        return {"map": [[to_json(key, raw), to_json(item, raw)] for key, item in value.items()]}
    if isinstance(value, os.PathLike):
        return {"path": os.fspath(value)}
    if isinstance(value, bytes | bytearray):
        raw.append(bytes(value))
        return {"bytes": len(value)}
    if isinstance(value, BaseException):
        return {"error": _error_to_json(value, raw)}
    if is_dataclass(value) and DATACLASSES.get(type(value).__name__) is type(value):
        return {type(value).__name__: {item.name: to_json(getattr(value, item.name), raw) for item in fields(value)}}
    if type(value).__module__ == "numpy":
        return _numpy_to_json(value, raw)
    raise TypeError(f"{type(value).__name__} does not travel between processes: {value!r:.100}")


def _numpy_to_json(value: Any, raw: list[bytes]) -> Any:
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise TypeError(f"an array of {value.dtype} does not travel between processes")
    raw.append(value.tobytes())
    return {"array": [value.dtype.str, list(value.shape), value.nbytes]}


def _error_to_json(error: BaseException, raw: list[bytes]) -> dict[str, Any]:
    known = isinstance(error, errors.EdgeAIError)
    return {
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "extra": to_json(_fields(error) if known else {}, raw),
        # An expected error says all by itself; of any other the place is worth knowing.
        "trace": None if known else "".join(traceback.format_exception(error)),
    }


def _fields(error: BaseException) -> dict[str, Any]:
    """Return what ERROR carries beside its message and can travel: an error must arrive, and its message says all that matters."""
    found = {}
    for name, value in vars(error).items():
        with contextlib.suppress(TypeError):
            to_json(value, [])
            found[name] = value
    return found


def from_json(value: Any, raw: memoryview) -> Any:
    """Return the value that became VALUE and RAW in `to_json`. Raises BrokenValue."""
    try:
        return _Reader(raw).read(value)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError, errors.UsageError) as error:
        raise BrokenValue(f"not a value of this protocol: {error}") from error


class _Reader:
    def __init__(self, raw: memoryview) -> None:
        self._raw = raw

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.read(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag in DATACLASSES:
            return DATACLASSES[tag](**{name: self.read(item) for name, item in content.items()})
        return getattr(self, f"_{_TAGS[tag]}")(content)

    def _tuple(self, content: Any) -> tuple[Any, ...]:
        return tuple(self.read(item) for item in content)

    def _map(self, content: Any) -> dict[Any, Any]:
        return {self.read(key): self.read(item) for key, item in content}

    def _path(self, content: Any) -> Path:
        return Path(content)

    def _bytes(self, content: Any) -> bytes:
        return bytes(self._take(content))

    def _array(self, content: Any) -> Any:
        import numpy as np

        kind, shape, size = content
        dtype = np.dtype(kind)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {kind!r}")
        # A bytearray, since an array over bytes could not be written to.
        return np.frombuffer(bytearray(self._take(size)), dtype=dtype).reshape(shape)

    def _take(self, size: Any) -> memoryview:
        if not isinstance(size, int) or not 0 <= size <= len(self._raw):
            raise ValueError(f"{size!r} bytes of {len(self._raw)}")
        taken, self._raw = self._raw[:size], self._raw[size:]
        return taken

    def _error(self, content: Any) -> Exception:
        kind = next((ERRORS[name] for name in content["kinds"] if name in ERRORS), RuntimeError)
        message = str(content["message"])
        if kind is RuntimeError and (name := str(content["kinds"][0])) not in ERRORS:
            message = f"{name}: {message}"
        # Not through __init__: its parameters differ from class to class, what it set travels in `extra`.
        error = kind.__new__(kind, message)
        error.args = (message,)
        vars(error).update(self.read(content["extra"]))
        if content["trace"] is not None:
            error.add_note(f"in the process that runs the model:\n{content['trace']}")
        return error


_TAGS = {name: name for name in ("tuple", "map", "path", "bytes", "array", "error")}
