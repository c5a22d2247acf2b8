"""The proof of a classifier: it passes for the module's own file, and fails for every other one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters.onnx import export_module
from converters.onnx.metadata import write_metadata
from converters.onnx.quantize import quantize_dynamic, quantize_static
from edgeai.errors import InvalidModel, ProofFailed, UsageError
from edgeai.evaluation.classifier import LIMITS, Z, loss_interval, lost, prove_classifier, resolution
from edgeai.types import Report
from tests.converters.onnx.networks import Mlp, train

LABELS = [f"kind {index}" for index in range(3)]
SCHEMA: dict[str, Any] = {
    "version": 1,
    "name": "three",
    "task": "classification",
    "inputs": [
        {
            "kind": "table",
            "name": "features",
            "columns": [{"name": f"x{index}", "kind": "number", "mean": 0.0, "std": 1.0} for index in range(6)],
        }
    ],
    "output": {"name": "logits", "kind": "logits"},
    "labels": LABELS,
}
REGRESSION: dict[str, Any] = {
    **{key: SCHEMA[key] for key in ("version", "name", "inputs")},
    "task": "regression",
    "output": {"name": "values", "kind": "values"},
    "targets": [{"name": "price", "mean": 100.0, "std": 20.0}],
}


@dataclass(frozen=True)
class Three:
    """A network that tells three clouds of points apart, its file, and a test set."""

    module: Mlp
    path: Path
    inputs: np.ndarray
    labels: np.ndarray
    calibration: np.ndarray

    def prove(self, path: Path, quant: str = "F32", **changes: Any) -> Report:
        given = {"module": self.module, "inputs": {"features": self.inputs}, "labels": self.labels, "schema": SCHEMA}
        given |= changes
        return prove_classifier(
            given["module"], path, given["inputs"], given["labels"], schema=given["schema"], quant=quant
        )


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1400)
    inputs = (rng.standard_normal((3, 6)) * 1.5)[labels] + rng.standard_normal((1400, 6))
    inputs = inputs.astype(np.float32)
    torch.manual_seed(0)
    module = Mlp()
    train(module, inputs[:1000], labels[:1000])
    path = tmp_path_factory.mktemp("three") / "three.onnx"
    export_module(module, torch.from_numpy(inputs[:2]), path, schema=SCHEMA)
    return Three(module=module, path=path, inputs=inputs[1000:], labels=labels[1000:], calibration=inputs[:300])


def failed(report: Report) -> str:
    return "; ".join(row.name for row in report.failed)


def test_the_modules_own_file_passes_in_every_type(three: Three, tmp_path: Path) -> None:
    assert three.prove(three.path).ok
    half = tmp_path / "half.onnx"
    export_module(three.module, torch.from_numpy(three.inputs[:2]), half, schema=SCHEMA, dtype="f16")
    assert three.prove(half, "F16").ok
    static = quantize_static(three.path, tmp_path / "static.onnx", three.calibration)
    dynamic = quantize_dynamic(three.path, tmp_path / "dynamic.onnx")
    for path, quant in ((static.path, "INT8"), (dynamic.path, "INT8-DYNAMIC")):
        report = three.prove(path, quant)
        assert report.ok, failed(report)
        assert not three.prove(path, "F32").ok  # nobody takes it for the exact one
        lost = next(row for row in report.rows if row.name.startswith("accuracy lost"))
        assert lost.interval is not None
        assert lost.interval[0] <= lost.value <= lost.interval[1]


def test_outputs_in_another_order_fail(three: Three, tmp_path: Path) -> None:
    other = copy.deepcopy(three.module)
    with torch.no_grad():
        for part in (other.layers[3].weight, other.layers[3].bias):
            part.copy_(part[[1, 0, 2]])
    export_module(other, torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx", schema=SCHEMA)
    for quant in LIMITS:
        names = failed(three.prove(tmp_path / "it.onnx", quant))
        assert f"{quant} outputs against torch" in names
        assert f"{quant} labels as torch's" in names
        assert quant == "F32" or f"accuracy lost in {quant}" in names


def test_labels_in_another_order_fail(three: Three, tmp_path: Path) -> None:
    schema = {**SCHEMA, "labels": [LABELS[1], LABELS[0], LABELS[2]]}
    export_module(three.module, torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx", schema=schema)
    for quant in ("F32", "INT8"):
        names = failed(three.prove(tmp_path / "it.onnx", quant))
        assert "schema in the file" in names
        assert f"{quant} labels as torch's" in names


class Shifted(nn.Module):
    """The network behind another normalization."""

    def __init__(self, inner: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.inner, self.mean, self.std = inner, mean, std

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.inner((features - self.mean) / self.std)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (0.0, 3.0), (0.0, -1.0)])
def test_another_normalization_in_the_graph_fails(three: Three, mean: float, std: float, tmp_path: Path) -> None:
    export_module(
        Shifted(three.module, mean, std), torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx", schema=SCHEMA
    )
    for quant in ("F32", "INT8"):
        assert not three.prove(tmp_path / "it.onnx", quant).ok


def test_another_normalization_in_the_schema_fails(three: Three, tmp_path: Path) -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["inputs"][0]["columns"][2]["mean"] = 0.5
    export_module(three.module, torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx", schema=schema)
    assert failed(three.prove(tmp_path / "it.onnx")) == "schema in the file"


def test_a_file_of_another_model_fails(three: Three, tmp_path: Path) -> None:
    torch.manual_seed(7)
    export_module(Mlp(), torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx", schema=SCHEMA)
    for quant in ("F32", "INT8"):
        assert not three.prove(tmp_path / "it.onnx", quant).ok
    export_module(Mlp(6, 4), torch.from_numpy(three.inputs[:2]), tmp_path / "it.onnx")
    with pytest.raises(ProofFailed):
        three.prove(tmp_path / "it.onnx")
    (tmp_path / "it.onnx").write_bytes(b"no model at all, but some bytes")
    with pytest.raises(InvalidModel):
        three.prove(tmp_path / "it.onnx")


def test_right_labels_that_are_lost_are_too_many_at_six_in_a_hundred(three: Three) -> None:
    right = three.module(torch.from_numpy(three.inputs)).argmax(1).numpy() == three.labels
    found = right.copy()
    found[np.flatnonzero(right)[:24]] = False  # of 400
    limit = LIMITS["INT8"]
    assert not lost("lost", loss_interval(right, found), limit, len(right)).ok
    assert lost("lost", loss_interval(right, right), limit, len(right)).ok


def test_a_test_set_that_does_not_fit_is_refused(three: Three) -> None:
    for changes in ({"inputs": {"other": three.inputs}}, {"labels": three.labels[:5]}, {"labels": three.labels[:0]}):
        with pytest.raises(UsageError):
            three.prove(three.path, **changes)
    with pytest.raises(UsageError):
        three.prove(three.path, "Q4")


def test_a_regression_is_held_to_its_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((900, 6)).astype(np.float32)
    goal = (inputs @ rng.standard_normal(6) / 2).astype(np.float32)[:, None]
    torch.manual_seed(0)
    module = Mlp(6, 1)
    train(module, inputs[:600], goal[:600], epochs=10, loss=nn.functional.mse_loss)
    labels = goal[600:] * 20 + 100
    path = tmp_path / "it.onnx"
    export_module(module, torch.from_numpy(inputs[:2]), path, schema=REGRESSION)
    small = quantize_static(path, tmp_path / "small.onnx", inputs[:300]).path
    given = {"features": inputs[600:]}
    for file, quant in ((path, "F32"), (small, "INT8")):
        report = prove_classifier(module, file, given, labels, schema=REGRESSION, quant=quant)
        assert report.ok, failed(report)
        rows = {row.name: row.value for row in report.rows}
        with torch.no_grad():
            values = module(torch.from_numpy(inputs[600:])).numpy() * 20.0 + 100
        assert rows["RMSE in torch"] == pytest.approx(float(np.sqrt(((values - labels) ** 2).mean())), rel=1e-4)
        assert rows["R² in torch"] == pytest.approx(1 - float(((values - labels) ** 2).mean() / labels.var()), rel=1e-4)
        assert abs(rows[f"RMSE in {quant}"] / rows["RMSE in torch"] - 1) < 0.1
    with torch.no_grad():
        module.layers[3].bias += 0.5  # half a standard deviation of the target
    worse = prove_classifier(module, small, given, labels, schema=REGRESSION, quant="INT8")
    assert "outputs against torch" in failed(worse)


def test_the_files_texts_may_say_more(three: Three, tmp_path: Path) -> None:
    (tmp_path / "it.onnx").write_bytes(three.path.read_bytes())
    write_metadata(tmp_path / "it.onnx", {"edgeai.passport.ok": "true"})
    assert three.prove(tmp_path / "it.onnx").ok


def pairs(lost: int, won: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    reference, found = np.ones(count, bool), np.ones(count, bool)
    found[:lost] = False
    reference[lost : lost + won] = False
    return reference, found


def test_an_accuracy_of_which_nothing_is_lost_has_the_resolution_of_its_test_set() -> None:
    found = loss_interval(*pairs(0, 0, 100))
    assert (found.low, found.value, found.high) == pytest.approx((-resolution(100), 0, resolution(100)))
    assert resolution(100) == pytest.approx(0.037, abs=1e-3)


@pytest.mark.parametrize(("lost", "won", "count"), [(1, 0, 44), (5, 2, 120), (0, 9, 60), (40, 10, 100)])
def test_the_ends_are_where_the_likelihood_score_test_refuses(lost: int, won: int, count: int) -> None:
    """Tango's closed form against the definition: the largest likelihood under the difference, searched for on a grid."""

    def statistic(difference: float) -> float:
        shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)[1:-1]  # of examples that are won
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = lost * np.log(shares + difference) if lost else 0
            logs = logs + (won * np.log(shares) if won else 0)
            logs = logs + (count - lost - won) * np.log(1 - 2 * shares - difference)
        share = shares[np.nanargmax(logs)]
        return (lost - won - count * difference) / np.sqrt(count * (2 * share + difference * (1 - difference)))

    found = loss_interval(*pairs(lost, won, count))
    assert statistic(found.high) == pytest.approx(-Z, abs=5e-3)
    assert statistic(found.low) == pytest.approx(Z, abs=5e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        draw = rng.choice(3, 150, p=[0.92, 0.05, 0.03])
        found = loss_interval(draw != 2, draw != 1)
        inside += found.low <= 0.02 <= found.high
    assert 0.93 < inside / 2000 < 0.98
