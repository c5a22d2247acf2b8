"""A GenerationConfig as libllama's native sampler chain."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from edgeai.engines.llamacpp.handle import Handle
from edgeai.types import GenerationConfig

__all__ = ["Sampler"]

IMPORT_S = 0.05
"""Seconds spent on libllama's way of finding the greatest number before numpy is imported, which takes about as long."""
PENALTY_WINDOW = 64  # tokens; llama.cpp's default for repeat_last_n, common/common.h
COLDEST = 1e-6
"""Temperatures below this draw the likeliest token as 0 does; logits divided by much less overflow in libllama."""


class Sampler:
    """A sampler chain in llama.cpp's default order: bias, penalties, top-k, top-p, min-p, temperature, draw.

    Repetition of what the prompt says counts too, as in llama.cpp and transformers.
    """

    def __init__(self, handle: Handle, config: GenerationConfig, seed: int, prompt: Sequence[int] = ()) -> None:
        self._lib: Any = handle.lib
        self._handle, self._context = handle, handle.context
        lib = self._lib
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if config.logit_bias:
            biases = (lib.llama_logit_bias * len(config.logit_bias))(*config.logit_bias.items())
            self._add(lib.llama_sampler_init_logit_bias(handle.n_vocab, len(biases), biases))
        if config.repeat_penalty != 1.0:
            self._add(lib.llama_sampler_init_penalties(handle.n_vocab, PENALTY_WINDOW, config.repeat_penalty, 0.0, 0.0))
            for token in prompt[-PENALTY_WINDOW:]:
                lib.llama_sampler_accept(self._chain, token)
        greedy = config.temperature < COLDEST
        self._greatest = greedy and config.repeat_penalty == 1.0
        self._biases = config.logit_bias
        self._biased: tuple[Any, Any] | None = None  # tokens, and what is added to their logits
        if greedy:
            self._add(lib.llama_sampler_init_greedy())
            return
        if config.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(config.top_k))
        if config.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(config.top_p, 1))
        if config.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(config.min_p, 1))
        self._add(lib.llama_sampler_init_temp(config.temperature))
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        self._lib.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, index: int = -1) -> int:
        """Draw the next token from the logits at INDEX of the last batch, and remember it."""
        if self._greatest and ("numpy" in sys.modules or self._handle.choosing_s > IMPORT_S):
            return self._choose(self._handle.logits(index))
        began = time.perf_counter()
        token = int(self._lib.llama_sampler_sample(self._chain, self._context, index))
        if self._greatest:
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
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
