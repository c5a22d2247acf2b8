"""The schema in a file: what a user gives and gets, and which graph inputs that becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.errors import WrongChoice

__all__ = ["VERSION", "check_labels", "default_axes", "default_schema", "graph_names"]

VERSION = 1
SCALE = 1 / 255
"""Of pixels from 0 to 255, where nothing else is said."""
IMAGE_CHANNELS = (1, 3)


def default_schema(
    name: str, labels: Sequence[str], shape: Sequence[int], dtype: str, axes: Mapping[int, str]
) -> dict[str, Any]:
    """Return the schema of a classifier NAME with one graph input of SHAPE, batch first, that nobody has described.

    (batch, 1 or 3, height, width) is an image of pixels scaled to 0…1; (batch, columns) is a table of the columns x0, x1, …, as they
    are; anything else, and whatever has other axes that vary, is a tensor: an array in a .npy file or in JSON. AXES names the axes
    that vary.
    """
    varies = [axis for axis in axes if axis]
    given: dict[str, Any]
    if len(shape) == 4 and shape[1] in IMAGE_CHANNELS and dtype == "float32" and not varies:
        channels = shape[1]
        given = {
            "kind": "image",
            "name": "image",
            "channels": channels,
            "height": shape[2],
            "width": shape[3],
            "resize": "bilinear",
            "scale": SCALE,
            "invert": False,
            "mean": [0.0] * channels,
            "std": [1.0] * channels,
        }
    elif len(shape) == 2 and dtype == "float32" and not varies:
        columns = [{"name": f"x{index}", "kind": "number", "mean": 0.0, "std": 1.0} for index in range(shape[1])]
        given = {"kind": "table", "name": "features", "columns": columns}
    else:
        sizes: list[int | str] = [axes.get(axis, size) for axis, size in enumerate(shape) if axis]
        given = {"kind": "tensor", "name": "input", "dtype": dtype, "shape": sizes}
    return {
        "version": VERSION,
        "name": name,
        "task": "classification",
        "inputs": [given],
        "output": {"name": "logits", "kind": "logits"},
        "labels": list(labels),
    }


def graph_names(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of the graph inputs that the SCHEMA speaks of."""
    inputs = schema.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        raise WrongChoice(f"the schema has {inputs!r:.60} as inputs", hint="inputs is a list of one object")
    names = inputs[0].get("graph", [inputs[0].get("name")])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise WrongChoice(f"the schema's input {inputs[0]!r:.60} has no name", hint='give it a "name"')
    return list(names)


def default_axes(schema: Mapping[str, Any] | None) -> dict[int, str]:
    """Return the axes that vary in each graph input: the batch, and for text the length."""
    if schema is not None and schema["inputs"][0].get("kind") == "text":
        return {0: "batch", 1: "length"}
    return {0: "batch"}


def check_labels(schema: Mapping[str, Any], outputs: int | None) -> None:
    """Raise WrongChoice where a classifier has other than one label for each of its OUTPUTS (None: not known)."""
    labels = schema.get("labels")
    if schema.get("task") != "classification":
        return
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise WrongChoice(f"{labels!r:.60} are no labels", hint="labels is a list of texts, one for each output")
    if len(set(labels)) != len(labels):
        raise WrongChoice(f"the labels {labels!r:.60} have one twice", hint="each class needs a name of its own")
    if outputs is not None and outputs != len(labels):
        raise WrongChoice(
            f"the module gives {outputs} numbers for each input, and there are {len(labels)} labels",
            hint="labels are the names of the classes in the order of the outputs",
        )
