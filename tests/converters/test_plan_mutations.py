"""All that a plan does to a checkpoint matters: each transform, bias and key, left out or changed, shows in the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, TensorPlan, Value, plan_model
from tests.families import VARIANTS, Variants, libllama_logits, nmse, some_ids, torch_logits, write_f32

PROOF_LIMIT = 1e-6
MUTATED = (
    "gemma3-pattern",
    "gemma3-query",
    "gemma3-rope",
    "gpt2-untied",
    "granite-biases",
    "lfm2",
    "llama-biases",
    "llama-linear",
    "llama-yarn",
    "llama-yarn-bounds",
    "mixtral",
    "olmo2-256-yarn",
    "phi3-256-tied-partial",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""At least one of each family, and all that have something of their own."""
SIZES = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "feed_forward_length",
        "rope.dimension_count",
        "shortconv.l_cache",
        "vocab_size",
    }
)
"""Keys without which the tensors do not fit, so that libllama does not load the file."""
UNSEEN = frozenset({"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"})
"""Twice a millionth of the variance is a millionth: no test of these models could see it."""
YARN_ONLY = frozenset({"rope.scaling.original_context_length"})
SWAPS = (
    ("attn_q_norm.weight", "attn_k_norm.weight"),
    ("attn_norm.weight", "ffn_norm.weight"),
    ("post_attention_norm.weight", "post_ffw_norm.weight"),
    ("attn_k.weight", "attn_v.weight"),
    ("ffn_gate.weight", "ffn_up.weight"),
)


def test_every_family_with_logits_is_mutated() -> None:
    architectures = {VARIANTS[name].model for name in MUTATED}
    causal = {variant.model for variant in VARIANTS.values() if variant.pooling is None}
    same_plans = {"Gemma3ForConditionalGeneration", "MinistralForCausalLM", "MistralForCausalLM"}
    assert causal - architectures == same_plans  # those of Gemma3ForCausalLM and LlamaForCausalLM


def part(tensor: TensorPlan) -> str:
    """Return the name of TENSOR without its layer."""
    return tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name


def parts(plan: ModelPlan) -> dict[str, TensorPlan]:
    """Return part → the last tensor of it."""
    return {part(tensor): tensor for tensor in plan.tensors}


def changed(key: str, value: Value) -> Value | None:
    """Return another value of the same kind for KEY, or None where there is none that matters."""
    if key.startswith("rope.freq_base"):
        return 1e6 if value == 1e4 else 1e4  # what an absent key means
    if isinstance(value, tuple):
        return tuple(not item if isinstance(item, bool) else item * 2 for item in value)  # type: ignore[return-value]
    if isinstance(value, str):
        return {"yarn": "linear"}.get(value)
    return value * 2 or None


def mutations(plan: ModelPlan) -> Iterator[tuple[str, ModelPlan]]:
    """Yield (what was done, the mutated plan)."""
    for name, tensor in parts(plan).items():
        for field, usual in (("transform", None), ("factor", 1.0)):
            if getattr(tensor, field) != usual:
                yield f"{name} without its {field}", edited(plan, name, **{field: usual, "block_rows": 1})
        if tensor.transposed and tensor.shape[0] == tensor.shape[1]:
            yield f"{name} not transposed", edited(plan, name, transposed=False, block_rows=1)
        if name.endswith(".bias"):
            yield f"{name} of zeros", edited(plan, name, constant=np.zeros(tensor.shape, np.float32))
        if tensor.constant is not None:
            yield f"{name} of ones", edited(plan, name, constant=np.ones(tensor.shape, np.float32))
    silent = SIZES | UNSEEN | (set() if plan.keys.get("rope.scaling.type") == "yarn" else YARN_ONLY)
    for key, value in plan.keys.items():
        other = None if key in silent else changed(key, value)
        if other is not None:
            yield f"{key} {value!r} → {other!r}", replace(plan, keys={**plan.keys, key: other})
    for left, right in SWAPS:
        found = parts(plan)
        if left in found and right in found and found[left].shape == found[right].shape:
            yield f"{left} and {right} swapped", swapped(plan, left, right)


def edited(plan: ModelPlan, name: str, **fields: object) -> ModelPlan:
    """Return PLAN with FIELDS changed in every tensor that is the part NAME."""
    tensors = (replace(item, **fields) if part(item) == name else item for item in plan.tensors)  # type: ignore[arg-type]
    return replace(plan, tensors=tuple(tensors))


def swapped(plan: ModelPlan, left: str, right: str) -> ModelPlan:
    """Return PLAN with the names of two parts exchanged, in every layer."""
    other = {left: right, right: left}
    return replace(
        plan,
        tensors=tuple(
            replace(item, name=item.name.removesuffix(part(item)) + other.get(part(item), part(item)))
            for item in plan.tensors
        ),
    )


@pytest.mark.parametrize("name", MUTATED)
def test_what_is_left_out_or_changed_shows(variants: Variants, tmp_path: Path, name: str) -> None:
    plan = plan_model(open_checkpoint(variants(name)))
    ids = some_ids(plan.vocab_size)
    expected = torch_logits(variants(name), ids)
    errors = {
        label: nmse(
            expected, libllama_logits(write_f32(variants(name), tmp_path / "mutant.gguf", lambda _, it=mutant: it), ids)
        )
        for label, mutant in mutations(plan)
    }
    assert len(errors) >= 2
    assert {label: error for label, error in errors.items() if not error > 10 * PROOF_LIMIT} == {}
