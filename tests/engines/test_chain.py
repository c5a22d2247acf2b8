"""Samplers on logits in an array draw what libllama's own draw from the same logits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from edgeai import native
from edgeai.engines.chain import ArraySampler, Chain
from edgeai.types import GenerationConfig

SIZE, STEPS = 300, 40
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "hot": {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "top_k": {"top_k": 3, "top_p": 1.0, "min_p": 0.0},
    "top_p": {"top_k": 0, "top_p": 0.5, "min_p": 0.0},
    "min_p": {"top_k": 0, "top_p": 1.0, "min_p": 0.3},
    "penalty": {"repeat_penalty": 1.5},
    "greedy penalty": {"temperature": 0, "repeat_penalty": 1.5},
    "greedy": {"temperature": 0},
    "greedy bias": {"temperature": 0, "logit_bias": {7: 6.0, 8: -100.0}},
    "bias": {"logit_bias": {7: 6.0, 8: -100.0}},
}
PROMPT = [1, 2, 3, 3, 5]


def rows() -> Any:
    return np.random.default_rng(5).normal(0, 2, (STEPS, SIZE)).astype(np.float32)


def native_draws(config: GenerationConfig, seed: int) -> list[int]:
    """What libllama's chain draws from an array of candidates that this test fills itself."""
    lib = native.library()
    chain = Chain(lib, SIZE, config, seed, PROMPT)
    found = []
    for row in rows():
        items = (lib.llama_token_data * SIZE)(*((at, float(value), 0.0) for at, value in enumerate(row)))
        array = lib.llama_token_data_array(data=items, size=SIZE, selected=-1, sorted=False)
        lib.llama_sampler_apply(chain.native, ctypes.byref(array))
        found.append(int(array.data[array.selected].id))
        lib.llama_sampler_accept(chain.native, found[-1])
    chain.free()
    return found


def draws(config: GenerationConfig, seed: int) -> list[int]:
    sampler = ArraySampler(SIZE, config, seed, PROMPT)
    found = [sampler.sample(row) for row in rows()]
    sampler.free()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_draws_are_libllamas(name: str) -> None:
    config = GenerationConfig(**CONFIGS[name])
    assert draws(config, 11) == native_draws(config, 11)


def test_other_seeds_draw_others() -> None:
    assert draws(GenerationConfig(), 1) != draws(GenerationConfig(), 2)


def test_a_banned_token_never_comes() -> None:
    banned = dict.fromkeys(range(SIZE - 1), -1000.0)
    assert set(draws(GenerationConfig(temperature=2.0, logit_bias=banned), 3)) == {SIZE - 1}


def test_greedy_draws_the_greatest_logit() -> None:
    assert draws(GenerationConfig(temperature=0), 0) == rows().argmax(-1).tolist()


def test_freeing_twice_is_harmless() -> None:
    sampler = ArraySampler(SIZE, GenerationConfig(), 0)
    sampler.free()
    sampler.free()
