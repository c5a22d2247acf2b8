"""Arrays as they are, for a model that does not say what its numbers mean."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeai.engines.onnx.batches import Batch, Fill, Place, groups
from edgeai.engines.onnx.records import load_array
from edgeai.engines.onnx.schema import Tensor
from edgeai.errors import UsageError

__all__ = ["Tensors"]


class Tensors:
    """Makes the inputs TENSORS of arrays: one array for an item, or for several inputs a mapping of arrays by name."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        import numpy as np

        self._tensors = tuple(tensors)
        single = self._tensors[0]
        fixed = len(self._tensors) == 1 and single.shape is not None and None not in single.shape
        self.item_shape: tuple[int, ...] = tuple(side or 0 for side in single.shape or ()) if fixed else ()
        self.dtype = np.dtype(single.dtype)
        self._array = np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of the graph."""
        return tuple(tensor.name for tensor in self._tensors)

    def filler(self, into: Any) -> Fill:
        """Return what writes an array of the right shape and type to INTO."""
        shape, dtype, array = self.item_shape, self.dtype, self._array

        def fill(item: Any) -> bool:
            if type(item) is not array or item.dtype != dtype or item.shape != shape:
                return False
            into[0] = item
            return True

        return fill

    def batches(self, items: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield ITEMS in batches of at most ROWS of the same shape. Numbers are taken as they are, NaN too: nothing is known of them."""
        import numpy as np

        found = [row for at, item in enumerate(items) for row in self._rows(item, at, len(items))]
        alike: list[dict[str, Any]] = []
        for row in found:
            if alike and any(row[name].shape != alike[0][name].shape for name in self.names):
                yield from self._stacked(alike, rows, np)
                alike = []
            alike.append(row)
        yield from self._stacked(alike, rows, np)

    def _stacked(self, alike: Sequence[dict[str, Any]], rows: int, np: Any) -> Iterator[Batch]:
        for group in groups(alike, rows):
            feed = {name: np.stack([row[name] for row in group]) for name in self.names}
            yield Batch(feed, len(group), ((),) * len(group))

    def _rows(self, item: Any, at: int, of: int) -> Iterator[dict[str, Any]]:
        place = Place(f"array {at + 1} of {of}" if of > 1 else "the array")
        if isinstance(item, str | os.PathLike):
            yield from self._file(Path(os.fsdecode(item)))
            return
        if not isinstance(item, Mapping):
            if len(self._tensors) > 1:
                raise UsageError(
                    f"{place} is one array, and the model takes {', '.join(self.names)}", hint="give a dict"
                )
            item = {self.names[0]: item}
        if set(item) != set(self.names):
            raise UsageError(
                f"{place} has {', '.join(map(str, item))}, and the model takes {', '.join(self.names)}",
                hint="give an array for each input",
            )
        yield {tensor.name: _fitting(item[tensor.name], tensor, place) for tensor in self._tensors}

    def _file(self, path: Path) -> Iterator[dict[str, Any]]:
        place = Place(repr(str(path)))
        if not path.is_file():
            raise UsageError(f"the file {str(path)!r} is not there", hint="check its path")
        if path.suffix.lower() == ".npy":
            found = load_array(path)
        elif path.suffix.lower() == ".json":
            try:
                found = json.loads(path.read_text(encoding="utf-8-sig"))
            except (ValueError, RecursionError, OSError) as error:
                raise UsageError(f"{place} is not JSON: {error}", hint="write an array as nested lists") from error
        else:
            raise UsageError(f"{place} is no array by its name", hint="name a .npy or a .json file")
        if isinstance(found, dict):
            yield from self._rows(found, 0, 1)
            return
        if len(self._tensors) > 1:
            raise UsageError(
                f"{place} has one array, and the model takes {', '.join(self.names)}",
                hint="write a JSON object with an array for each",
            )
        tensor = self._tensors[0]
        array = _as_array(found, tensor, place)
        several = tensor.shape is not None and array.ndim == len(tensor.shape) + 1
        for row in array if several else [array]:
            yield {tensor.name: _fitting(row, tensor, place)}


def _as_array(value: Any, tensor: Tensor, place: Place) -> Any:
    """Return VALUE as an array of the type of TENSOR. Raises UsageError where numbers would be changed."""
    import numpy as np

    try:
        found = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"{place} is not an array: its rows differ in length", hint="give nested lists") from error
    wanted = np.dtype(tensor.dtype)
    if found.dtype.kind not in "biuf" or (found.dtype.kind == "f" and wanted.kind != "f"):
        raise UsageError(
            f"{place} has numbers of {found.dtype}, and {tensor.name!r} takes {wanted}", hint=f"give {wanted}"
        )
    with np.errstate(over="ignore"):
        made = found.astype(wanted)
    if wanted.kind in "iub" and not np.array_equal(made, found):
        raise UsageError(f"{place} has numbers that {wanted} does not hold", hint=f"give {wanted}")
    return made


def _fitting(value: Any, tensor: Tensor, place: Place) -> Any:
    found = _as_array(value, tensor, place)
    shape = tensor.shape
    if shape is None:
        return found
    if found.ndim != len(shape) or any(side not in (None, have) for side, have in zip(shape, found.shape, strict=True)):
        if None not in shape and found.size == math.prod(side or 1 for side in shape) and found.ndim == 1:
            return found.reshape([side or 1 for side in shape])
        said = tuple("any" if side is None else side for side in shape)
        raise UsageError(
            f"{place} has the shape {found.shape}, and {tensor.name!r} takes {said}", hint="give arrays of that shape"
        )
    return found
