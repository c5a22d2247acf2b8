"""Every family: what transformers computes is what libllama computes from the converted file."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from tests.conftest import Record
from tests.families import (
    PROMPT,
    VARIANTS,
    Variants,
    libllama_logits,
    libllama_vectors,
    nmse,
    some_ids,
    torch_logits,
    torch_vectors,
    write_f32,
)

CAUSAL = sorted(name for name, variant in VARIANTS.items() if variant.pooling is None)
EMBEDDING = sorted(set(VARIANTS) - set(CAUSAL))


@pytest.mark.parametrize("name", CAUSAL)
def test_prompt_and_cached_decode_give_the_logits_of_torch(
    variants: Variants, tmp_path: Path, name: str, record_proof: Record
) -> None:
    folder = variants(name)
    ids = some_ids(plan_model(open_checkpoint(folder)).vocab_size)
    expected = torch_logits(folder, ids, half_gelu=VARIANTS[name].half_gelu)
    found = libllama_logits(write_f32(folder, tmp_path / "model é.gguf"), ids)
    assert nmse(expected[:PROMPT], found[:PROMPT]) < 1e-6
    assert nmse(expected[PROMPT:], found[PROMPT:]) < 1e-6
    assert (expected.argmax(-1) == found.argmax(-1)).all()
    if VARIANTS[name].half_gelu:
        return
    record_proof(
        model=VARIANTS[name].model,
        source="safetensors",
        variant=name,
        proof="F32 logits NMSE",
        error=nmse(expected, found),
    )


@pytest.mark.parametrize("name", EMBEDDING)
def test_tokens_and_their_pooling_give_the_vectors_of_torch(
    variants: Variants, tmp_path: Path, name: str, record_proof: Record
) -> None:
    folder = variants(name)
    plan = plan_model(open_checkpoint(folder))
    ids = [max(token, 3) for token in some_ids(plan.vocab_size)]  # not the padding, from which RoBERTa counts positions
    expected = torch_vectors(folder, ids)
    path = write_f32(folder, tmp_path / "model é.gguf")
    error = nmse(expected, libllama_vectors(path, ids))
    assert error < 1e-6
    pooled = {"mean": expected.mean(0), "cls": expected[0], "last": expected[-1]}[str(plan.pooling)]
    assert nmse(pooled[None], libllama_vectors(path, ids, pooled=True)) < 1e-6
    record_proof(model=VARIANTS[name].model, source="safetensors", variant=name, proof="F32 vectors NMSE", error=error)
