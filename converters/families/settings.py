"""Read numbers from a config.json, refusing what is not one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.errors import BrokenCheckpoint

__all__ = ["COPY_CONFIG", "integer", "number"]

COPY_CONFIG = "copy the config.json of the model again"


def integer(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 1 << 31) -> int:
    """Return the positive integer KEY of a configuration; DEFAULT where it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise BrokenCheckpoint(f"config.json has no {key!r}", hint=COPY_CONFIG)
        return default
    if type(value) is not int or not 1 <= value <= most:
        raise BrokenCheckpoint(
            f"config.json has {key} {value!r}, and a whole number from 1 to {most} is needed", hint=COPY_CONFIG
        )
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return the positive finite number KEY of a configuration; DEFAULT where it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise BrokenCheckpoint(f"config.json has no {key!r}", hint=COPY_CONFIG)
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise BrokenCheckpoint(f"config.json has {key} {value!r}, and a positive number is needed", hint=COPY_CONFIG)
    return float(value)
