"""Small ONNX files whose outputs have a closed form: one matrix, or the mean of the rows of a table for each token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

F32 = npt.NDArray[np.float32]

IMAGE = {
    "kind": "image", "name": "image", "channels": 1, "height": 4, "width": 4, "resize": "bilinear", "scale": 1 / 255,
    "invert": False, "mean": [0.5], "std": [0.25],
}  # fmt: skip
COLUMNS: list[dict[str, Any]] = [
    {"name": "width", "kind": "number", "mean": 2.0, "std": 4.0},
    {"name": "colour", "kind": "category", "values": ["red", "green"]},
    {"name": "height", "kind": "number", "mean": -1.0, "std": 0.5},
]
NUMBERS = [COLUMNS[0], COLUMNS[2]]
LABELS = ["cat", "dog", "cow"]
OUTPUT = {"name": "logits", "kind": "logits"}


def table(columns: Sequence[Mapping[str, Any]] = COLUMNS) -> dict[str, Any]:
    return {"kind": "table", "name": "features", "columns": list(columns)}


def schema(given: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the schema of a classifier of LABELS that is GIVEN one input."""
    return {
        "version": 1, "name": "test", "task": "classification", "inputs": [dict(given)], "output": OUTPUT, "labels": LABELS, **changes,
    }  # fmt: skip


def save(path: Path, graph: Any, about: Mapping[str, Any] | None, **metadata: str) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    metadata_props = {**({} if about is None else {"edgeai.schema": json.dumps(about)}), **metadata}
    for key, value in metadata_props.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key.replace("__", "."), value
    onnx.save(model, path)
    return path


def weights(inputs: int, outputs: int = 3) -> tuple[F32, F32]:
    """Return the matrix (inputs, outputs) and the bias of `linear`."""
    rng = np.random.default_rng(inputs)
    return rng.standard_normal((inputs, outputs)).astype(np.float32), rng.standard_normal(outputs).astype(np.float32)


def linear(
    path: Path, shape: Sequence[int], about: Mapping[str, Any] | None, *, name: str = "features", outputs: int = 3,
    batch: str | int = "batch", output: str = "logits", matrix: F32 | None = None,
) -> Path:  # fmt: skip
    """Write a model that multiplies what is flat with `weights`, and return PATH."""
    known, bias = weights(int(np.prod(shape)), outputs)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [name], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "matrix", "bias"], [output]),
        ],
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(known if matrix is None else matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    return save(path, graph, about)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the softmax of the last axis, by its definition in float64."""
    parts = np.exp(logits.astype(np.float64))
    return parts / parts.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very", "[", "]", "sep", "SEP"]


def tokenizer() -> Tokenizer:
    """Return a tokenizer of WORDS that puts [CLS] and [SEP] around a text."""
    found = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:4]])
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return found


def text_model(path: Path, *, max_tokens: int = 6, **metadata: str) -> Path:
    """Write a model whose logits are the mean of `weights(len(WORDS))` over the tokens that the mask has, and return PATH."""
    matrix, _ = weights(len(WORDS))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["matrix", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["rows", "wide"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["logits"]),
        ],
        "mean",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    given = {"kind": "text", "name": "text", "max_tokens": max_tokens, "graph": ["input_ids", "attention_mask"]}
    return save(path, graph, schema(given), **{"edgeai__tokenizer": tokenizer().to_str(), **metadata})
