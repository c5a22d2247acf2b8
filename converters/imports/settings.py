"""Read the hyperparameters of a GGUF file, refusing what is not a number, and remember which were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.errors import InvalidModel, UnsupportedModel
from converters.header import GGUFHeader

__all__ = ["Settings", "shortest"]


@dataclass(slots=True)
class Settings:
    """The keys under the name of the architecture; `used` are those that were asked for."""

    header: GGUFHeader
    used: set[str] = field(default_factory=set)

    def value(self, key: str) -> Any:
        """Return the value of KEY, or None; an array with one value for each layer, all of them the same, is that value."""
        name = f"{self.header.arch}.{key}"
        self.used.add(name)
        found = self.header.kv.get(name)
        if isinstance(found, tuple) and found and len(set(found)) == 1:
            return found[0]
        return found

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the positive whole number KEY."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if isinstance(value, tuple):
            raise UnsupportedModel(
                f"{str(self.header.path)!r} has another {self.header.arch}.{key} for each layer",
                hint="the architecture in transformers has one for all layers",
            )
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise InvalidModel(
                f"{str(self.header.path)!r} has {self.header.arch}.{key} {value!r}, and a positive whole number is needed",
                hint="the file is damaged or incomplete: download or convert it again",
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the finite positive number KEY, in its shortest writing that is the same float32."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise InvalidModel(
                f"{str(self.header.path)!r} has {self.header.arch}.{key} {value!r}, and a positive number is needed",
                hint="the file is damaged or incomplete: download or convert it again",
            )
        return shortest(float(value))

    def flags(self, key: str) -> Sequence[bool] | None:
        """Return the array of booleans KEY, one for each layer, or None."""
        name = f"{self.header.arch}.{key}"
        self.used.add(name)
        found = self.header.kv.get(name)
        return [bool(item) for item in found] if isinstance(found, tuple) else None

    def unused(self) -> list[str]:
        """Return the keys of the architecture that nobody asked for."""
        return sorted(key for key in self.header.kv if key.startswith(f"{self.header.arch}.") and key not in self.used)


def shortest(value: float) -> float:
    """Return the number that people wrote: of those that are the same float32, the one with the fewest digits."""
    import numpy as np

    return float(np.format_float_positional(np.float32(value), unique=True))
