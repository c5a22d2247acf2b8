"""A trained classifier's folder → a proved ONNX file, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters.errors import BrokenCheckpoint, ConvertError, OutputError, UnsupportedModel
from converters.onnx.checks import open_session
from converters.onnx.header import read_header
from edgeai.errors import ProofFailed, UsageError
from edgeai.exporting import job
from edgeai.exporting.modules import convert_module, is_module_folder
from edgeai.paper import paper_of, read_paper
from edgeai.types import Notice
from tests.converters.onnx.networks import Encoder, Mlp, train, write_folder
from tests.evaluation.test_classifier import SCHEMA

TEXT: dict[str, Any] = {
    **SCHEMA,
    "inputs": [{"kind": "text", "name": "text", "max_tokens": 16, "graph": ["input_ids", "attention_mask"]}],
}


def loads(module: nn.Module) -> Callable[[Path], nn.Module]:
    return lambda _folder: module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1200)
    inputs = ((rng.standard_normal((3, 6)) * 1.5)[labels] + rng.standard_normal((1200, 6))).astype(np.float32)
    torch.manual_seed(0)
    module = Mlp()
    train(module, inputs[:800], labels[:800], epochs=3)
    folder = tmp_path_factory.mktemp("trained") / "three"
    write_folder(folder, module, SCHEMA, {"features": inputs[:200]}, {"features": inputs[800:]}, labels[800:])
    return folder, module


@pytest.mark.parametrize("quant", ["f32", "F16", "Int8", "int8-dynamic"])
def test_each_type_is_proved_and_says_what_it_is(trained: tuple[Path, nn.Module], quant: str, tmp_path: Path) -> None:
    folder, module = trained
    output = tmp_path / "it.onnx"
    done = convert_module(folder, output, quant, load=loads(module))
    assert done.report.ok
    assert done.quant == quant.upper()
    assert done.format == "onnx"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["it.onnx", "it.onnx.passport.json"]
    assert done.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    texts = read_header(output).metadata
    assert json.loads(texts["edgeai.schema"]) == SCHEMA
    assert texts["edgeai.passport.ok"] == "true"
    assert texts["edgeai.quant"] == quant.upper()
    assert float(texts["edgeai.passport.accuracy"]) > 0.8
    paper = read_paper(output, texts)
    assert (paper.place, paper.ok) == ("beside", True)
    assert paper.facts["source"]["sha256"] == texts["edgeai.source.sha256"]
    if quant == "Int8":
        assert convert_module(folder, output, quant, load=loads(module), force=True).sha256 == done.sha256
        other = convert_module(folder, tmp_path / "o.onnx", quant, load=loads(module), calibration_method="entropy")
        assert other.sha256 != done.sha256
        assert json.loads(paper_of(other.path).read_text())["calibration"] == {"method": "entropy", "rows": 200}


def test_a_text_classifier_takes_its_tokenizer_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (120, 12))
    mask = (np.arange(12)[None] < rng.integers(2, 13, (120, 1))).astype(np.int64)
    module = Encoder().eval()
    with torch.no_grad():
        labels = module(torch.from_numpy(ids), torch.from_numpy(mask)).argmax(1).numpy()
    arrays = {"input_ids": ids, "attention_mask": mask}
    folder = write_folder(tmp_path / "text", module, TEXT, arrays, arrays, labels)
    with pytest.raises(BrokenCheckpoint, match="tokenizer"):
        convert_module(folder, None, "int8-dynamic", load=loads(module))
    (folder / "tokenizer.json").write_text('{"model": "ä"}', encoding="utf-8")
    done = convert_module(folder, load=loads(module))
    assert done.quant == "INT8-DYNAMIC"
    assert done.path == tmp_path / "text.onnx"
    header = read_header(done.path)
    assert header.metadata["edgeai.tokenizer"] == '{"model": "ä"}'
    assert [(port.name, port.shape) for port in header.inputs] == [(name, ("batch", "length")) for name in arrays]
    feed = {name: values[:3, :5] for name, values in arrays.items()}
    assert open_session(done.path).run(None, feed)[0].shape == (3, 3)


def test_a_library_that_is_missing_is_named(
    trained: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(UsageError, match="needs torch, not installed here"):
        convert_module(trained[0], tmp_path / "it.onnx")


def test_a_file_that_is_not_the_module_gets_no_name(
    trained: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantizing with the ranges of other data breaks it; the file that was there stays."""
    folder, module = trained
    output = tmp_path / "it.onnx"
    before = convert_module(folder, output, "f32", load=loads(module)).sha256
    from converters.onnx import quantize

    right = quantize.quantize_static

    def wrong(source: Path, target: Path, calibration: dict[str, np.ndarray], **options: Any) -> Any:
        return right(source, target, {name: values / 1000 for name, values in calibration.items()}, **options)

    monkeypatch.setattr(quantize, "quantize_static", wrong)
    with pytest.raises(ProofFailed, match="INT8 outputs against torch"):
        convert_module(folder, output, "int8", load=loads(module), force=True)
    assert hashlib.sha256(output.read_bytes()).hexdigest() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_an_export_that_is_not_the_module_ends_it(
    trained: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = trained
    import edgeai.exporting.modules

    right = edgeai.exporting.modules.export_module
    torch.manual_seed(9)
    other = Mlp()
    monkeypatch.setattr(
        edgeai.exporting.modules, "export_module", lambda _module, *args, **options: right(other, *args, **options)
    )
    with pytest.raises(ProofFailed, match="logits against torch"):
        convert_module(folder, tmp_path / "it.onnx", "int8", load=loads(module))
    assert not any(tmp_path.iterdir())


def test_what_is_less_than_asked_for_is_said(trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, module = trained
    from safetensors.numpy import load_file

    data = load_file(folder / "data.safetensors")
    few = write_folder(
        tmp_path / "few",
        module,
        SCHEMA,
        {"features": data["calibration"]},
        {"features": data["test"][:40]},
        data["test.labels"][:40],
    )
    said: list[Notice] = []
    convert_module(few, None, "f32", load=loads(module), notify=said.append)
    assert [notice.code for notice in said] == ["small-test-set"]


def test_wrong_requests_fail_before_the_work_starts(trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, _ = trained

    def never(_folder: Path) -> nn.Module:
        raise AssertionError

    with pytest.raises(UsageError, match="q4_k_m") as caught:
        convert_module(folder, tmp_path / "it.onnx", "q4_k_m", load=never)
    assert caught.value.hint == "one of f32, f16, int8, int8-dynamic"
    with pytest.raises(UsageError, match="median"):
        convert_module(folder, tmp_path / "it.onnx", "int8", calibration_method="median", load=never)
    with pytest.raises(OutputError):
        convert_module(folder, folder / "it.onnx", "int8", load=never)
    (tmp_path / "it.onnx").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        convert_module(folder, tmp_path / "it.onnx", "int8", load=never)


@pytest.mark.parametrize("damage", ["config", "schema", "type", "data", "tensor", "module"])
def test_a_damaged_folder_is_one_error(trained: tuple[Path, nn.Module], damage: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder, module = trained
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    config = json.loads((copied / "config.json").read_text())
    changes: dict[str, Callable[[], Any]] = {
        "config": lambda: (copied / "config.json").write_text("{"),
        "schema": lambda: (copied / "config.json").write_text(json.dumps({**config, "schema": {"task": "guess"}})),
        "type": lambda: (copied / "config.json").write_text(json.dumps({**config, "model_type": "llama"})),
        "data": lambda: (copied / "data.safetensors").write_bytes(b"12345678 no"),
        "tensor": lambda: save_file({"calibration": np.ones((2, 6), np.float32)}, copied / "data.safetensors"),
        "module": lambda: None,
    }
    changes[damage]()

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert is_module_folder(copied) == (damage not in ("config", "type"))
    with pytest.raises((BrokenCheckpoint, UnsupportedModel, ConvertError)):
        convert_module(copied, tmp_path / "it.onnx", "f32", load=loads(Broken() if damage == "module" else module))
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]
