"""Graphs, and the texts in their metadata_props, written without touching weights that lie beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.errors import InvalidModel

__all__ = ["load_graph", "set_metadata", "write_bytes", "write_metadata"]


def load_graph(path: Path) -> Any:
    """Return the onnx.ModelProto in the file PATH without the weights that lie beside it. Raises InvalidModel."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InvalidModel(f"{str(path)!r} is no ONNX file: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise InvalidModel(f"{str(path)!r} is no ONNX file: it has no graph")
    return model


def set_metadata(model: Any, values: Mapping[str, str]) -> None:
    """Add VALUES to the metadata of the onnx.ModelProto MODEL, or replace them, with the keys in order."""
    found = {item.key: item.value for item in model.metadata_props} | dict(values)
    del model.metadata_props[:]
    for key, value in sorted(found.items()):
        model.metadata_props.add(key=key, value=value)


def write_bytes(model: Any, path: Path) -> None:
    """Write the onnx.ModelProto MODEL to PATH; equal models give equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Add VALUES to the metadata of the file PATH, which nothing but the caller knows of yet: it is written in place."""
    model = load_graph(path)
    set_metadata(model, values)
    write_bytes(model, path)
