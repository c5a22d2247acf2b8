"""The gate of the families bites: one thing done wrong in a plan, and libllama no longer computes what torch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, TensorPlan, Value, plan_model
from tests.families import (
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

Change = Callable[[ModelPlan], ModelPlan]


def each(name: str, edit: Callable[[TensorPlan], TensorPlan]) -> Change:
    """Apply EDIT to the tensors whose name ends with NAME; there must be one."""

    def change(plan: ModelPlan) -> ModelPlan:
        assert any(tensor.name.endswith(name) for tensor in plan.tensors)
        edited = (edit(tensor) if tensor.name.endswith(name) else tensor for tensor in plan.tensors)
        return replace(plan, tensors=tuple(edited))

    return change


def zero(name: str) -> Change:
    """Fill with zeros."""
    return each(name, lambda tensor: replace(tensor, sources=(), constant=np.zeros(tensor.shape, np.float32)))


def rolled(name: str, rows: int) -> Change:
    """Move all rows up by ROWS."""

    def edit(tensor: TensorPlan) -> TensorPlan:
        return replace(
            tensor, sources=(), constant=np.roll(tensor.rows(0, tensor.shape[0]), -rows, axis=0), stacked=False
        )

    return each(name, edit)


def plain(name: str) -> Change:
    """Do nothing to the rows: no transform, no transpose, no rows left out."""
    return each(name, lambda tensor: replace(tensor, transform=None, transposed=False, block_rows=1, first_row=0))


def reversed_columns(tensor: TensorPlan) -> TensorPlan:
    """Turn the order of the columns round."""
    values = np.ascontiguousarray(tensor.rows(0, tensor.shape[0])[:, ::-1])
    return replace(tensor, sources=(), constant=values)


def swapped(one: str, other: str) -> Change:
    """Give each of two tensors the data of the other, in every layer."""

    def change(plan: ModelPlan) -> ModelPlan:
        by_name = {tensor.name: tensor for tensor in plan.tensors}

        def data_of(name: str) -> TensorPlan:
            if name.endswith(one):
                return by_name[name.removesuffix(one) + other]
            return by_name[name.removesuffix(other) + one] if name.endswith(other) else by_name[name]

        return replace(plan, tensors=tuple(replace(data_of(name), name=name) for name in by_name))

    return change


def key(name: str, value: Value) -> Change:
    """Write another value under a key that is there."""

    def change(plan: ModelPlan) -> ModelPlan:
        assert name in plan.keys
        return replace(plan, keys={**plan.keys, name: value})

    return change


def without(name: str) -> Change:
    """Leave a key out."""
    return lambda plan: replace(plan, keys={other: value for other, value in plan.keys.items() if other != name})


MUTATIONS: dict[str, tuple[str, Change]] = {
    "bert: no bias of the query": ("bert", zero("attn_q.bias")),
    "bert: no bias of a norm": ("bert", zero("layer_output_norm.bias")),
    "bert: no token type": ("bert", zero("token_types.weight")),
    "bert: norms swapped": ("bert", swapped("attn_output_norm.weight", "layer_output_norm.weight")),
    "bert: pooling": ("bert", key("pooling_type", 2)),
    "bert: query and value swapped": ("bert", swapped("attn_q.weight", "attn_v.weight")),
    "roberta: positions from the top": ("bert-roberta", plain("position_embd.weight")),
    "gpt2: no bias": ("gpt2", zero("attn_qkv.bias")),
    "gpt2: no position": ("gpt2", zero("position_embd.weight")),
    "gpt2: not transposed": ("gpt2", plain("attn_output.weight")),
    "gpt2: value before key": ("gpt2", rolled("attn_qkv.weight", 64)),
    "lfm2: kernel reversed": ("lfm2", each("conv.weight", reversed_columns)),
    "lfm2: last norm left out": ("lfm2", zero("token_embd_norm.weight")),
    "lfm2: parts of the projection": ("lfm2", rolled("in_proj.weight", 64)),
    "lfm2: query and key norms swapped": ("lfm2", swapped("attn_q_norm.weight", "attn_k_norm.weight")),
    "lfm2: rope base": ("lfm2", without("rope.freq_base")),
    "lfm2: yarn left out": ("lfm2-indexes-yarn", without("rope.scaling.factor")),
    "mixtral: experts in another order": ("mixtral", rolled("ffn_down_exps.weight", 1)),
    "mixtral: one expert for two": ("mixtral", key("expert_used_count", 1)),
    "mixtral: rows of the query": ("mixtral", plain("attn_q.weight")),
    "phi3: all of the head rotated": ("phi3-256-tied-partial", without("rope.dimension_count")),
    "phi3: factor of cosine and sine": ("phi3-long", without("rope.scaling.attn_factor")),
    "phi3: gate and up": ("phi3", rolled("ffn_up.weight", 96)),
    "phi3: long factors when short": ("phi3-short", swapped("_long.weight", "_short.weight")),
    "phi3: original context": ("phi3-long", key("rope.scaling.original_context_length", 4096)),
    "phi3: short factors when long": ("phi3-long", swapped("_long.weight", "_short.weight")),
}
"""What goes wrong → the variant, and how its plan is broken."""


@pytest.fixture(scope="module")
def expected(variants: Variants) -> Callable[[str], np.ndarray]:
    """Return what torch computes for a variant: logits, or the pooled vector (1, hidden)."""
    known: dict[str, np.ndarray] = {}

    def result_of(name: str) -> np.ndarray:
        if name not in known:
            folder = variants(name)
            ids = ids_of(folder)
            if VARIANTS[name].pooling:
                rows = torch_vectors(folder, ids)
                pooled = {"mean": rows.mean(0), "cls": rows[0], "lasttoken": rows[-1]}[str(VARIANTS[name].pooling)]
                known[name] = pooled[None]
            else:
                known[name] = torch_logits(folder, ids)
        return known[name]

    return result_of


def ids_of(folder: Path) -> list[int]:
    return [max(token, 3) for token in some_ids(plan_model(open_checkpoint(folder)).vocab_size)]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_plan_that_is_wrong_in_one_thing_gives_other_numbers(
    variants: Variants, expected: Callable[[str], np.ndarray], tmp_path: Path, name: str
) -> None:
    variant, change = MUTATIONS[name]
    folder = variants(variant)
    path = write_f32(folder, tmp_path / "broken.gguf", change)
    ids = ids_of(folder)
    if VARIANTS[variant].pooling:
        found = libllama_vectors(path, ids, pooled=True)
    else:
        found = libllama_logits(path, ids)
    assert nmse(expected(variant), found) > 1e-4
