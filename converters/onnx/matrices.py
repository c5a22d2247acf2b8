"""The matrices of a language model in ONNX: what a user calls them, their nodes in the graph, and the type that each has in a built one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from converters.onnx.header import Header

__all__ = ["BITS", "EMBEDDING", "HEAD", "PACKED_QKV", "QKV", "Matrix", "matrices", "names_of", "node_of"]

BITS: Mapping[str, int] = {"int4": 4, "int8": 8, "f32": 32, "fp32": 32}
"""The types that a matrix can have → bits of one weight, without the scales of its blocks."""
HEAD, EMBEDDING = "lm_head", "embed_tokens"
QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
PACKED_QKV = "attn.qkv_proj"
PARTS = (
    PACKED_QKV,
    *QKV,
    "attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "conv.in_proj",
    "conv.out_proj",
)
"""The matrices of a layer, as the builder (0.18: make_matmul in models/builders/base.py and lfm2.py) names their nodes. Query, key and
value are one matrix where a family has no norms between them and all three are to have the same type."""
STORED = re.compile(r"(?:model\.)?(layers\.\d+\.[a-z]+\.[a-z]+_proj|lm_head)\.MatMul\.weight(?:_Q\d+(?:G\d+)?)?")
ROWS = re.compile(r"model\.embed_tokens\.weight(?:_Q\d+)?")
SHARED = "/model/embed_tokens/Reshape/output_0"
"""The input of an embedding that takes its rows from the head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix as the graph has it: bits of a weight, rows (outputs) × columns (inputs), the size of a block (0 in float32), and the
    names of its tensors: weights or codes, scales, zero points. `nbytes` is what these take."""

    name: str
    bits: int
    rows: int
    columns: int
    block: int
    tensors: tuple[str, ...]
    nbytes: int


def names_of(layers: int) -> tuple[str, ...]:
    """Return the names that matrices of a model of LAYERS layers may have; no model has them all."""
    return (HEAD, EMBEDDING, *(f"layers.{layer}.{part}" for layer in range(layers) for part in PARTS))


def node_of(name: str) -> str:
    """Return the name of the node that the matrix NAME belongs to."""
    if name == HEAD:
        return "/lm_head/MatMul"
    if name == EMBEDDING:
        return "/model/embed_tokens/Gather"
    _, layer, block, part = name.split(".")
    return f"/model/layers.{layer}/{block}/{part}/MatMul"


def matrices(header: Header) -> dict[str, Matrix]:
    """Return name → matrix of a built graph. One matrix for both ends is that of the head."""
    stored = {tensor.name: tensor for tensor in header.tensors}
    found: dict[str, Matrix] = {}
    inside: set[str] = set()
    for item in header.packed:
        inside.update(item.inputs)
        name = name_in(item.inputs[0])
        if name is None:
            continue
        codes = stored[item.inputs[0]]
        rows, columns = item.rows, item.columns
        if (
            name == EMBEDDING
        ):  # which does not say its size; codes of 4 bits may have a type of their own, or lie in bytes
            rows, columns = codes.shape
            columns *= 8 // item.bits if codes.dtype == "uint8" else 1
        nbytes = sum(stored[tensor].nbytes for tensor in item.inputs)
        found[name] = Matrix(
            name=name, bits=item.bits, rows=rows, columns=columns, block=item.block, tensors=item.inputs, nbytes=nbytes
        )
    for tensor in header.tensors:
        name = name_in(tensor.name)
        if name is None or tensor.name in inside or tensor.dtype != "float32" or len(tensor.shape) != 2:
            continue
        # a MatMul multiplies with (inputs, outputs), and an embedding has its rows as they are
        rows, columns = tensor.shape if name == EMBEDDING else tensor.shape[::-1]
        found[name] = Matrix(
            name=name, bits=32, rows=rows, columns=columns, block=0, tensors=(tensor.name,), nbytes=tensor.nbytes
        )
    return found


def name_in(tensor: str) -> str | None:
    """Return which matrix the tensor TENSOR is the weights or codes of; None for any other tensor."""
    if ROWS.fullmatch(tensor):
        return EMBEDDING
    match = STORED.fullmatch(tensor)
    return match.group(1) if match else None
