"""Weights in blocks, as MatMulNBits and GatherBlockQuantized of onnxruntime have them: codes, scales and zero points → numbers, and back.

Layout: docs/ContribOperators.md of onnxruntime. A block is some neighbouring inputs of one output; (code - zero point) · scale is a weight.
Without zero points all of them are the middle of the codes. Of numbers of 4 bits the lower half of a byte comes first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from converters.onnx.header import Header, Tensor
from converters.onnx.matrices import EMBEDDING, Matrix

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from converters.feedback import Feedback

    F32 = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Ints = npt.NDArray[np.int64]

__all__ = ["block_bytes", "can_recode", "graft", "recode", "weights_of"]

KIND, BLOCK, BITS = "Q4_0", 32, 4
"""libggml's type whose blocks are those of MatMulNBits with 4 bits and no zero points, but for the order of its codes and the type of its
scales."""
SLAB = 1 << 22
"""Weights that are encoded at once."""


def block_bytes(rows: int, columns: int, bits: int, block: int) -> int:
    """Return what ROWS × COLUMNS weights of BITS bits take in blocks of BLOCK with scales in float32 and no zero points."""
    blocks = math.ceil(columns / block)
    return rows * blocks * (block * bits // 8 + 4)


def weights_of(header: Header, matrix: Matrix, rows: Ints | slice = slice(None)) -> F32:
    """Return the ROWS (outputs) of MATRIX of the graph, (rows, columns), in float32."""
    import numpy as np

    stored = {tensor.name: tensor for tensor in header.tensors}
    tensors = [stored[name] for name in matrix.tensors]
    if matrix.bits == 32:
        values = mapped(header, tensors[0], "<f4").reshape(tensors[0].shape)
        return np.ascontiguousarray(values[rows] if matrix.name == EMBEDDING else values[:, rows].T, np.float32)
    blocks = math.ceil(matrix.columns / matrix.block)
    codes = unpacked(mapped(header, tensors[0], "u1").reshape(matrix.rows, -1)[rows], matrix.bits)
    codes = codes[:, : blocks * matrix.block].reshape(len(codes), blocks, -1)
    scales = mapped(header, tensors[1], "<f4").reshape(matrix.rows, blocks)[rows]
    middle: Any = 1 << (matrix.bits - 1)
    if len(tensors) > 2:
        middle = unpacked(mapped(header, tensors[2], "u1").reshape(matrix.rows, -1)[rows], matrix.bits)[
            :, :blocks, None
        ]
    values = (codes.astype(np.float32) - np.asarray(middle, np.float32)) * scales[:, :, None]
    result: F32 = values.reshape(len(codes), -1)[:, : matrix.columns]
    return result


def unpacked(codes: Bytes, bits: int) -> Bytes:
    """Return CODES, (rows, bytes), as one number a byte."""
    import numpy as np

    if bits == 8:
        return codes
    found: Bytes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    return found


def mapped(header: Header, tensor: Tensor, dtype: str, mode: str = "r") -> Any:
    """Return the numbers of TENSOR where they lie, in one dimension; with MODE "r+" what is assigned to them is written."""
    import numpy as np

    assert tensor.offset is not None, tensor.name  # noqa: S101 - the builder writes raw bytes only
    place = header.path if tensor.file is None else header.path.parent / tensor.file
    count = tensor.nbytes // np.dtype(dtype).itemsize
    return np.memmap(place, np.dtype(dtype), mode, tensor.offset, (count,))  # type: ignore[call-overload]


def can_recode(matrix: Matrix) -> bool:
    """Whether the blocks of MATRIX are those of libggml."""
    return (matrix.bits, matrix.block, len(matrix.tensors)) == (BITS, BLOCK, 2) and matrix.columns % BLOCK == 0


def recode(header: Header, matrix: Matrix, exact: tuple[Header, Matrix], feedback: Feedback) -> None:
    """Give MATRIX of the graph, which `can_recode`, better codes for its weights, those of EXACT: each block makes up for errors before it.

    The bytes are changed where they are; their number is the same.
    """
    import numpy as np

    from converters.quantize import encode_with_feedback

    stored = {tensor.name: tensor for tensor in header.tensors}
    codes = mapped(header, stored[matrix.tensors[0]], "u1", "r+").reshape(matrix.rows, -1)
    scales = mapped(header, stored[matrix.tensors[1]], "<f4", "r+").reshape(matrix.rows, -1)
    step = max(1, SLAB // matrix.columns)
    for first in range(0, matrix.rows, step):
        part = slice(first, min(first + step, matrix.rows))
        data, _ = encode_with_feedback(weights_of(*exact, part), KIND, feedback)
        blocks = np.frombuffer(data, np.uint8).reshape(part.stop - first, -1, 2 + BLOCK // 2)
        halves = blocks[:, :, 2:]  # the first sixteen codes in the lower halves of the bytes
        ordered = np.concatenate([halves & 15, halves >> 4], -1)
        codes[part] = (ordered[:, :, ::2] | ordered[:, :, 1::2] << 4).reshape(len(blocks), -1)
        scales[part] = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0]


def graft(source: tuple[Header, Matrix], target: tuple[Header, Matrix]) -> None:
    """Put the bytes of a matrix of one graph into the same matrix of another, of the same type."""
    tensors = [{tensor.name: tensor for tensor in header.tensors} for header, _ in (source, target)]
    for one, other in zip(source[1].tensors, target[1].tensors, strict=True):
        mapped(target[0], tensors[1][other], "u1", "r+")[:] = mapped(source[0], tensors[0][one], "u1")
