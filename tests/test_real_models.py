"""Real models read back from their GGUF files and converted again, each proved against torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters import hf_export
from converters.imports.checkpoint import import_gguf
from edgeai.conversion import Conversion
from edgeai.engines.opening import open_engine
from edgeai.exporting import convert_onnx
from edgeai.importing import import_model
from edgeai.model import Model
from edgeai.pipeline import convert
from tests.conftest import Record, pulled

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]


def value(done: Conversion, name: str) -> float:
    return next(float(row.value) for row in done.report.rows if row.name == name)


def record(record_proof: Record, done: Conversion, model: str, variant: str) -> None:
    error = value(done, "F32 logits against torch: NMSE")
    record_proof(model=model, source="GGUF, read back", variant=variant, proof="F32 logits NMSE", error=error)


def test_smollm2_is_read_back_and_converted_again(smollm2_path: Path, tmp_path: Path, record_proof: Record) -> None:
    folder = import_model(smollm2_path, tmp_path / "smollm2 é").path
    done = convert(folder, tmp_path / "again.gguf", "q4_1")
    assert value(done, "F32 logits against torch: NMSE") < 1e-6
    assert value(done, "mean KL on text, nats") < 0.01  # its weights lie on the grid of Q4_1 already
    record(record_proof, done, "LlamaForCausalLM", "SmolLM2-135M-Instruct")


def test_gemma_3_is_read_back_and_converted_again(tmp_path: Path, record_proof: Record) -> None:
    folder = tmp_path / "gemma é"
    folder.mkdir()
    hf_export.write_folder(folder, import_gguf(pulled("gemma3-270m")).checkpoint, "f32")
    done = convert(folder, tmp_path / "again.gguf", "q4_k_m")
    assert value(done, "F32 logits against torch: NMSE") < 3e-6  # ggml's GELU is a table of halves
    assert value(done, "F32 logits 512 tokens apart: NMSE") < 3e-6  # at the edge of its sliding window
    record(record_proof, done, "Gemma3ForCausalLM", "Gemma-3-270M")


def test_smollm2_becomes_an_onnx_model_that_answers(smollm2_path: Path, tmp_path: Path) -> None:
    done = convert_onnx(import_model(smollm2_path, tmp_path / "smollm2 é").path, tmp_path / "out", "int4")
    assert value(done, "F32 logits against torch: NMSE") < 1e-10
    assert value(done, "F32 logits with the cache: NMSE") < 1e-10
    assert value(done, "mean KL on text, nats") < 0.5
    with Model(open_engine(done.path)) as model:
        answer = model.chat(
            [{"role": "user", "content": "What is the capital of France?"}], max_tokens=24, temperature=0
        )
    assert "Paris" in answer.text


def test_gemma_3_becomes_an_onnx_model_with_its_windows(tmp_path: Path) -> None:
    folder = tmp_path / "gemma é"
    folder.mkdir()
    hf_export.write_folder(folder, import_gguf(pulled("gemma3-270m")).checkpoint, "bf16")
    done = convert_onnx(folder, tmp_path / "out", "int8")
    assert value(done, "F32 logits against torch: NMSE") < 1e-10  # with norms that were added up in bfloat16 it is 3e-5
    assert value(done, "mean KL on text, nats") < 0.05
