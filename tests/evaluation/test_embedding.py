"""The proof of embedding models, on a tiny BERT, and the mistakes that it must find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.families import bert
from edgeai import pipeline
from edgeai.errors import ProofFailed
from edgeai.evaluation import passport
from edgeai.evaluation.embedding import cosines
from edgeai.evaluation.prove import prove
from edgeai.pipeline import convert
from edgeai.types import Report
from tests.families import VARIANTS, make_variant


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_variant(tmp_path_factory.mktemp("bert é") / "m", VARIANTS["bert"])


def value(report: Report, name: str) -> float | str:
    return next(row.value for row in report.rows if name in row.name)


@pytest.mark.parametrize(("quant", "least"), [("f32", 0.9999), ("q8_0", 0.999), ("q4_0", 0.95)])
def test_an_embedding_model_has_the_vectors_of_torch(model: Path, tmp_path: Path, quant: str, least: float) -> None:
    done = convert(model, tmp_path / "out.gguf", quant)
    assert done.report.ok
    assert float(value(done.report, "F32 vectors of tokens")) < 1e-6
    found = [row for row in done.report.rows if "least cosine" in row.name][-1]
    assert float(found.value) >= least
    facts = json.loads((tmp_path / "out.gguf.passport.json").read_text())
    assert facts["measured"]["min_cosine"] == found.value
    assert prove(model, tmp_path / "out.gguf").report.ok


def test_another_pooling_is_found(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.plan_model
    monkeypatch.setattr(
        pipeline, "plan_model", lambda c: replace(plan := original(c), keys={**plan.keys, "pooling_type": 2})
    )
    with pytest.raises(ProofFailed, match="vectors of texts"):
        convert(model, tmp_path / "out.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_exchanged_tensors_are_found(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = []
    for rule in bert.FAMILY.per_layer:
        other = {"query": "key", "key": "query"}
        part = rule.source.split(".")[-2]
        rules.append(replace(rule, source=rule.source.replace(part, other.get(part, part))))
    monkeypatch.setattr(bert, "FAMILY", replace(bert.FAMILY, per_layer=tuple(rules)))
    with pytest.raises(ProofFailed, match="vectors of tokens"):
        convert(model, tmp_path / "out.gguf", "f32")


def test_without_torch_the_reference_is_the_export(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "torch is not installed")
    done = convert(model, tmp_path / "out.gguf", "q8_0")
    assert done.report.ok
    assert value(done.report, "vectors against torch") == "not compared"
    assert prove(model, tmp_path / "out.gguf").report.ok


def test_cosines_are_those_of_the_closed_form() -> None:
    left, right = np.array([[1, 0], [1, 1]], np.float32), np.array([[0, 2], [3, 3]], np.float32)
    assert cosines(left, right) == pytest.approx([0, 1])
