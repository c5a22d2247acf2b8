"""Every family: what transformers computes is what onnxruntime-genai computes from the built folder, prompts read in parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converters.checkpoint import open_checkpoint
from converters.errors import ConvertError
from converters.families import plan_model
from converters.onnx import language
from converters.onnx.choices import ARCHITECTURES, Choices
from converters.onnx.header import read_header
from converters.onnx.matrices import matrices, node_of
from converters.tokenizer import read_vocabulary
from tests.checkpoints import make, tokenizer_json
from tests.families import VARIANTS, WIDE, Variant, Variants, make_variant, nmse, some_ids, torch_logits
from tests.genai import built, genai_logits

LONG = ("phi3-long", "phi3-long-partial")
"""What is turned by other angles beyond 16 tokens: tested apart."""
NAMES = sorted(name for name, variant in VARIANTS.items() if variant.model in ARCHITECTURES and name not in LONG)
MORE = {
    "mistral-small-window": Variant(model="MistralForCausalLM", config={"sliding_window": 24}),
    "qwen2-window": Variant(
        model="Qwen2ForCausalLM",
        split="qwen2",
        config={"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3-window": Variant(
        model="Qwen3ForCausalLM",
        split="qwen2",
        config={"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0, "head_dim": 32},
    ),
    "phi3-window": Variant(model="Phi3ForCausalLM", config={"sliding_window": 24}),
    "llama-one-head": Variant(model="LlamaForCausalLM", config={"num_attention_heads": 2, "num_key_value_heads": 1}),
}  # fmt: skip
"""Shapes that GGUF has no use for, or is not asked for."""


def check(folder: Path, output: Path, count: int = 104, prompt: int = 100) -> None:
    """COUNT tokens, of which PROMPT are read in parts and the others one by one, give torch's logits."""
    ids = some_ids(json.loads((folder / "config.json").read_text())["vocab_size"], count)
    expected = torch_logits(folder, ids)
    found = genai_logits(built(folder, output), ids, prompt)
    assert nmse(expected[:prompt], found[:prompt]) < 1e-9
    assert nmse(expected[prompt:], found[prompt:]) < 1e-9
    assert (expected.argmax(-1) == found.argmax(-1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_in_parts_and_single_tokens_give_the_logits_of_torch(
    variants: Variants, tmp_path: Path, name: str
) -> None:
    check(variants(name), tmp_path / "built é")


@pytest.mark.parametrize("name", MORE)
def test_other_shapes_give_the_logits_of_torch(tmp_path: Path, name: str) -> None:
    check(make_variant(tmp_path / name, MORE[name]), tmp_path / "built")


def test_all_architectures_are_among_the_tests() -> None:
    assert {VARIANTS[name].model for name in NAMES} == set(ARCHITECTURES)


def test_longrope_has_the_angles_of_torch_within_its_short_texts(tmp_path: Path) -> None:
    config = {**WIDE, **VARIANTS["phi3-long-partial"].config, "max_position_embeddings": 512}
    rope = {
        **config["rope_parameters"],
        "short_factor": [1.0 + at / 16 for at in range(24)],
        "long_factor": [2.0 + at for at in range(24)],
    }
    config |= {"rope_parameters": rope, "original_max_position_embeddings": 128}
    folder = make_variant(tmp_path / "phi", Variant(model="Phi3ForCausalLM", config=config))
    check(folder, tmp_path / "built", 104)
    said = json.loads((tmp_path / "built" / "genai_config.json").read_text())
    assert said["model"]["context_length"] == said["search"]["max_length"] == 128


def test_rope_tables_of_two_builds_do_not_mix(variants: Variants, tmp_path: Path) -> None:
    check(variants("llama-yarn"), tmp_path / "yarn")
    check(variants("llama"), tmp_path / "plain")


# ---- the folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("built") / "folder")


def test_the_tokenizer_is_the_sources(source: Path, folder: Path) -> None:
    kept = json.loads((folder / "tokenizer.json").read_text())
    assert kept == json.loads((source / "tokenizer.json").read_text()) == json.loads(tokenizer_json("llama3"))


def test_the_chat_template_is_the_sources(source: Path, folder: Path) -> None:
    said = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    assert (folder / "chat_template.jinja").read_text() == said


def test_answers_end_where_those_of_the_source_end(source: Path, folder: Path) -> None:
    said = json.loads((folder / "genai_config.json").read_text())["model"]
    checkpoint = open_checkpoint(source)
    vocabulary = read_vocabulary(checkpoint, plan_model(checkpoint).vocab_size, allow_inexact=True)
    ends = said["eos_token_id"]
    assert tuple(ends if isinstance(ends, list) else [ends]) == tuple(vocabulary.stop_ids)


def test_the_graph_passes_onnx_own_reading(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    header = read_header(folder / "model.onnx")
    assert header.nodes == len(graph.node)
    assert [port.name for port in header.inputs] == [item.name for item in graph.input]
    assert {tensor.name for tensor in header.tensors} >= {item.name for item in graph.initializer}


def test_weights_of_a_built_folder_are_the_models(source: Path, folder: Path) -> None:
    plan = plan_model(open_checkpoint(source))
    assert read_header(folder / "model.onnx").parameters == plan.parameters


@pytest.mark.parametrize(("quant", "expected"), [("int4", "INT4"), ("int8", "INT8")])
def test_quantized_weights_count_as_weights_of_the_model(
    source: Path, tmp_path: Path, quant: str, expected: str
) -> None:
    header = read_header(built(source, tmp_path / quant, quant) / "model.onnx")
    plan = plan_model(open_checkpoint(source))
    assert header.parameters == plan.parameters
    assert header.by_type()[expected] > 0.7 * plan.parameters


@pytest.mark.parametrize("types", [("lm_head=f32",), ("layers.*.mlp.down_proj=f32", "block=16")])
def test_matrices_that_stay_in_float32_are_torchs_to_the_bit(
    source: Path, tmp_path: Path, types: tuple[str, ...]
) -> None:
    from safetensors.numpy import load_file

    path = built(source, tmp_path / "mixed", "int4", types) / "model.onnx"
    graph = onnx.load(path).graph
    name = types[0].partition("=")[0].replace("layers.*", "model.layers.1")
    kept = next(item for item in graph.initializer if item.name.removesuffix(".MatMul.weight") == name)
    found = onnx.numpy_helper.to_array(kept)
    expected = load_file(source / "model.safetensors")[f"{name}.weight"].T
    assert np.array_equal(found, expected)


def blocks(folder: Path) -> dict[str, int]:
    """Return node → bits of the matrices in blocks, as onnx reads the graph; float ones have 32."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    weights = {item.name for item in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            found[node.name.rpartition("_Q")[0] or node.name] = next(
                item.i for item in node.attribute if item.name == "bits"
            )
        elif node.op_type in ("MatMul", "Gather") and weights.intersection(node.input):
            found[node.name] = 32
    return found


def test_the_head_can_have_eight_bits_in_a_file_of_four(source: Path, tmp_path: Path) -> None:
    found = blocks(built(source, tmp_path / "mixed", "int4", ("lm_head=int8",)))
    assert {name for name, bits in found.items() if bits == 8} == {"/lm_head/MatMul"}
    assert set(found.values()) == {4, 8, 32}  # the embedding of an untied model stays in float32


@pytest.mark.parametrize(("quant", "bits"), [("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("method", ["default", "rtn", "k_quant"])
def test_any_matrix_can_have_a_type_of_its_own(
    source: Path, tmp_path: Path, quant: str, bits: int, method: str
) -> None:
    types = ("layers.0.mlp.*=int8", "layers.0.mlp.up_proj=f32", "layers.1.*=int4", "layers.1.attn.v_proj=int8")
    found = blocks(built(source, tmp_path / "mixed", quant, (f"method={method}", "block=16", *types)))
    assert {name: kind for name, kind in found.items() if "layers" in name} == {
        "/model/layers.0/attn/qkv_proj/MatMul": bits, "/model/layers.0/attn/o_proj/MatMul": bits,
        "/model/layers.0/mlp/gate_proj/MatMul": 8, "/model/layers.0/mlp/up_proj/MatMul": 32, "/model/layers.0/mlp/down_proj/MatMul": 8,
        "/model/layers.1/attn/q_proj/MatMul": 4, "/model/layers.1/attn/k_proj/MatMul": 4, "/model/layers.1/attn/v_proj/MatMul": 8,
        "/model/layers.1/attn/o_proj/MatMul": 4, "/model/layers.1/mlp/gate_proj/MatMul": 4, "/model/layers.1/mlp/up_proj/MatMul": 4,
        "/model/layers.1/mlp/down_proj/MatMul": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if "-" not in name])
def test_every_family_has_matrices_with_types_of_their_own(variants: Variants, tmp_path: Path, name: str) -> None:
    types = ("layers.0.*=int8", "layers.1.*=f32", "lm_head=int8")
    found = blocks(built(variants(name), tmp_path / "mixed", "int4", types))
    kinds = {"0": {8}, "1": {32}}
    for layer, expected in kinds.items():
        assert {bits for node, bits in found.items() if f"/layers.{layer}/" in node} == expected, found
    assert found["/lm_head/MatMul"] == 8


def test_matrices_of_a_graph_are_those_that_onnx_reads(source: Path, tmp_path: Path) -> None:
    types = ("layers.0.*=int8", "layers.1.mlp.*=f32", "embed_tokens=int4")
    folder = built(source, tmp_path / "mixed", "int4", types)
    header = read_header(folder / "model.onnx")
    found = matrices(header)
    assert {node_of(name): item.bits for name, item in found.items()} == blocks(folder)
    plan = plan_model(open_checkpoint(source))
    weights = sum(item.rows * item.columns for item in found.values())
    assert plan.parameters - weights == sum(math.prod(item.shape) for item in plan.tensors if len(item.shape) == 1)
    sizes = {item.name: item.nbytes for item in header.tensors}
    assert all(item.nbytes == sum(sizes[name] for name in item.tensors) for item in found.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_an_embedding_apart_is_rounded_as_its_blocks_say(source: Path, tmp_path: Path, bits: int) -> None:
    from safetensors.numpy import load_file

    folder = built(source, tmp_path / "mixed", "int8", (f"embed_tokens=int{bits}",))
    stored = {
        item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(folder / "model.onnx").graph.initializer
    }
    codes = stored[f"model.embed_tokens.weight_Q{bits}"].astype(np.int64)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    scales = np.repeat(stored["model.embed_tokens.weight_scales"], 32, 1)
    expected = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    half = np.abs(scales) * np.where(codes == 2**bits - 1, 1, 0.501)  # the largest number may be cut off
    assert (np.abs((codes - 2 ** (bits - 1)) * scales - expected) <= half).all()
    ids = some_ids(64, 20)
    assert nmse(torch_logits(source, ids), genai_logits(folder, ids, 18)) < 0.05


def test_a_wrong_bit_in_the_graph_is_found(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.onnx.builder_child.place_types", lambda _nodes: None)
    with pytest.raises(ConvertError, match=r"layers\.1\.mlp\.down_proj has 4 bits in the graph"):
        built(source, tmp_path / "mixed", "int4", ("layers.1.mlp.down_proj=int8",))


# ---- what the builder cannot do


def request(source: Path, choices: Choices, **config: Any) -> tuple[Any, ...]:
    checkpoint = open_checkpoint(source)
    checkpoint = replace(checkpoint, config={**checkpoint.config, **config})
    plan = plan_model(checkpoint)
    return checkpoint, plan, read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True), choices


@pytest.mark.slow
def test_what_the_builder_raises_is_one_error_with_its_reason(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (tmp_path / "out").mkdir()
    parts = request(broken, Choices(quant="F32", options={"no_such_option_value": "x", "block_size": "seven"}))
    (broken / "config.json").write_text(json.dumps({**config, "hidden_act": "no such function"}))
    with pytest.raises(ConvertError, match="builder cannot convert this model") as caught:
        language.build(*parts, tmp_path / "out", threads=1)
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
