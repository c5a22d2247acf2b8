"""The sampler chain of a request on a llama context."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from edgeai.engines.chain import Chain
from edgeai.engines.llamacpp.handle import Handle
from edgeai.types import GenerationConfig

__all__ = ["Sampler"]

IMPORT_S = 0.05
"""Seconds spent on libllama's way of finding the greatest number before numpy is imported, which takes about as long."""


class Sampler:
    """Draws from the logits of the last batch."""

    def __init__(self, handle: Handle, config: GenerationConfig, seed: int, prompt: Sequence[int] = ()) -> None:
        self._lib: Any = handle.lib
        self._handle, self._context = handle, handle.context
        self._chain = Chain(handle.lib, handle.n_vocab, config, seed, prompt)
        self._biases = config.logit_bias
        self._biased: tuple[Any, Any] | None = None  # tokens, and what is added to their logits

    def sample(self, index: int = -1) -> int:
        """Draw the next token from the logits at INDEX of the last batch, and remember it."""
        if self._chain.greatest and ("numpy" in sys.modules or self._handle.choosing_s > IMPORT_S):
            return self._choose(self._handle.logits(index))
        began = time.perf_counter()
        token = int(self._lib.llama_sampler_sample(self._chain.native, self._context, index))
        if self._chain.greatest:
            self._handle.choosing_s += time.perf_counter() - began
        return token

    def _choose(self, row: Any) -> int:
        """Return the token of the greatest of the logits ROW, an array that is changed by the biases."""
        if self._biases:
            if self._biased is None:
                import numpy as np

                self._biased = np.array([*self._biases]), np.array([*self._biases.values()], np.float32)
            row[self._biased[0]] += self._biased[1]
        return int(row.argmax())

    def free(self) -> None:
        """Free the chain."""
        self._chain.free()
