"""Weights in float16, everything computed in float32.

A weight becomes a float16 initializer and a Cast, which onnxruntime folds away when it loads the file. The other way, a graph that
computes in float16, has no kernels in onnxruntime on most CPUs: it puts a Cast around each operator, and an activation above 65504
becomes infinite. Here nothing can overflow but a weight, and such a tensor stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.errors import UnsupportedModel

__all__ = ["LARGEST", "LEAST_ELEMENTS", "halve", "halve_file"]

LARGEST = 65504.0
"""The largest float16."""
SMALLEST = 2.0**-14
"""The smallest float16 with all of its bits; below it they are lost one after the other."""
SMALL_SHARE = 1e-3
"""How much of a tensor's sum of squares may lie below that."""
LEAST_ELEMENTS = 256
"""What is smaller (norms, biases, constants) weighs nothing in the file, and some of it scales everything."""


def halve(model: Any) -> list[str]:
    """Store the float32 weights of the onnx.ModelProto MODEL as float16; return the names of large ones that had to stay float32."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    stayed, casts, halves = [], [], {}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    ends = {value.name for value in graph.output}
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type == onnx.TensorProto.FLOAT else None
        if values is None or values.size < LEAST_ELEMENTS:
            continue
        if not holds(values) or tensor.name in ends:
            stayed.append(tensor.name)
            continue
        name = f"{tensor.name}.f16"
        while name in taken:
            name += "_"
        halves[tensor.name] = numpy_helper.from_array(values.astype("float16"), name)
        casts.append(
            onnx.helper.make_node("Cast", [name], [tensor.name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
        )
    for tensor in graph.initializer:
        if tensor.name in halves:
            tensor.CopyFrom(halves[tensor.name])
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return stayed


def holds(values: Any) -> bool:
    """Whether float16 can hold VALUES: none is too large, and those that are too small make up next to nothing of them."""
    import numpy as np

    size = np.abs(values)
    if not np.isfinite(size).all() or size.max(initial=0.0) > LARGEST:
        return False
    total = float(np.square(size, dtype=np.float64).sum())
    small = float(np.square(size[size < SMALLEST], dtype=np.float64).sum())
    return total == 0 or small / total < SMALL_SHARE


def halve_file(source: Path, target: Path) -> list[str]:
    """Write the file SOURCE as TARGET with its weights in float16; return what `halve` does."""
    from converters.onnx.metadata import load_graph, set_metadata, write_bytes

    model = load_graph(source)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UnsupportedModel(f"the weights of {source.name!r} lie beside it", hint="export it with dtype f16")
    stayed = halve(model)
    set_metadata(model, {"edgeai.quant": "F16"})
    write_bytes(model, target)
    return stayed
