"""A GenerationConfig as libllama's chain of native samplers, which any runtime's logits can go through."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeai.types import GenerationConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["ArraySampler", "Chain"]

PENALTY_WINDOW = 64  # tokens; llama.cpp's default for repeat_last_n, common/common.h
COLDEST = 1e-6
"""Temperatures below this draw the likeliest token as 0 does; logits divided by much less overflow in libllama."""


class Chain:
    """A sampler chain in llama.cpp's default order: bias, penalties, top-k, top-p, min-p, temperature, draw.

    Repetition of what the prompt says counts too, as in llama.cpp and transformers. `greatest`: nothing but biases comes before the
    choice of the greatest logit.
    """

    def __init__(
        self, lib: Any, vocab_size: int, config: GenerationConfig, seed: int, prompt: Sequence[int] = ()
    ) -> None:
        self.lib: Any = lib
        self.native = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if config.logit_bias:
            biases = (lib.llama_logit_bias * len(config.logit_bias))(*config.logit_bias.items())
            self._add(lib.llama_sampler_init_logit_bias(vocab_size, len(biases), biases))
        if config.repeat_penalty != 1.0:
            self._add(lib.llama_sampler_init_penalties(vocab_size, PENALTY_WINDOW, config.repeat_penalty, 0.0, 0.0))
            for token in prompt[-PENALTY_WINDOW:]:
                lib.llama_sampler_accept(self.native, token)
        self.greatest = is_greatest(config)
        if config.temperature < COLDEST:
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
        self.lib.llama_sampler_chain_add(self.native, sampler)

    def free(self) -> None:
        """Free the chain."""
        if self.native:
            self.lib.llama_sampler_free(self.native)
            self.native = None


def is_greatest(config: GenerationConfig) -> bool:
    """Whether CONFIG draws the greatest logit, biases added."""
    return config.temperature < COLDEST and config.repeat_penalty == 1.0


class ArraySampler:
    """Draws tokens from logits in an array, as llama.cpp would from the same logits with the same seed."""

    def __init__(self, vocab_size: int, config: GenerationConfig, seed: int, prompt: Sequence[int] = ()) -> None:
        import numpy as np

        self._chain: Chain | None = None
        self._biases: tuple[Any, Any] | None = None
        if is_greatest(config):
            if config.logit_bias:
                self._biases = np.array([*config.logit_bias]), np.array([*config.logit_bias.values()], np.float32)
            return
        from edgeai import native

        self._chain = Chain(native.library(), vocab_size, config, seed, prompt)
        self._data = np.empty(vocab_size, np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]))
        self._ids = np.arange(vocab_size, dtype=np.int32)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """Draw a token from LOGITS, (vocab,), which the biases may change, and remember it."""
        if self._chain is None:
            if self._biases is not None:
                logits[self._biases[0]] += self._biases[1]
            return int(logits.argmax())
        lib = self._chain.lib
        data = self._data
        data["id"], data["logit"], data["p"] = self._ids, logits, 0.0
        array = lib.llama_token_data_array(
            data=ctypes.cast(data.ctypes.data, ctypes.POINTER(lib.llama_token_data)),
            size=len(data),
            selected=-1,
            sorted=False,
        )
        lib.llama_sampler_apply(self._chain.native, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self._chain.native, token)
        return token

    def free(self) -> None:
        """Free what is native."""
        if self._chain is not None:
            self._chain.free()
