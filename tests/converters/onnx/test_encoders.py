"""8 bits for encoders of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.onnx.encoders import products, quantize_encoder, scales
from converters.onnx.quantize import quantize_dynamic

F32 = npt.NDArray[np.float32]
WIDTH, INNER, ROWS = 64, 128, 24


@pytest.fixture
def feed() -> dict[str, F32]:
    """Activations with a few channels that are many times as large as the rest, as encoders have them."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(1, ROWS, WIDTH)).astype(np.float32)
    x[..., :3] *= 40
    return {"x": x}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two products of one value, GELU, and a product of what it gives."""
    draw = np.random.default_rng(5)

    def matrix(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((draw.normal(size=shape) / 8).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["wide"]),
        helper.make_node("MatMul", ["x", "beside"], ["short"]),
        helper.make_node("Gelu", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "down"], ["narrow"]),
        helper.make_node("Add", ["narrow", "short"], ["y"]),
    ]
    weights = [matrix("up", WIDTH, INNER), matrix("beside", WIDTH, WIDTH), matrix("down", INNER, WIDTH)]
    shape = ["batch", "length", WIDTH]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path / "encoder.onnx"
    onnx.save(model, path)
    return path


def run(path: Path, feed: dict[str, F32]) -> F32:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: F32 = session.run(None, feed)[0]
    return found


def error(reference: F32, found: F32) -> float:
    return float(((found - reference) ** 2).sum() / (reference**2).sum())


def test_large_channels_cost_less_than_with_one_scale_for_all(
    graph: Path, feed: dict[str, F32], tmp_path: Path
) -> None:
    reference = run(graph, feed)
    quantize_dynamic(graph, tmp_path / "plain.onnx")
    quantize_encoder(graph, tmp_path / "both.onnx", [feed])
    plain, both = (error(reference, run(tmp_path / f"{name}.onnx", feed)) for name in ("plain", "both"))
    assert both < 0.5 * plain
    assert both < 1e-3


def test_what_comes_of_gelu_is_multiplied_in_blocks_and_the_rest_in_whole_columns(
    graph: Path, feed: dict[str, F32], tmp_path: Path
) -> None:
    quantize_encoder(graph, tmp_path / "both.onnx", [feed])
    kinds = [node.op_type for node in onnx.load(tmp_path / "both.onnx").graph.node]
    assert kinds.count("MatMulNBits") == 1
    assert "MatMul" not in kinds
    assert "Gemm" not in kinds


def test_scales_are_around_one_and_never_blow_up_what_was_not_used() -> None:
    found = scales(np.asarray([0.0, 1.0, 4.0, 1e6], np.float32))
    assert np.isfinite(found).all()
    assert (found >= 1e-3).all()
    assert (found <= 1e3).all()
    np.testing.assert_allclose(found[2] / found[1], 2, rtol=1e-5)


def test_products_of_one_value_stand_together(graph: Path) -> None:
    groups = products(onnx.load(graph).graph)
    assert [len(nodes) for nodes in groups.values()] == [2, 1]


def test_two_runs_give_the_same_bytes(graph: Path, feed: dict[str, F32], tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantize_encoder(graph, tmp_path / f"{name}.onnx", [feed])
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
