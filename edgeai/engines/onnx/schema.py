"""What a model takes and gives, as its file says it (`edgeai.schema`), checked: the file is untrusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from edgeai.artifact import Artifact
from edgeai.errors import InvalidModel

__all__ = [
    "EXAMPLES",
    "Column",
    "Image",
    "Input",
    "Resize",
    "Schema",
    "Series",
    "Table",
    "Target",
    "Tensor",
    "Text",
    "schema_of",
]

Resize = Literal["nearest", "bilinear", "bicubic", "box"]
Kind = Literal["logits", "values", "vectors"]

KINDS: Mapping[str, Kind] = {"classification": "logits", "regression": "values", "embedding": "vectors"}
"""What a model does → what its first output then is."""
EXAMPLES = {
    "image": "picture.png", "table": "rows.csv", "series": "rows.csv", "text": '"a text"', "tensor": "array.npy",
}  # fmt: skip
"""What a model takes → what may stand behind `edgeai run MODEL`."""
MAX_SIDE, MAX_NAMES, MAX_TOKENS, MAX_ITEM = 16_384, 1_000_000, 1_000_000, 1 << 28
"""Limits of what a file may ask for: pixels of a side, labels or columns, tokens of a text, numbers of one item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A picture: (pixel * scale [1 - that if `invert`] - mean) / std, for each channel, as (channels, height, width) float32."""

    name: str
    channels: int
    height: int
    width: int
    resize: Resize
    scale: float
    invert: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of numbers, given as (x - mean) / std, or of categories, given as one number of 0 or 1 for each of `values`."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return len(self.values) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows with named columns, as one vector each."""

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Series of numbers, (channels, length) each. There is one column for each number, channel after channel, or one for each channel."""

    name: str
    channels: int
    length: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Texts as token ids and a mask of which are there; `graph` are the names of the graph's inputs for both, or for the ids alone."""

    name: str
    max_tokens: int
    graph: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An array as the graph takes it. `shape` is that of one item, None where it varies, or all of it where nothing is known."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


Input = Image | Table | Series | Text | Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a regression gives: value = output * std + mean."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a model takes and what its first output means."""

    name: str
    task: Literal["classification", "regression", "embedding"]
    inputs: tuple[Input, ...]
    output: str
    kind: Kind
    labels: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()


def schema_of(artifact: Artifact) -> Schema | None:
    """Return what ARTIFACT takes and gives; None where its file does not say. Raises InvalidModel for what cannot be."""
    found = artifact.schema
    return None if found is None else _Reader(str(artifact.path)).schema(found)


class _Reader:
    """Reads the schema in the file WHERE; every wrong value is an InvalidModel that names its place."""

    def __init__(self, where: str) -> None:
        self._where = where

    def schema(self, found: Mapping[str, Any]) -> Schema:
        task = self._one_of(found, "task", tuple(KINDS))
        inputs, output = found.get("inputs"), found.get("output")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            self._wrong("inputs", inputs, "a list of one object")
        if not isinstance(output, dict):
            self._wrong("output", output, "an object")
        kind = self._one_of(output, "kind", get_args(Kind))
        if kind != KINDS[task]:
            self._wrong("output.kind", kind, f"{KINDS[task]!r} for a model for {task}")
        labels = self._names(found, "labels", least=2) if task == "classification" else ()
        return Schema(
            name=self._text(found, "name"),
            task=task,
            inputs=(self._input(inputs[0]),),
            output=self._text(output, "name"),
            kind=kind,
            labels=labels,
            targets=self._targets(found.get("targets")) if task == "regression" else (),
        )

    def _input(self, found: Mapping[str, Any]) -> Input:
        kinds: dict[str, Callable[[Mapping[str, Any], str], Input]] = {
            "image": self._image, "table": self._table, "series": self._series, "text": self._text_input, "tensor": self._tensor,
        }  # fmt: skip
        return kinds[self._one_of(found, "kind", tuple(kinds))](found, self._text(found, "name"))

    def _image(self, found: Mapping[str, Any], name: str) -> Image:
        channels = self._whole(found, "channels", most=3)
        if channels == 2:
            self._wrong("channels", channels, "1 or 3")
        return Image(
            name=name,
            channels=channels,
            height=self._whole(found, "height", most=MAX_SIDE),
            width=self._whole(found, "width", most=MAX_SIDE),
            resize=self._one_of(found, "resize", get_args(Resize)),
            scale=self._number(found, "scale", 1 / 255),
            invert=self._flag(found, "invert"),
            mean=self._numbers(found, "mean", channels, 0.0),
            std=self._numbers(found, "std", channels, 1.0, zero=False),
        )

    def _table(self, found: Mapping[str, Any], name: str) -> Table:
        return Table(name=name, columns=self._columns(found))

    def _series(self, found: Mapping[str, Any], name: str) -> Series:
        channels, length = (self._whole(found, key, most=MAX_NAMES) for key in ("channels", "length"))
        columns = self._columns(found)
        if len(columns) not in (channels * length, channels) or any(column.values for column in columns):
            self._wrong("columns", f"{len(columns)} columns", f"{channels * length} columns of numbers, or {channels}")
        return Series(name=name, channels=channels, length=length, columns=columns)

    def _text_input(self, found: Mapping[str, Any], name: str) -> Text:
        graph = self._names(found, "graph", least=1)
        if len(graph) > 2:
            self._wrong("graph", graph, "the names of the inputs for ids and mask")
        return Text(name=name, max_tokens=self._whole(found, "max_tokens", most=MAX_TOKENS), graph=graph)

    def _tensor(self, found: Mapping[str, Any], name: str) -> Tensor:
        shape = found.get("shape")
        sides = shape if isinstance(shape, list) else self._wrong("shape", shape, "a list")
        if any(not (isinstance(side, str) or side is None or _is_whole(side)) for side in sides):
            self._wrong("shape", shape, "a list of whole numbers and names")
        if math.prod(side for side in sides if isinstance(side, int)) > MAX_ITEM:
            self._wrong("shape", shape, f"at most {MAX_ITEM} numbers")
        dtype = self._one_of(
            found, "dtype", ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
        )
        return Tensor(name=name, dtype=dtype, shape=tuple(side if isinstance(side, int) else None for side in sides))

    def _columns(self, found: Mapping[str, Any]) -> tuple[Column, ...]:
        listed = found.get("columns")
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_NAMES:
            self._wrong("columns", listed, "a list with at least one column")
        columns = tuple(self._column(item) for item in listed)
        self._once("columns", [column.name for column in columns])
        return columns

    def _column(self, found: Any) -> Column:
        if not isinstance(found, dict):
            self._wrong("columns", found, "objects")
        name = self._text(found, "name")
        if found.get("kind", "number") == "category":
            return Column(name=name, values=self._names(found, "values", least=1))
        self._one_of({"kind": "number", **found}, "kind", ("number", "category"))
        mean, std = self._number(found, "mean", 0.0), self._number(found, "std", 1.0, zero=False)
        return Column(name=name, mean=mean, std=std)

    def _targets(self, listed: Any) -> tuple[Target, ...]:
        if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
            self._wrong("targets", listed, "a list of objects")
        self._once("targets", [self._text(item, "name") for item in listed])
        return tuple(
            Target(
                name=item["name"],
                mean=self._number(item, "mean", 0.0),
                std=self._number(item, "std", 1.0, zero=False),
            )
            for item in listed
        )

    # ---- single values

    def _wrong(self, key: str, value: object, rule: str) -> NoReturn:
        raise InvalidModel(
            f"{self._where!r} is not valid: {key} of its edgeai.schema is {value!r:.80}, not {rule}",
            hint="convert the model again",
        )

    def _one_of(self, found: Mapping[str, Any], key: str, possible: tuple[str, ...]) -> Any:
        value = found.get(key)
        if value not in possible:
            self._wrong(key, value, f"one of {', '.join(possible)}")
        return value

    def _text(self, found: Mapping[str, Any], key: str) -> str:
        value = found.get(key)
        return value if isinstance(value, str) and value else self._wrong(key, value, "a name")

    def _flag(self, found: Mapping[str, Any], key: str) -> bool:
        value = found.get(key, False)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false")

    def _whole(self, found: Mapping[str, Any], key: str, *, most: int) -> int:
        value = found.get(key)
        ok = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        return value if isinstance(value, int) and ok else self._wrong(key, value, f"between 1 and {most}")

    def _number(self, found: Mapping[str, Any], key: str, default: float, *, zero: bool = True) -> float:
        value = found.get(key, default)
        if not _is_number(value) or not (zero or value != 0):
            self._wrong(key, value, "a finite number" if zero else "a finite number other than 0")
        return float(value)

    def _numbers(
        self, found: Mapping[str, Any], key: str, count: int, default: float, *, zero: bool = True
    ) -> tuple[float, ...]:
        values = found.get(key, [default] * count)
        if not isinstance(values, list) or len(values) != count:
            self._wrong(key, values, f"a list of {count}")
        return tuple(self._number({key: value}, key, default, zero=zero) for value in values)

    def _names(self, found: Mapping[str, Any], key: str, *, least: int) -> tuple[str, ...]:
        values = found.get(key)
        if not isinstance(values, list) or not least <= len(values) <= MAX_NAMES:
            self._wrong(key, values, f"a list of at least {least}")
        if not all(isinstance(value, str) for value in values):
            self._wrong(key, values, "texts")
        self._once(key, values)
        return tuple(values)

    def _once(self, key: str, names: Iterable[str]) -> None:
        names = list(names)
        if len(set(names)) < len(names):
            twice = next(name for at, name in enumerate(names) if name in names[:at])
            self._wrong(key, twice, "there once")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
