"""From what a user gives to predictions, wherever the session is: items become arrays, outputs become labels and values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from math import exp, isfinite
from typing import TYPE_CHECKING, Any, TypedDict

from edgeai.artifact import Artifact
from edgeai.engines.onnx.batches import Batch, Reader
from edgeai.engines.onnx.schema import Image, Schema, Series, Table, Tensor, Text, schema_of
from edgeai.errors import EngineCrashed, InvalidModel, UsageError
from edgeai.types import Prediction

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Infer = Callable[[Mapping[str, Array]], Array]

__all__ = ["TASKS", "Classifier", "Ports", "check_task", "classifier_of"]

TASKS = ("classification", "regression", "arrays")
"""What models do that are run here (Artifact.task); `arrays` where the file does not say."""
FEW = 64
"""Up to so many labels plain Python makes a prediction faster than numpy."""
RANGE = 300.0
"""Sums of exponentials of numbers up to this are within float64."""
FLOATS = ("float32", "float16", "float64")


class Ports(TypedDict):
    """The inputs of a graph, name → (type, shape), and its first output; a side that varies is None."""

    inputs: dict[str, tuple[str, tuple[int | None, ...]]]
    output: tuple[str, str, tuple[int | None, ...]]


def check_task(artifact: Artifact) -> None:
    """Raise UsageError for a model that has neither labels nor values."""
    if artifact.format != "onnx" or artifact.task not in TASKS:
        raise UsageError(f"{artifact.name} is a model for {artifact.task}: it has no labels", hint="use a classifier")


def classifier_of(artifact: Artifact, ports: Ports) -> Classifier:
    """Return what makes predictions with ARTIFACT, whose graph has PORTS. Raises InvalidModel where the file contradicts itself."""
    schema = schema_of(artifact)
    if schema is not None:
        _check_ports(str(artifact.path), schema, ports)
        return Classifier(artifact, schema, _reader(artifact, schema), ports)
    from edgeai.engines.onnx.tensors import Tensors

    tensors = [
        Tensor(name=name, dtype=dtype, shape=shape[1:] if shape else None)
        for name, (dtype, shape) in ports["inputs"].items()
    ]
    return Classifier(artifact, None, Tensors(tensors), ports)


def _reader(artifact: Artifact, schema: Schema) -> Reader:
    (wanted,) = schema.inputs
    if isinstance(wanted, Image):
        from edgeai.engines.onnx.pictures import Pictures

        return Pictures(wanted)
    if isinstance(wanted, Table | Series):
        from edgeai.engines.onnx.tables import Tables

        return Tables(wanted)
    if isinstance(wanted, Text):
        from edgeai.engines.onnx.texts import Texts, tokenizer_text

        return Texts(wanted, tokenizer_text(artifact), where=str(artifact.path))
    from edgeai.engines.onnx.tensors import Tensors

    return Tensors([wanted])


def _check_ports(where: str, schema: Schema, ports: Ports) -> None:
    (wanted,) = schema.inputs
    names = set(wanted.graph) if isinstance(wanted, Text) else {wanted.name}
    if names != set(ports["inputs"]):
        raise _contradiction(
            where, f"it takes {', '.join(ports['inputs'])} where its schema says {', '.join(sorted(names))}"
        )
    name, dtype, shape = ports["output"]
    if name != schema.output or dtype not in FLOATS:
        raise _contradiction(where, f"its first output is {name!r} of {dtype} where its schema says {schema.output!r}")
    count = len(schema.labels) if schema.kind == "logits" else len(schema.targets)
    if shape and shape[-1] not in (None, count) and not (len(shape) == 1 and count == 1):
        raise _contradiction(where, f"it has {shape[-1]} outputs and {count} names for them")


def _contradiction(where: str, what: str) -> InvalidModel:
    return InvalidModel(f"{where!r} contradicts itself: {what}", hint="convert the model again")


class Classifier:
    """What a model takes and gives. Nothing here changes after it is made, so any number of threads may use it."""

    def __init__(self, artifact: Artifact, schema: Schema | None, reader: Reader, ports: Ports) -> None:
        import numpy as np

        self._name, self._schema, self.reader = artifact.name, schema, reader
        self._labels = schema is not None and schema.kind == "logits"
        targets = schema.targets if schema is not None else ()
        self.names: tuple[str, ...] = (
            schema.labels if schema is not None and self._labels else tuple(target.name for target in targets)
        )
        self._mean = np.array([target.mean for target in targets])
        self._std = np.array([target.std for target in targets])
        shapes = ports["inputs"]
        self._types = {name: shapes[name][0] for name in reader.names}
        first = next(iter(shapes.values()))[1]
        self.fixed = first[0] if first else None
        """How many items the graph takes at once, where it takes no other number."""

    def classify(self, items: Sequence[Any], infer: Infer, rows: int) -> list[Prediction]:
        """Return a prediction for each of ITEMS, computed by INFER in batches of at most ROWS."""
        check_items(items)
        found: list[Prediction] = []
        for batch in self.reader.batches(items, self.fixed or rows):
            found += self._predictions(infer(self._typed(batch)), batch)
        return found

    def _typed(self, batch: Batch) -> dict[str, Array]:
        """Return the feed of BATCH in the types of the graph, and with as many items as it takes."""
        import numpy as np

        feed = {name: array.astype(self._types[name], copy=False) for name, array in batch.feed.items()}
        if self.fixed is not None and batch.count < self.fixed:
            missing = self.fixed - batch.count
            feed = {
                name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()
            }
        return feed

    def _predictions(self, output: Array, batch: Batch) -> list[Prediction]:
        import numpy as np

        if not output.ndim or len(output) < batch.count:
            raise EngineCrashed(
                f"{self._name} gave an output of shape {output.shape} for {batch.count} items", hint="convert it again"
            )
        rows = output[: batch.count].reshape(batch.count, -1).astype(np.float64)
        if self._schema is None:
            return [
                Prediction((), values=tuple(row), warnings=said)
                for row, said in zip(rows.tolist(), batch.notices, strict=True)
            ]
        if rows.shape[1] != len(self.names):
            raise EngineCrashed(
                f"{self._name} gave {rows.shape[1]} numbers for {len(self.names)} names", hint="convert it again"
            )
        if batch.count == 1 and len(self.names) <= FEW:
            found = self.single(rows[0].tolist())
            found.warnings = batch.notices[0]
            return [found]
        if not np.isfinite(rows).all():
            raise self.broken(rows)
        if not self._labels:
            values = rows * self._std + self._mean
            return [
                Prediction(self.names, values=tuple(row), warnings=said)
                for row, said in zip(values.tolist(), batch.notices, strict=True)
            ]
        most = rows.argmax(axis=1)
        scores = 1 / np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)
        return [
            Prediction(self.names, tuple(row), index, score, (), said)
            for row, index, score, said in zip(
                rows.tolist(), most.tolist(), scores.tolist(), batch.notices, strict=True
            )
        ]

    def single(self, row: Sequence[float]) -> Prediction:
        """Return the prediction for the one output ROW, in plain Python: for few labels that is faster than numpy is to call."""
        if not self._labels:
            if not all(map(math.isfinite, row)):
                raise self.broken(row)
            values = tuple(
                value * std + mean
                for value, std, mean in zip(row, self._std.tolist(), self._mean.tolist(), strict=True)
            )
            return Prediction(self.names, values=values)
        # NaN and infinity go through each sum that they are in.
        if not isfinite(sum(row)):
            raise self.broken(row)
        most = max(row)
        if -RANGE < most < RANGE:  # nothing overflows, and what underflows is nothing beside the greatest
            score = exp(most) / sum(map(exp, row))
        else:
            score = 1.0 / sum([exp(value - most) for value in row])
        return Prediction(self.names, tuple(row), row.index(most), score)

    def broken(self, rows: Any) -> EngineCrashed:
        """Return the error for outputs that are no numbers."""
        what = "NaN" if any(map(math.isnan, _flat(rows))) else "infinity"
        return EngineCrashed(
            f"{self._name} gave {what} instead of numbers",
            hint="the item is far from what the model was trained on, or the file is broken",
        )


def _flat(rows: Any) -> list[float]:
    return [float(value) for value in (rows.reshape(-1) if hasattr(rows, "reshape") else rows)]


def check_items(items: Any) -> None:
    """Raise UsageError for what is one item, or none, instead of several."""
    single = isinstance(items, str | bytes | os.PathLike | Mapping) or type(items).__module__.startswith("PIL.")
    if single:
        raise UsageError(f"classify takes a list of items, and this is one, {items!r:.60}", hint="classify([item])")
    if not isinstance(items, Sequence) and type(items).__name__ != "ndarray":
        hint = "frame.to_dict('records')" if hasattr(items, "columns") else "classify([item])"
        raise UsageError(f"{type(items).__name__} is no list of items", hint=hint)
    if getattr(items, "ndim", 1) == 0:
        raise UsageError("an array without a first axis is no list of items", hint="classify([item])")
