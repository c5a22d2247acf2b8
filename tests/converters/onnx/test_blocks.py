"""Weights in blocks: what onnxruntime multiplies with is what is read here, and better codes are codes of the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from converters.dequantize import decode
from converters.feedback import Feedback, feedback_of
from converters.onnx.blocks import block_bytes, can_recode, graft, recode, weights_of
from converters.onnx.header import Header, read_header
from converters.onnx.matrices import Matrix, matrices
from converters.quantize import encode
from tests.families import Variant, make_variant
from tests.genai import built

WIDE = {
    "hidden_size": 96,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 256,
}
"""Rows of an odd number of blocks, and of an even one."""
NAME = "layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_variant(tmp_path_factory.mktemp("source") / "wide", Variant(model="LlamaForCausalLM", config=WIDE))


@pytest.fixture(scope="module")
def graphs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by the type that all their matrices have; no test changes them."""
    place = tmp_path_factory.mktemp("graphs")
    return {
        "f32": built(source, place / "f32"),
        "int4": built(source, place / "int4", "int4", ["embed_tokens=int4"]),
        "int8": built(source, place / "int8", "int8", ["embed_tokens=int8"]),
        "points4": built(source, place / "points4", "int4", ["symmetric=false"]),
        "points8": built(source, place / "points8", "int8", ["symmetric=false"]),
        "k_quant": built(source, place / "k_quant", "int4", ["method=k_quant", "block=16", "layers.0.*=int8"]),
    }


def opened(folder: Path) -> tuple[Header, dict[str, Matrix]]:
    header = read_header(folder / "model.onnx")
    return header, matrices(header)


def multiplied(folder: Path, matrix: Matrix) -> np.ndarray:
    """Return what onnxruntime makes of ones at each input of MATRIX in turn: its weights, (rows, columns)."""
    model = onnx.load(folder / "model.onnx")
    kind = "GatherBlockQuantized" if matrix.name == "embed_tokens" else "MatMulNBits"
    node = next(node for node in model.graph.node if node.op_type == kind and matrix.tensors[0] in node.input)
    count = matrix.rows if kind == "GatherBlockQuantized" else matrix.columns
    given = np.arange(count) if kind == "GatherBlockQuantized" else np.eye(count, dtype=np.float32)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    place = 1 if kind == "GatherBlockQuantized" else 0
    copy.input[place], copy.output[0] = "x", "y"
    kept = [item for item in copy.attribute if item.name != "accuracy_level"]  # which would round the ones
    del copy.attribute[:]
    copy.attribute.extend(kept)
    type_of = onnx.helper.np_dtype_to_tensor_dtype(given.dtype)
    graph = onnx.helper.make_graph(
        [copy],
        "one",
        [onnx.helper.make_tensor_value_info("x", type_of, given.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [item for item in model.graph.initializer if item.name in matrix.tensors],
    )
    opsets = [onnx.helper.make_opsetid(item.domain, item.version) for item in model.opset_import]
    one = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    found = onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": given}
    )[0]
    return np.asarray(found if kind == "GatherBlockQuantized" else found.T)


@pytest.mark.parametrize(
    ("graph", "name"),
    [("int4", NAME), ("int8", NAME), ("points4", NAME), ("points8", NAME), ("k_quant", NAME), ("k_quant", "layers.0.mlp.up_proj"),
     ("int4", "layers.0.attn.qkv_proj"), ("points4", "lm_head"), ("int8", "lm_head"), ("int4", "embed_tokens"), ("int8", "embed_tokens")],
)  # fmt: skip
def test_weights_are_those_that_onnxruntime_multiplies_with(graphs: dict[str, Path], graph: str, name: str) -> None:
    header, found = opened(graphs[graph])
    matrix = found[name]
    weights = weights_of(header, matrix)
    assert weights.shape == (matrix.rows, matrix.columns)
    np.testing.assert_allclose(weights, multiplied(graphs[graph], matrix), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [NAME, "layers.0.attn.qkv_proj", "embed_tokens", "lm_head"])
def test_weights_in_float32_are_the_sources(source: Path, graphs: dict[str, Path], name: str) -> None:
    from safetensors.numpy import load_file

    stored = load_file(source / "model.safetensors")
    parts = {"layers.0.attn.qkv_proj": [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"],
             NAME: ["model.layers.1.mlp.down_proj.weight"], "embed_tokens": ["model.embed_tokens.weight"],
             "lm_head": ["lm_head.weight"]}[name]  # fmt: skip
    header, found = opened(graphs["f32"])
    assert np.array_equal(weights_of(header, found[name]), np.concatenate([stored[part] for part in parts]))


@pytest.mark.parametrize("graph", ["f32", "int4", "int8", "points4", "k_quant"])
def test_some_rows_are_those_rows_of_all(graphs: dict[str, Path], graph: str) -> None:
    header, found = opened(graphs[graph])
    rows = np.array([0, 3, 4, 90])
    assert np.array_equal(weights_of(header, found[NAME], rows), weights_of(header, found[NAME])[rows])
    assert np.array_equal(weights_of(header, found[NAME], slice(5, 9)), weights_of(header, found[NAME])[5:9])


@pytest.mark.parametrize("graph", ["int4", "int8"])
def test_sizes_of_blocks_are_those_that_are_built(graphs: dict[str, Path], graph: str) -> None:
    for matrix in opened(graphs[graph])[1].values():
        assert block_bytes(matrix.rows, matrix.columns, matrix.bits, matrix.block) == matrix.nbytes


# ---- better codes


def inputs(columns: int, seed: int = 0) -> np.ndarray:
    """Return second moments of inputs that hang together, as those of models do."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(400, 8)) @ rng.normal(size=(8, columns)) + 0.3 * rng.normal(size=(400, columns))
    return (seen.T @ seen / len(seen)).astype(np.float32)


def cost(weights: np.ndarray, found: np.ndarray, products: np.ndarray) -> float:
    errors = (found - weights).astype(np.float64)
    return float(((errors @ products) * errors).sum())


def test_codes_with_feedback_cost_less_in_as_many_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(graphs["int4"], tmp_path / "copy")
    (header, found), (exact, whole) = opened(folder), opened(graphs["f32"])
    weights, products = weights_of(exact, whole[NAME]), inputs(whole[NAME].columns)
    before, size = weights_of(header, found[NAME]), (folder / "model.onnx.data").stat().st_size
    recode(header, found[NAME], (exact, whole[NAME]), feedback_of(products))
    after = weights_of(header, found[NAME])
    assert cost(weights, after, products) < 0.5 * cost(weights, before, products)
    assert (folder / "model.onnx.data").stat().st_size == size
    np.testing.assert_allclose(after, multiplied(folder, found[NAME]), rtol=1e-5, atol=1e-7)


def test_codes_of_inputs_that_do_not_hang_together_are_libggmls(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(graphs["int4"], tmp_path / "copy")
    (header, found), (exact, whole) = opened(folder), opened(graphs["f32"])
    weights = weights_of(exact, whole[NAME])
    columns = weights.shape[1]
    plain = Feedback(factor=np.eye(columns, dtype=np.float32), importance=np.ones((1, columns), np.float32))
    recode(header, found[NAME], (exact, whole[NAME]), plain)
    alone = decode(encode(weights.reshape(-1, 32), "Q4_0", np.ones((1, 32), np.float32)), "Q4_0", 32)
    assert np.array_equal(weights_of(header, found[NAME]), alone.reshape(weights.shape))


def test_only_the_matrix_that_is_named_gets_other_codes(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(graphs["int4"], tmp_path / "copy")
    (header, found), (exact, whole) = opened(folder), opened(graphs["f32"])
    recode(header, found[NAME], (exact, whole[NAME]), feedback_of(inputs(whole[NAME].columns)))
    before, names = opened(graphs["int4"]), []
    for name, matrix in found.items():
        if not np.array_equal(weights_of(header, matrix), weights_of(before[0], before[1][name])):
            names.append(name)
    assert names == [NAME]


@pytest.mark.parametrize(
    ("graph", "expected"), [("int4", True), ("int8", False), ("points4", False), ("k_quant", False)]
)
def test_other_blocks_than_libggmls_stay_as_they_are(graphs: dict[str, Path], graph: str, expected: bool) -> None:
    assert can_recode(opened(graphs[graph])[1][NAME]) is expected


def test_codes_of_one_graph_are_put_into_another(graphs: dict[str, Path], source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(graphs["int4"], tmp_path / "better")
    (header, found), (exact, whole) = opened(folder), opened(graphs["f32"])
    recode(header, found[NAME], (exact, whole[NAME]), feedback_of(inputs(whole[NAME].columns)))
    mixed, other = opened(built(source, tmp_path / "mixed", "int8", [f"{NAME}=int4"]))
    graft((header, found[NAME]), (mixed, other[NAME]))
    assert np.array_equal(weights_of(mixed, other[NAME]), weights_of(header, found[NAME]))
