"""A llama_batch over numpy arrays: filled at once, where the binding's own takes a Python call for every number of every token."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["decode"]


def decode(
    lib: Any,
    context: Any,
    tokens: npt.ArrayLike,
    positions: npt.ArrayLike,
    sequences: npt.ArrayLike,
    outputs: npt.ArrayLike | Sequence[bool],
    vectors: npt.NDArray[np.float32] | None = None,
) -> int:
    """Run llama_decode on CONTEXT and return its code. All are (tokens,): OUTPUTS is 1 where a result is wanted.

    VECTORS, (tokens, dim), go in instead of TOKENS where they are given.
    """
    import numpy as np

    sequence = np.ascontiguousarray(sequences, np.int32)
    count = len(sequence)
    arrays: dict[str, Any] = {
        "pos": np.ascontiguousarray(positions, np.int32),
        "n_seq_id": np.ones(count, np.int32),
        "seq_id": (sequence.ctypes.data + 4 * np.arange(count)).astype(np.uintp),
        "logits": np.ascontiguousarray(outputs, np.int8),
    }
    if vectors is None:
        arrays["token"] = np.ascontiguousarray(tokens, np.int32)
    else:
        arrays["embd"] = np.ascontiguousarray(vectors, np.float32)
    batch = lib.llama_batch(n_tokens=count)
    for name, kind in lib.llama_batch._fields_:
        if name in arrays:
            setattr(batch, name, ctypes.cast(arrays[name].ctypes.data, kind))
    return int(lib.llama_decode(context, batch))
