"""The map of a file's types: every matrix has its place, whatever its model is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.bounds.layers import Part, Run, bits, layer_map, runs
from tests.bounds.outcomes import kinds


def test_every_matrix_has_its_place_and_no_vector_has() -> None:
    types = kinds(5, tied=False)
    found = layer_map(types)
    placed = {tensor: part.kinds[layer] for part in found.parts for layer, tensor in part.tensors.items()}
    placed |= {f"{name}.weight": kind for name, kind in found.outside.items()}
    assert placed == {name: kind for name, kind in types.items() if "norm" not in name}
    assert found.layers == 5


def test_parts_stand_in_the_order_in_which_a_token_meets_them() -> None:
    names = (
        "ffn_down",
        "ffn_up",
        "ffn_gate",
        "attn_output",
        "attn_v",
        "attn_k",
        "attn_q",
        "ffn_gate_exps",
        "ssm_in",
        "attn_qkv",
    )
    found = layer_map({f"blk.0.{name}.weight": "Q4_K" for name in names})
    assert [part.name for part in found.parts] == [
        "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ssm_in", "ffn_gate", "ffn_gate_exps", "ffn_up", "ffn_down",
    ]  # fmt: skip


def test_matrices_of_onnx_have_their_places_too() -> None:
    kinds = {
        "lm_head": "INT8",
        "layers.1.attn.qkv_proj": "F32",
        "layers.0.attn.qkv_proj": "INT4",
        "layers.1.mlp.up_proj": "INT4",
    }
    found = layer_map(kinds)
    assert {part.name: part.kinds for part in found.parts} == {
        "attn.qkv_proj": {0: "int4", 1: "f32"}, "mlp.up_proj": {1: "int4"},
    }  # fmt: skip
    assert (found.layers, found.outside, found.types) == (2, {"lm_head": "int8"}, ("int4", "int8", "f32"))


def test_layers_need_not_be_alike() -> None:
    found = layer_map(
        {"blk.0.attn_q.weight": "Q4_K", "blk.1.shortconv.in_proj.weight": "Q6_K", "blk.2.attn_q.weight": "Q4_K"}
    )
    assert {part.name: part.kinds for part in found.parts} == {
        "attn_q": {0: "q4_k", 2: "q4_k"},
        "shortconv.in_proj": {1: "q6_k"},
    }
    assert [str(run) for run in runs(found.parts[0])] == ["0 q4_k", "2 q4_k"]


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.attn_sinks.weight", "rope_freqs.weight", "blk.0.ffn_gate_inp.weight", "position_embd.weight"]
)  # fmt: skip
def test_what_is_f32_in_every_file_is_left_out(name: str) -> None:
    found = layer_map({name: "F32"})
    assert not found.parts
    assert not found.outside
    assert found.layers == 0


def test_a_matrix_that_stays_f32_is_shown() -> None:
    assert layer_map({"blk.0.ffn_up.weight": "F32", "token_embd.weight": "F32"}).types == ("f32",)


@given(st.dictionaries(st.integers(0, 40), st.sampled_from(["q4_k", "q6_k"])))
def test_runs_are_the_layers_again_and_as_few_as_can_be(types: dict[int, str]) -> None:
    found = runs(Part(name="ffn_up", kinds=types))
    assert {layer: run.kind for run in found for layer in range(run.first, run.last + 1)} == types
    breaks = sum(layer - 1 not in types or types[layer - 1] != types[layer] for layer in types)
    assert len(found) == breaks
    assert found == sorted(found, key=lambda run: run.first)


def test_a_run_reads_as_in_a_table() -> None:
    assert str(Run(first=4, last=11, kind="q4_k")) == "4-11 q4_k"
    assert str(Run(first=4, last=4, kind="q4_k")) == "4 q4_k"


@pytest.mark.parametrize(
    ("kind", "count"), [("f32", 32), ("f16", 16), ("q8_0", 8.5), ("q6_k", 6.5625), ("q4_k", 4.5), ("iq2_xxs", 2.0625), ("tq1_0", 1.6875)]
)  # fmt: skip
def test_bits_of_a_weight_count_the_scales_of_its_block(kind: str, count: float) -> None:
    assert bits(kind) == bits(kind.upper()) == count
