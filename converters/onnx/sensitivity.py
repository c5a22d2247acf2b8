"""What each type would cost each matrix of a graph, in nats of KL: the error that its blocks leave, weighed by what it does to the answers.

For the error E of the blocks as they are in a graph that was built it is ½ Σ_i G_i E_i H E_iᵀ, with G and H of `converters.curvature`.
The runtime also rounds the inputs of such a matrix W, to 8 bits in blocks: that costs ½ Σ_ij G_i W_ij² times the variance of the rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from converters.curvature import Curvature
from converters.onnx.blocks import weights_of
from converters.onnx.header import Header
from converters.onnx.matrices import EMBEDDING, HEAD, Matrix
from converters.sensitivity import SAMPLE, feedback_from, sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]

__all__ = ["costs", "tensors_of"]

TENSORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attn.qkv_proj": (("attn_q", "attn_k", "attn_v"), ("attn_qkv",)),
    "attn.q_proj": (("attn_q",),),
    "attn.k_proj": (("attn_k",),),
    "attn.v_proj": (("attn_v",),),
    "attn.o_proj": (("attn_output",),),
    "mlp.gate_proj": (("ffn_gate",), ("ffn_up",)),
    "mlp.up_proj": (("ffn_up",),),
    "mlp.down_proj": (("ffn_down",),),
    "conv.in_proj": (("shortconv.in_proj",),),
    "conv.out_proj": (("shortconv.out_proj",),),
}
"""Part of a layer → the tensors of the families whose rows it has, in their order. Where gate and up are one, gate is the first half."""
PEAK = 0.45
"""The mean square of the largest number of a block, as a part of the sum of the mean squares of all: normal numbers have 0.2 in a block of
32, outliers have more. SmolLM2-135M in int8 has a mean KL of 0.0057, of which its weights make 0.0016."""
STEPS = 127
"""Steps of the rounding of inputs from zero to the largest number of a block."""


def tensors_of(name: str, curvature: Curvature) -> tuple[str, ...]:
    """Return the tensors that CURVATURE knows whose rows the matrix NAME has; none where it knows nothing of it."""
    if name in (HEAD, EMBEDDING):
        own = "output.weight" if name == HEAD else "token_embd.weight"
        return (own,) if own in curvature else ("token_embd.weight",) if "token_embd.weight" in curvature else ()
    _, layer, block, part = name.split(".")
    for names in TENSORS[f"{block}.{part}"]:
        found = tuple(f"blk.{layer}.{one}.weight" for one in names)
        if all(one in curvature for one in found):
            return found
    return ()


def row_weights(matrix: Matrix, curvature: Curvature) -> F64:
    """Return how much each row of MATRIX matters, (rows,)."""
    import numpy as np

    found = np.concatenate([curvature.source_rows(name) for name in tensors_of(matrix.name, curvature)])
    if len(found) == 2 * matrix.rows:
        found = found[: matrix.rows] if matrix.name.endswith("gate_proj") else found[matrix.rows :]
    result: F64 = found.astype(np.float64)
    return result


def costs(
    exact: tuple[Header, Matrix], built: Mapping[str, tuple[Header, Matrix]], curvature: Curvature, *, rounded: bool
) -> dict[str, float]:
    """Return type → expected rise of the mean KL, in nats, when a matrix alone has it; EXACT is it in float32, BUILT type → it in blocks.

    ROUNDED: the runtime rounds inputs.
    """
    import numpy as np

    matrix = exact[1]
    name = tensors_of(matrix.name, curvature)[0]
    factor = feedback_from(curvature, name).factor.astype(np.float64)
    chosen, shares = sample(row_weights(matrix, curvature), max(64, SAMPLE // matrix.columns))
    values = weights_of(*exact, chosen)
    found = {}
    for kind, (header, blocks) in built.items():
        errors = (weights_of(header, blocks, chosen) - values).astype(np.float64)
        total = ((errors @ factor) ** 2).sum(1)
        if rounded and matrix.name != EMBEDDING:
            total += (values.astype(np.float64) ** 2) @ spread(np.diagonal(curvature.columns(name)), blocks.block)
        found[kind] = 0.5 * float(total @ shares)
    return found


def spread(squares: npt.NDArray[np.floating], block: int) -> F64:
    """Return the variance of the rounding of inputs with these mean SQUARES, (columns,), in blocks of BLOCK."""
    import numpy as np

    sums = np.add.reduceat(squares.astype(np.float64), np.arange(0, len(squares), block))
    result: F64 = (PEAK * sums / STEPS**2 / 12).repeat(block)[: len(squares)]
    return result
