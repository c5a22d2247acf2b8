"""The weights of a file against those of its source, block by block: what logits are too coarse to see.

A quantizer that does any good leaves a block of weights nearer to the source than a block of zeros is. So the squared error of a block,
divided by the sum of its squares, is below 1; a block that stands in another's place has about 2, whatever the type, and a matrix with
its rows in another order has it everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import read_at
from converters.dequantize import decode
from converters.families import ModelPlan, TensorPlan
from converters.ggml_types import GGML_TYPES
from converters.header import TensorInfo, read_header
from edgeai.evaluation.limits import at_most
from edgeai.types import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["weight_rows"]

SLAB_ITEMS = 1 << 20
BLOCK = {item.name: item.block for item in GGML_TYPES.values()}
NUMBERS_LIMIT = 1e-12
"""F32, F16 and BF16 are the source's numbers rounded to nearest, so this is nothing but room for numbers near zero."""
BLOCK_LIMIT = 1.0
COARSE = ("IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")
"""Types that are worse than zeros for weights that were not trained for them."""
FLOOR = 1e-3
"""Blocks with less than this part of the mean square of their tensor are held against that: near zero any error is large."""


def weight_rows(path: Path, plan: ModelPlan) -> list[Row]:
    """Return the rows about the weights in the GGUF file PATH: the worst block of all, and the worst tensor.

    Tensors that only one of the two has are left to the runtime, which does not load a file that lacks one it needs.
    """
    planned = {tensor.name: tensor for tensor in plan.tensors}
    exact, coarse = (0.0, "none"), (0.0, "none")
    whole: tuple[float, str, str] = (0.0, "", "")
    kinds: set[str] = set()
    for info in read_header(path).tensors:
        if info.name not in planned or info.type in COARSE:
            continue
        total, worst = errors(path, info, planned[info.name])
        if BLOCK[info.type] == 1:
            kinds.add(info.type)
            exact = max(exact, (worst, info.name), key=lambda item: (math.isnan(item[0]), item[0]))
        else:
            coarse = max(coarse, (worst, info.name), key=lambda item: (math.isnan(item[0]), item[0]))
            whole = max(whole, (total, info.name, info.type))
    found = []
    if exact[1] != "none":
        named = f"weights in {' and '.join(sorted(kinds))}: worst row, NMSE"
        found.append(with_place(at_most(named, exact[0], NUMBERS_LIMIT), exact[1]))
    if coarse[1] != "none":
        found.append(with_place(at_most("quantized weights: worst block, NMSE", coarse[0], BLOCK_LIMIT), coarse[1]))
        found.append(
            Row(name="quantized weights: worst tensor, NMSE", value=f"{whole[0]:.3g} ({whole[1]}, {whole[2]})")
        )
    return found


def with_place(row: Row, tensor: str) -> Row:
    """Return ROW; where it fails its name says in which TENSOR."""
    return row if row.ok else replace(row, name=f"{row.name} in {tensor}")


def errors(path: Path, info: TensorInfo, tensor: TensorPlan) -> tuple[float, float]:
    """Return the NMSE of one tensor and that of its worst block."""
    import numpy as np

    parts = list(block_errors(path, info, tensor))
    error, power = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    mean = float(power.mean())
    if not mean:
        return (0.0, 0.0) if not error.any() else (math.inf, math.inf)
    return float(error.mean()) / mean, float((error / np.maximum(power, FLOOR * mean)).max())


def block_errors(path: Path, info: TensorInfo, tensor: TensorPlan) -> Iterator[tuple[F32, F32]]:
    """Yield (squared error, squared source), each (blocks,), one slab of rows at a time."""
    columns, rows = info.shape[0], tensor.shape[0]
    width = BLOCK[info.type] if BLOCK[info.type] > 1 else columns
    per_row = math.prod(tensor.shape[1:])
    step = max(1, SLAB_ITEMS // max(1, per_row) // tensor.block_rows) * tensor.block_rows
    if len(tensor.shape) == 1 or tensor.transposed:
        step = rows
    nbytes = info.nbytes // rows
    for first in range(0, rows, step):
        last = min(first + step, rows)
        data = read_at(path, info.offset + first * nbytes, (last - first) * nbytes)
        found = decode(data, info.type, columns).reshape(-1, width)
        wanted = rounded(tensor.rows(first, last).reshape(-1, width), info.type)
        yield ((found - wanted) ** 2).sum(-1), (wanted**2).sum(-1)


def rounded(rows: F32, kind: str) -> F32:
    """Return ROWS rounded to the nearest number of the type KIND, ties to even; as they are for types that are no plain numbers."""
    import numpy as np

    if kind == "F16":
        return rows.astype(np.float16).astype(np.float32)
    if kind != "BF16":
        return rows
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # as ggml_compute_fp32_to_bf16 in ggml-impl.h
    return bits.view(np.float32)
