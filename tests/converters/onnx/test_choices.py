"""Quant names and overrides: what is said is asked of the builder, and what cannot be is refused."""

from __future__ import annotations

import pytest

from converters.errors import UnsupportedModel, WrongChoice
from converters.onnx.choices import ARCHITECTURES, Choices, check_architecture, check_kept, parse_choices, quant_of


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
             "lm_head=q8_0",
             "layers.0.mlp.up_proj=int8", "symmetric=maybe"],
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
    options = parse_choices("int4", ["layers.*.mlp.down_proj=f32"], layers=2, tied=False).options
    assert options["nodes_to_exclude"] == "/model/layers.0/mlp/down_proj/MatMul,/model/layers.1/mlp/down_proj/MatMul"


def test_a_type_that_the_file_has_anyway_asks_for_nothing() -> None:
    assert parse_choices("int4", ["layers.*=int4"], layers=2, tied=False).options == {}


@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("text", ["lm_head=f32", "embed_tokens=f32", "symmetric=false", "method=k_quant"])
def test_one_matrix_for_both_ends_is_taken_apart_where_the_ends_differ(quant: str, text: str) -> None:
    assert parse_choices(quant, [text], layers=2, tied=True).options["shared_embeddings"] == "false"


def test_one_matrix_for_both_ends_is_taken_apart_where_they_have_other_types() -> None:
    assert parse_choices("int4", ["lm_head=int8"], layers=2, tied=True).options["shared_embeddings"] == "false"


def test_one_matrix_for_both_ends_stays_one_where_they_do_not() -> None:
    assert parse_choices("int4", ["block=64"], layers=2, tied=True).options == {"block_size": "64"}


def test_a_matrix_that_the_graph_does_not_have_is_no_silent_choice() -> None:
    choices = parse_choices("int4", ["layers.*.attn.q_proj=f32"], layers=1, tied=False)
    with pytest.raises(WrongChoice, match=r"'layers\.\*\.attn\.q_proj=f32' matches no matrix of this model"):
        check_kept(choices, ["model.layers.0.attn.qkv_proj.MatMul.weight"])
    check_kept(choices, ["model.layers.0.attn.q_proj.MatMul.weight"])


def test_choices_without_overrides_keep_nothing() -> None:
    check_kept(Choices(quant="INT4"), [])
