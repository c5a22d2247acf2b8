"""Settings in TOML → frozen dataclasses: each value with its type and range checked, each unknown key refused with what is close."""

from __future__ import annotations

import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from edgeai.errors import UsageError

__all__ = ["File", "choice", "number"]


def number(low: float, high: float, default: Any = MISSING, *, multiple_of: int = 1) -> Any:
    """Declare a number between LOW and HIGH, both allowed."""
    return field(default=default, metadata={"low": low, "high": high, "multiple_of": multiple_of})


def choice(options: tuple[str, ...], default: Any = MISSING) -> Any:
    """Declare a text that is one of OPTIONS."""
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True, slots=True)
class File:
    """A kind of file with settings: what it is called ("recipe"), and the error for what is wrong in it."""

    noun: str
    error: type[UsageError] = UsageError

    def build(self, cls: type, values: Any, where: str) -> Any:
        """Build the settings CLS from VALUES, the TOML table WHERE; raises the error of this kind of file."""
        if not isinstance(values, Mapping):
            raise self.error(f"{where} {values!r} is not a table", hint=f"write [{where}] and its settings below it")
        assert is_dataclass(cls)  # noqa: S101 - tables hold nothing else
        specs = {spec.name: spec for spec in fields(cls)}
        for key in values:
            if key not in specs:
                raise self.unknown(key, specs, where)
        kinds = typing.get_type_hints(cls)
        made = {key: self.value(specs[key], kinds[key], value, f"{where}.{key}") for key, value in values.items()}
        missing = [name for name, spec in specs.items() if spec.default is MISSING and name not in made]
        if missing:
            raise self.error(
                f"the {self.noun} has no {where}.{missing[0]}", hint=f"add {missing[0]} = … below [{where}]"
            )
        return cls(**made)

    def value(self, spec: Field[Any], kind: Any, value: Any, name: str) -> Any:
        """Return VALUE as the KIND that the setting NAME has, or say what it must be."""
        if isinstance(kind, types.UnionType):  # only `int | None`: None is the default and cannot be written in TOML
            kind = typing.get_args(kind)[0]
        if kind is float and type(value) is int:
            value = float(value) if abs(value) <= sys.float_info.max else math.inf if value > 0 else -math.inf
        if typing.get_origin(kind) is tuple:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise self.error(
                    f"{name} {value!r} is not possible", hint=f'{name} must be a list of texts: ["a", "b"]'
                )
            return tuple(value)
        if type(value) is not kind:
            words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
            raise self.error(f"{name} {value!r} is not possible", hint=f"{name} must be {words[kind]}")
        rules = spec.metadata
        if "options" in rules and value not in rules["options"]:
            raise self.error(
                f"{name} {value!r} is not possible", hint=f"{name} must be one of: {', '.join(rules['options'])}"
            )
        if "low" in rules:
            self._check_range(value, rules, name)
        return value

    def _check_range(self, value: float, rules: Mapping[str, Any], name: str) -> None:
        low, high, multiple = rules["low"], rules["high"], rules["multiple_of"]
        if not (math.isfinite(value) and low <= value <= high):
            raise self.error(
                f"{name} {value!r} is not possible", hint=f"{name} must be between {low:.15g} and {high:.15g}"
            )
        if multiple > 1 and value % multiple:
            raise self.error(f"{name} {value!r} is not possible", hint=f"{name} must be a multiple of {multiple}")

    def check_rules(self, rules: Iterable[tuple[str, Any, bool, str]]) -> None:
        """Raise the error of this kind of file for the first of RULES that does not hold; see `training.settings.TrainingSettings`."""
        for name, value, ok, rule in rules:
            if not ok:
                raise self.error(f"{name} {value!r} is not possible", hint=f"{name} must be {rule}")

    def unknown(self, key: str, known: Iterable[str], where: str = "") -> UsageError:
        """Return the error for a KEY of the table WHERE that is none of KNOWN, with what is close."""
        name = f"{where}.{key}" if where else key
        close = difflib.get_close_matches(key, list(known), n=1)
        near = f"{where}.{close[0]}" if close and where else "".join(close)
        hint = f"did you mean {near!r}?" if close else f"known here: {', '.join(known)}"
        return self.error(f"{name!r} is not a setting of a {self.noun}", hint=hint)
