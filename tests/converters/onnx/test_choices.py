"""Quant names and overrides: what is said is asked of the builder, and what cannot be is refused."""

from __future__ import annotations

import pytest

from converters.errors import ConvertError, UnsupportedModel, WrongChoice
from converters.onnx.choices import ARCHITECTURES, Choices, check_architecture, check_types, parse_choices, quant_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int4", "INT4"),
        ("INT8", "INT8"),
        ("fp16", "F16"),
        ("q8", "INT8"),
        ("f32", "F32"),
        ("q8_0", None),
        ("int2", None),
        ("", None),
    ],
)
def test_names_of_types_are_those_of_onnx(name: str, expected: str | None) -> None:
    assert quant_of(name) == expected


def test_a_type_of_gguf_is_refused_with_the_types_that_there_are() -> None:
    with pytest.raises(WrongChoice, match="'q4_k_m' is no type of ONNX") as caught:
        parse_choices("q4_k_m", layers=2, tied=False)
    assert caught.value.hint == "one of: f32, f16, int8, int4"


def test_an_unknown_class_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel") as caught:
        check_architecture("GPT2LMHeadModel")
    assert all(name in str(caught.value.hint) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    "text", ["lm_head", "=int8", "lm_head=", "block=48", "method=magic", "blk.0.ffn_up=f32", "layers.7.*=f32", "layers.*=int2",
             "lm_head=q8_0", "layers.0.mlp.up_proj=int16", "symmetric=maybe"],
)  # fmt: skip
def test_overrides_that_cannot_be_are_refused_by_their_own_words(text: str) -> None:
    with pytest.raises(WrongChoice, match="--type") as caught:
        parse_choices("int4", [text], layers=2, tied=False)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_overrides_of_files_without_blocks_do_nothing_and_are_refused(quant: str) -> None:
    with pytest.raises(WrongChoice, match="does nothing"):
        parse_choices(quant, ["lm_head=f32"], layers=2, tied=False)


def test_settings_of_the_whole_file_get_the_builders_names() -> None:
    options = parse_choices(
        "int4", ["block=64", "symmetric=FALSE", "accuracy = 4", "method=k_quant"], layers=1, tied=False
    ).options
    assert options == {"block_size": "64", "is_symmetric": "false", "accuracy_level": "4", "algo_config": "k_quant"}


def test_nodes_are_named_as_the_graph_names_them() -> None:
    nodes = parse_choices("int4", ["layers.*.mlp.down_proj=int8", "layers.1.*.o_proj=f32"], layers=2, tied=False).nodes
    assert nodes == {
        "/model/layers.0/mlp/down_proj/MatMul": 8,
        "/model/layers.1/mlp/down_proj/MatMul": 8,
        "/model/layers.1/attn/o_proj/MatMul": 32,
    }


def test_of_several_types_for_a_matrix_the_last_one_holds() -> None:
    said = ["layers.*.mlp.*=f32", "layers.*.mlp.up_proj=int8", "layers.0.*=int4"]
    bits = parse_choices("int4", said, layers=2, tied=False).bits
    assert bits == {
        "layers.1.mlp.gate_proj": 32, "layers.1.mlp.up_proj": 8, "layers.1.mlp.down_proj": 32,
    }  # fmt: skip


@pytest.mark.parametrize(("quant", "kind"), [("int4", "int4"), ("int8", "int8")])
def test_a_type_that_the_file_has_anyway_asks_for_nothing(quant: str, kind: str) -> None:
    choices = parse_choices(quant, [f"layers.*={kind}", f"lm_head={kind}"], layers=2, tied=True)
    assert (choices.options, choices.bits) == ({}, {})


# ---- query, key and value


@pytest.mark.parametrize("name", ["attn.qkv_proj", "attn.[qkv]_proj", "attn.[qkv]*"])
def test_query_key_and_value_of_one_type_are_one_matrix_where_the_family_has_it(name: str) -> None:
    nodes = parse_choices("int8", [f"layers.0.{name}=int4"], layers=2, tied=False).nodes
    assert nodes == {f"/model/layers.0/attn/{part}_proj/MatMul": 4 for part in ("qkv", "q", "k", "v")}


def test_query_key_and_value_of_different_types_are_not_one_matrix() -> None:
    assert parse_choices("int4", ["layers.0.attn.v_proj=int8"], layers=1, tied=False).bits == {
        "layers.0.attn.v_proj": 8
    }
    nodes = parse_choices("int8", ["layers.0.attn.*=int4", "layers.0.attn.v_proj=f32"], layers=1, tied=False).nodes
    assert "/model/layers.0/attn/qkv_proj/MatMul" not in nodes


# ---- the ends of a model that has one matrix for both


@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("text", ["symmetric=false", "method=k_quant"])
def test_one_matrix_for_both_ends_is_taken_apart_where_blocks_have_zero_points(quant: str, text: str) -> None:
    assert parse_choices(quant, [text], layers=2, tied=True).options["shared_embeddings"] == "false"


def test_one_matrix_for_both_ends_is_taken_apart_where_they_get_other_types() -> None:
    choices = parse_choices("int4", ["lm_head=int8", "embed_tokens=int4"], layers=2, tied=True)
    assert choices.options == {"shared_embeddings": "false", "matmul_mixed_precision": "last_matmul:int8"}
    assert choices.bits == {"lm_head": 8, "embed_tokens": 4}


@pytest.mark.parametrize("said", [["lm_head=int8"], ["embed_tokens=int8"], ["*=int8", "layers.*=int4"]])
def test_one_matrix_for_both_ends_has_two_names(said: list[str]) -> None:
    choices = parse_choices("int4", said, layers=2, tied=True)
    assert choices.options == {"matmul_mixed_precision": "last_matmul:int8"}
    assert choices.bits == {"lm_head": 8}


def test_one_matrix_for_both_ends_stays_one_in_float32() -> None:
    options = parse_choices("int4", ["embed_tokens=f32"], layers=2, tied=True).options
    assert options == {"nodes_to_exclude": "/lm_head/MatMul,/model/embed_tokens/Gather"}


def test_one_matrix_for_both_ends_stays_one_where_nothing_is_said_of_it() -> None:
    assert parse_choices("int4", ["block=64"], layers=2, tied=True).options == {"block_size": "64"}


def test_two_matrices_at_the_ends_have_types_of_their_own() -> None:
    choices = parse_choices("int8", ["embed_tokens=int8", "lm_head=f32"], layers=2, tied=False)
    assert (choices.bits, choices.options) == (
        {"embed_tokens": 8, "lm_head": 32}, {"nodes_to_exclude": "/lm_head/MatMul"},
    )  # fmt: skip


# ---- what was built against what was asked for

GRAPH = {"layers.0.attn.qkv_proj": 4, "layers.0.mlp.up_proj": 4, "lm_head": 4}


def test_a_matrix_that_the_graph_does_not_have_is_no_silent_choice() -> None:
    choices = parse_choices("int4", ["layers.*.conv.*=f32"], layers=1, tied=False)
    with pytest.raises(WrongChoice, match=r"'layers\.\*\.conv\.\*=f32' matches no matrix of this model") as caught:
        check_types(choices, GRAPH)
    assert "layers.*.attn.qkv_proj, layers.*.mlp.up_proj, lm_head" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "layers.0.mlp.up_proj=int8",
        "layers.0.attn.q_proj=f32",
        "layers.*.attn.qkv_proj=int8",
        "lm_head=f32",
        "embed_tokens=f32",
    ],
)
def test_a_matrix_that_has_not_the_type_that_was_asked_for_is_an_error(text: str) -> None:
    choices = parse_choices("int4", [text], layers=1, tied=True)
    with pytest.raises(ConvertError, match="has 4 bits in the graph"):
        check_types(choices, GRAPH)


def test_a_matrix_that_was_not_to_have_another_type_is_an_error() -> None:
    with pytest.raises(ConvertError, match="lm_head has 8 bits in the graph"):
        check_types(parse_choices("int4", layers=1, tied=True), {**GRAPH, "lm_head": 8})


def test_choices_without_overrides_ask_for_nothing() -> None:
    check_types(Choices(quant="INT4"), GRAPH)
    check_types(Choices(quant="F32"), dict.fromkeys(GRAPH, 32))
