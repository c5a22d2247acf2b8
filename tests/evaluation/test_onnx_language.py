"""The proof of a folder for onnxruntime-genai: one that is the source passes, and a mutation for each thing that could go wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.errors import EdgeAIError
from converters.families import plan_model
from converters.onnx.header import read_header
from converters.tokenizer import read_vocabulary
from edgeai.errors import ProofFailed
from edgeai.evaluation.onnx_language import OnnxProof, read_tensor
from edgeai.exporting.language import whole_context
from edgeai.types import Report
from tests.checkpoints import edit_json, make
from tests.families import VARIANTS, make_variant
from tests.genai import built

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama; no test changes it."""
    return built(llama, tmp_path_factory.mktemp("built") / "folder")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def proved(source: Path, folder: Path, base: str = "F32") -> Report:
    """The report on FOLDER: as an export, or as a file of the type BASE."""
    checkpoint = open_checkpoint(source)
    plan = whole_context(plan_model(checkpoint), checkpoint.config)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True)
    with OnnxProof(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, base=base, stores=False, exports=base == "F32"
    ) as proof:
        return Report(rows=tuple(proof.export(folder) if base == "F32" else proof.quantized(folder)))


def failed(source: Path, folder: Path, base: str = "F32") -> set[str]:
    """The names of the rows that fail; an error of its own where the proof ends before there are rows."""
    try:
        return {row.name for row in proved(source, folder, base).failed}
    except (ProofFailed, EdgeAIError) as error:
        return {error.message}


def test_what_the_builder_made_of_the_source_passes(llama: Path, folder: Path) -> None:
    report = proved(llama, folder)
    assert report.ok, report.failed
    names = {row.name for row in report.rows}
    assert {"cos_cache at 128 positions", "F32 logits against torch: NMSE", "operators of other libraries"} <= names


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_quantized_folders_are_measured_against_torch(llama: Path, tmp_path: Path, quant: str) -> None:
    report = proved(llama, built(llama, tmp_path / "built", quant), quant.upper())
    measured = {row.name: row.value for row in report.rows}
    assert 0 < float(measured["mean KL on text, nats"]) < 1


def test_prompts_go_beyond_the_window(tmp_path: Path) -> None:
    source = make_variant(tmp_path / "source", VARIANTS["gemma3"])
    report = proved(source, built(source, tmp_path / "built"))
    assert report.ok, report.failed
    assert {"cos_cache_global at 128 positions", "cos_cache_local at 128 positions"} <= {
        row.name for row in report.rows
    }


def weights(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Apply CHANGE to the numbers of the tensors whose names begin with NAME, in the data file."""
    header = read_header(folder / "model.onnx")
    for tensor in header.tensors:
        if tensor.name.startswith(name) and tensor.file is not None:
            assert tensor.offset is not None
            with (folder / tensor.file).open("r+b") as file:
                file.seek(tensor.offset)
                file.write(change(read_tensor(header, tensor)).astype("<f4").tobytes())


def swapped(spec: Any) -> None:
    vocab = spec["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>user"))


def set_model(name: str, value: Any) -> Change:
    return lambda folder: edit_json(folder / "genai_config.json", lambda config: config["model"].update({name: value}))


def more_window(folder: Path) -> None:
    import onnx

    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "local_window_size":
                item.i = 6
    path.write_bytes(model.SerializeToString())


def foreign(folder: Path) -> None:
    import onnx

    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import.add(domain="evil", version=1)
    model.graph.node.add(op_type="Magic", domain="evil", input=["input_ids"], output=["m"])
    path.write_bytes(model.SerializeToString())


MUTATIONS: dict[str, tuple[Change, str]] = {
    "weights of another model": (lambda folder: weights(folder, "model.layers.1.mlp", lambda _w: _w[::-1]), "logits"),
    "one weight": (lambda folder: weights(folder, "lm_head", lambda w: np.where(np.arange(w.shape[1]) == 7, w + 0.5, w)), "logits"),
    "a norm": (lambda folder: weights(folder, "model.layers.0.input_layernorm", lambda w: w * 1.02), "logits"),
    "cosines": (lambda folder: weights(folder, "cos_cache", lambda w: w * 1.01), "cos_cache at 128 positions"),
    "far cosines": (
        lambda folder: weights(folder, "cos_cache", lambda w: np.where(np.arange(len(w))[:, None] > 120, -w, w)),
        "cos_cache at 128 positions",
    ),
    "sines": (lambda folder: weights(folder, "sin_cache", lambda w: -w), "sin_cache at 128 positions"),
    "two tokens": (lambda folder: edit_json(folder / "tokenizer.json", swapped), "token ids"),
    "chat template": (template, "chat"),
    "no chat template": (lambda folder: (folder / "chat_template.jinja").unlink(), "chat"),
    "end": (set_model("eos_token_id", 1), "ends of an answer"),
    "more ends": (set_model("eos_token_id", [2, 5]), "ends of an answer"),
    "a window that is none": (more_window, "logits"),
    "operators": (foreign, "evil.Magic"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_fails_its_gate(llama: Path, copy: Path, name: str) -> None:
    change, gate = MUTATIONS[name]
    change(copy)
    found = failed(llama, copy)
    assert any(gate in row for row in found), found


@pytest.mark.parametrize("name", ["two tokens", "chat template", "end", "cosines", "weights of another model"])
def test_each_mutation_of_a_quantized_file_fails_too(llama: Path, copy: Path, name: str) -> None:
    MUTATIONS[name][0](copy)
    assert failed(llama, copy, "INT8")


def test_a_folder_of_another_source_fails(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", attention_bias=True)
    found = failed(other, folder)
    assert any("logits" in row for row in found), found


def test_a_folder_that_does_not_run_is_a_failed_proof_with_the_reason(llama: Path, copy: Path) -> None:
    config = json.loads((copy / "genai_config.json").read_text())
    config["model"]["type"] = "nothing"
    (copy / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ProofFailed, match="does not run the converted model"):
        proved(llama, copy)


def test_tables_in_halves_are_read_as_they_are(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    values = np.array([[1.0, -0.5], [0.25, 3.0]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    tensors = [
        numpy_helper.from_array(values, "single"),
        numpy_helper.from_array(values.astype(np.float16), "half"),
        helper.make_tensor("brain", TensorProto.BFLOAT16, [2, 2], bits, raw=True),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Identity", ["single"], ["y"])], "g", [], out, tensors)
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    header = read_header(tmp_path / "m.onnx")
    assert [read_tensor(header, tensor).tolist() for tensor in header.tensors] == [values.tolist()] * 3
