"""Quantize a matrix block of columns by block of columns, each block making up for the errors of those before it.

The error of a matrix with inputs of the second moments H costs tr(E H Eᵀ). With H = M Mᵀ, M upper triangular, that is Σ_a |(E M)_a|² over
blocks a of columns, and block a of E M depends on the errors of the blocks up to a only. So block a is encoded not as it is but with what
cancels the sum so far: W_a + (Σ_{b<a} E_b M_ba) M_aa⁻¹ (optimal brain surgeon: Hassibi and Stork 1993; as rounding with feedback: Frantar
et al., GPTQ, arXiv 2210.17323, and Chee et al., QuIP, arXiv 2307.13304, section 3, whose LDLQ this is in blocks). libggml's own encoder
makes the codes of every block, so the result is a plain tensor of its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters.ggml_types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["DAMPING", "Feedback", "feedback_of", "one_thread_each"]

DAMPING = 0.02
"""Part of the mean diagonal that is added to it: the sums are of some thousand tokens, and other texts have other ones. SmolLM2-135M in
Q4_0: 0.02, 0.1, 0.5 and 2 give a mean KL of 0.063, 0.067, 0.072 and 0.100 on text like the calibration's and 0.109, 0.111, 0.150 and
0.137 on verse."""
LEAST_BLOCK = 32
WHOLE = ("F32", "F16", "BF16")
"""Types without blocks, whose errors are too small to be worth it."""
BLOCK = {item.name: item.block for item in GGML_TYPES.values()}


def one_thread_each() -> AbstractContextManager[object]:
    """Let numpy's products take one thread while the block runs: the threads here have a matrix, or a slab, each.

    So the results do not depend on the number of threads either, and no thread spins for another's part of a small product.
    """
    from threadpoolctl import threadpool_limits

    found: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """The upper triangular factor M of the second moments of a matrix's inputs, (columns, columns), and their diagonal, (1, columns)."""

    factor: F32
    importance: F32

    def blocks(self, kind: str) -> Iterator[tuple[int, int]]:
        """Yield the first and the last column (not included) of each block that is encoded at once in the type KIND."""
        step, size = max(LEAST_BLOCK, BLOCK[kind]), len(self.factor)
        if kind in WHOLE:
            step = size
        for first in range(0, size, step):
            yield first, min(first + step, size)


def feedback_of(columns: F32, damping: float = DAMPING) -> Feedback:
    """Return the feedback for a matrix whose inputs have the second moments COLUMNS, (columns, columns).

    Columns that no input ever reached count as much as DAMPING says.
    """
    import numpy as np

    size = len(columns)
    # np.linalg.cholesky gives a lower factor: of the matrix read backwards it is, read backwards, the upper one
    backwards = columns[::-1, ::-1].astype(np.float64)
    mean = float(np.trace(backwards)) / size or 1.0
    backwards[np.diag_indices(size)] += damping * mean
    factor = np.linalg.cholesky(backwards)[::-1, ::-1]
    importance = np.ascontiguousarray(np.maximum(columns.diagonal(), np.float32(1e-6 * mean)), np.float32)[None]
    return Feedback(factor=np.ascontiguousarray(factor, np.float32), importance=importance)
