"""What each type would cost each tensor, in nats of KL: the error that its codes leave, weighed by what it does to the model's answers.

The cost is ½ Σ_i G_i |(E M)_i|² with `converters.curvature`'s G for the rows and, of its H = M Mᵀ, the blocks of M that feedback leaves
to each block of columns (`converters.feedback`). The codes are libggml's own, of a sample of rows: those that matter most, and every so
many of the others. To that comes what the processor loses when it rounds the inputs of such a matrix, which depends on the type too:
Gemma-3-270M with ffn_down in Q6_K and all else in F16 has a mean KL of 0.0065, in Q8_0, whose inputs are rounded in shorter blocks,
0.0009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converters.curvature import Curvature
from converters.errors import BrokenCheckpoint
from converters.families import TensorPlan
from converters.feedback import DAMPING, Feedback, feedback_of
from converters.quantmap import BLOCK_OF

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

__all__ = ["CANDIDATES", "SLOW", "candidates", "check_finite", "costs", "feedback_from"]

CANDIDATES = (
    "IQ2_XXS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K",
    "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16",
)  # fmt: skip
"""Types that are tried. Left out are those that only models trained for them survive (ternary, one bit), BF16, which has the size of F16,
and F32."""
SLOW = ("IQ2_XXS", "IQ2_S")
"""Types that take a hundred times as long to try as others: only where a file must be so small."""
SAMPLE = 3 << 16
"""Weights of a tensor that are encoded to see what a type costs it."""
SLAB = 1 << 22
WHOLE = 8
"""How many tokens of a text that counts as a whole say as much as one that counts by itself."""


def candidates(columns: int) -> tuple[str, ...]:
    """Return the types whose blocks fit into rows of COLUMNS."""
    return tuple(kind for kind in CANDIDATES if columns % BLOCK_OF[kind] == 0)


def feedback_from(curvature: Curvature, name: str) -> Feedback:
    """Return the feedback of the tensor NAME, with more damping where its second moments are of few tokens, or of whole texts."""
    products = curvature.columns(name)
    samples = max(1, curvature.tokens) / (WHOLE if curvature.whole else 1)
    return feedback_of(products, max(DAMPING, 0.1 * len(products) / samples))


def costs(tensor: TensorPlan, curvature: Curvature, kinds: Sequence[str]) -> Mapping[str, float]:
    """Return type → expected rise of the mean KL, in nats, when TENSOR alone has it.

    Raises BrokenCheckpoint for a weight that is not a finite number, wherever in the tensor it is.
    """
    import numpy as np

    weights = curvature.rows(tensor).astype(np.float64)
    chosen, shares = sample(weights, max(64, SAMPLE // tensor.shape[-1]))
    rows = pick(tensor, chosen)
    feedback = feedback_from(curvature, tensor.name)
    return {
        kind: expected(rows, kind, feedback, shares) + curvature.rounded(tensor.name, BLOCK_OF[kind]) for kind in kinds
    }


def check_finite(tensor: TensorPlan) -> None:
    """Read all of TENSOR, one slab at a time; raises BrokenCheckpoint for a value that is not a finite number."""
    pick(tensor, None)


def sample(weights: npt.NDArray[np.float64], count: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return which of the rows with these WEIGHTS are looked at, and what each stands for: half are the heaviest, half are every so many.

    The shares sum up to the sum of the weights.
    """
    import numpy as np

    if len(weights) <= count:
        return np.arange(len(weights)), weights
    order = np.argsort(-weights, kind="stable")
    heavy, rest = order[: count // 2], np.sort(order[count // 2 :])
    spread = rest[np.linspace(0, len(rest) - 1, count - len(heavy)).round().astype(np.int64)]
    shares = weights[spread]
    shares = shares * (weights[rest].sum() / shares.sum()) if shares.sum() > 0 else shares
    chosen, shares = np.concatenate([heavy, spread]), np.concatenate([weights[heavy], shares])
    order = np.argsort(chosen, kind="stable")
    return chosen[order], shares[order]


def pick(tensor: TensorPlan, chosen: Ints | None) -> F32:
    """Return the rows CHOSEN of TENSOR; all are read, one slab at a time, and checked."""
    import numpy as np

    step = max(1, SLAB // math.prod(tensor.shape[1:]) // tensor.block_rows) * tensor.block_rows
    step = tensor.shape[0] if tensor.transposed or len(tensor.shape) == 1 else step
    parts = [np.empty((0, *tensor.shape[1:]), np.float32)]
    for first in range(0, tensor.shape[0], step):
        last = min(first + step, tensor.shape[0])
        rows = tensor.rows(first, last)
        if not np.isfinite(rows).all():
            raise BrokenCheckpoint(
                f"tensor {tensor.shown_name!r} has values that are not finite numbers, in rows {first} to {last - 1}",
                hint="the training that made it went wrong, or the file is damaged",
            )
        if chosen is None:
            continue
        inside = chosen[(chosen >= first) & (chosen < last)] - first
        parts.append(rows[inside])
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def expected(rows: F32, kind: str, feedback: Feedback, shares: npt.NDArray[np.float64]) -> float:
    """Return what the type KIND costs the ROWS, (rows, columns), which stand for SHARES of the tensor; infinity where it cannot hold
    them."""
    import numpy as np

    from converters.dequantize import decode
    from converters.quantize import encode

    try:
        found = decode(encode(rows, kind, feedback.importance), kind, rows.shape[1])
    except OverflowError:
        return float("inf")
    errors, total = rows - found, np.zeros(len(rows))
    for first, last in feedback.blocks(kind):
        left = errors[:, first:last] @ feedback.factor[first:last, first:last]
        total += (left.astype(np.float64) ** 2).sum(1)
    return 0.5 * float(total @ shares)
