"""A GenerationConfig as libllama's native sampler chain."""

from __future__ import annotations

from typing import Any

from edgeai.engines.llamacpp.handle import Handle
from edgeai.types import GenerationConfig

__all__ = ["Sampler"]

PENALTY_WINDOW = 64  # tokens; llama.cpp's default for repeat_last_n, common/common.h


class Sampler:
    """A sampler chain in llama.cpp's default order: penalties, top-k, top-p, min-p, temperature, draw."""

    def __init__(self, handle: Handle, config: GenerationConfig, seed: int) -> None:
        self._lib: Any = handle.lib
        self._handle = handle
        lib = self._lib
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if config.repeat_penalty != 1.0:
            self._add(lib.llama_sampler_init_penalties(handle.n_vocab, PENALTY_WINDOW, config.repeat_penalty, 0.0, 0.0))
        if config.temperature == 0:
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

    def sample(self) -> int:
        """Draw the next token from the logits of the last decoded position, and remember it."""
        return int(self._lib.llama_sampler_sample(self._chain, self._handle.context, -1))

    def free(self) -> None:
        """Free the chain."""
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
