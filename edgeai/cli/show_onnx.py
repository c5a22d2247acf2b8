"""What `edgeai show` says of an ONNX model: the sections that a GGUF file does not have, or has otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeai.artifact import Artifact

__all__ = ["model_facts", "onnx_json", "port_rows", "quant_words", "schema_rows"]

SHOWN = 6
"""Labels and columns that are named."""
TOKENIZER = "edgeai.tokenizer"


def model_facts(artifact: Artifact) -> dict[str, Any]:
    """Return what stands in the section Model besides what every model has."""
    return {key: artifact.metadata.get(f"onnx.{key}") for key in ("opset", "producer")}


def quant_words(artifact: Artifact) -> str:
    """Return the type that the file says it has, and what most weights are where that is another one."""
    most = str(artifact.metadata.get("onnx.most", artifact.quant))
    return artifact.quant if artifact.quant.startswith(most) else f"{artifact.quant} (most weights are {most})"


def port_rows(artifact: Artifact) -> list[tuple[str, str]]:
    """Return the inputs and outputs of the graph."""
    found = []
    for name in ("inputs", "outputs"):
        for at, port in enumerate(artifact.metadata.get(f"onnx.{name}", ())):
            found.append((name if not at else "", str(port)))
    return found


def schema_rows(schema: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a model takes and gives, in short, from a schema in the file, which may be anything."""
    if schema is None:
        return {}
    inputs = schema.get("inputs")
    given = inputs[0] if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) else {}
    return {
        "takes": takes(given),
        "columns": names(item.get("name") for item in items(given.get("columns"))),
        "labels": names(schema.get("labels") or ()),
        "values": names(item.get("name") for item in items(schema.get("targets"))),
    }


def takes(given: Mapping[str, Any]) -> str:
    """Return in words what one input is."""
    kind = str(given.get("kind"))
    if kind == "image":
        colours = "grey" if given.get("channels") == 1 else "colour"
        return f"pictures, {given.get('width')} × {given.get('height')}, {colours}"
    if kind == "text":
        return f"texts of up to {given.get('max_tokens')} tokens"
    if kind == "series":
        return f"series, {given.get('channels')} × {given.get('length')}"
    return {"table": "rows", "tensor": f"arrays of {given.get('dtype')}"}.get(kind, kind)


def items(value: Any) -> Iterable[Mapping[str, Any]]:
    """Return the objects in VALUE."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def names(values: Any) -> str:
    """Return the first of VALUES, and how many there are."""
    found = [str(value) for value in values] if isinstance(values, Iterable) else []
    more = f" … ({len(found)})" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def onnx_json(artifact: Artifact) -> dict[str, Any]:
    """Return what the JSON has besides the facts: the schema as values, and of a tokenizer in the file no more than its length."""
    metadata = dict(artifact.metadata)
    metadata.pop("edgeai.schema", None)
    inside = metadata.pop(TOKENIZER, None)
    if isinstance(inside, str):
        metadata["edgeai.tokenizer.characters"] = len(inside)
    return {"task": artifact.task, "schema": artifact.schema, "metadata": metadata}
