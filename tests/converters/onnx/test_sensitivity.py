"""Costs of types: the error of a graph's own blocks, weighed as the curvature says, against plain sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.curvature import FACTS, Curvature, open_curvature, sources
from converters.families import plan_model
from converters.feedback import DAMPING
from converters.onnx.choices import ARCHITECTURES
from converters.onnx.header import Header, read_header
from converters.onnx.matrices import Matrix, matrices
from converters.onnx.sensitivity import costs, spread, tensors_of
from tests.checkpoints import make
from tests.families import VARIANTS, Variants
from tests.genai import built

FAMILIES = sorted(name for name, variant in VARIANTS.items() if variant.model in ARCHITECTURES and "-" not in name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def graphs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by the type that all their matrices have; no test changes them."""
    place = tmp_path_factory.mktemp("graphs")
    return {
        "F32": built(source, place / "f32"),
        "INT4": built(source, place / "int4", "int4", ["embed_tokens=int4"]),
        "INT8": built(source, place / "int8", "int8", ["embed_tokens=int8"]),
    }


def opened(folder: Path) -> tuple[Header, dict[str, Matrix]]:
    header = read_header(folder / "model.onnx")
    return header, matrices(header)


def invented(folder: Path, rows: dict[str, int], columns: int, *, even: bool = False) -> Curvature:
    """Return sums for tensors with so many ROWS that all have the same inputs: of nothing in particular, or EVEN ones."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(columns, columns)) / columns
    products = np.eye(columns) if even else mixed @ mixed.T
    products.astype("<f4").tofile(folder / "H0.f32")
    for name, count in rows.items():
        weights = np.ones(count) if even else rng.exponential(size=count)
        weights.astype("<f4").tofile(folder / f"{name}.G.f32")
    facts = {"targets": dict.fromkeys(rows, 0), "rounding": {}, "tokens": 1 << 20, "texts": 1, "whole": False}
    (folder / FACTS).write_text(json.dumps(facts))
    return open_curvature(folder)


QKV = {"blk.0.attn_q.weight": 64, "blk.0.attn_k.weight": 32, "blk.0.attn_v.weight": 32}


def raw(folder: Path, curvature: Curvature, name: str) -> np.ndarray:
    return np.concatenate(
        [np.fromfile(curvature.folder / f"{one}.G.f32", "<f4") for one in tensors_of(name, curvature)]
    )


def test_costs_are_sums_over_all_pairs_of_inputs(graphs: dict[str, Path], tmp_path: Path) -> None:
    from converters.onnx.blocks import weights_of

    name = "layers.0.attn.qkv_proj"
    exact, blocks = opened(graphs["F32"]), {kind: opened(graphs[kind]) for kind in ("INT4", "INT8")}
    columns = exact[1][name].columns
    curvature = invented(tmp_path, QKV, columns)
    built = {kind: (header, found[name]) for kind, (header, found) in blocks.items()}
    found = costs((exact[0], exact[1][name]), built, curvature, rounded=False)
    products = curvature.columns("blk.0.attn_q.weight").astype(np.float64)
    products += np.eye(columns) * DAMPING * products.trace() / columns
    rows = raw(tmp_path, curvature, name)
    for kind, place in built.items():
        error = weights_of(*place).astype(np.float64) - weights_of(exact[0], exact[1][name])
        expected = 0.5 * sum(
            weight * row[i] * row[j] * products[i, j]
            for weight, row in zip(rows, error, strict=True)
            for i in range(columns)
            for j in range(columns)
        )
        assert found[kind] == pytest.approx(expected, rel=1e-5)


def test_four_bits_cost_more_than_eight_and_inputs_that_are_rounded_more_than_others(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    name = "layers.0.attn.qkv_proj"
    header, whole = opened(graphs["F32"])
    curvature = invented(tmp_path, QKV, whole[name].columns)
    built = {kind: (opened(graphs[kind])[0], opened(graphs[kind])[1][name]) for kind in ("INT4", "INT8")}
    plain, rounded = (costs((header, whole[name]), built, curvature, rounded=value) for value in (False, True))
    assert plain["INT4"] > 20 * plain["INT8"]
    assert rounded["INT8"] - plain["INT8"] == pytest.approx(rounded["INT4"] - plain["INT4"], rel=1e-6)
    assert rounded["INT8"] > plain["INT8"]


def test_an_embedding_has_no_inputs_that_are_rounded(graphs: dict[str, Path], tmp_path: Path) -> None:
    header, whole = opened(graphs["F32"])
    matrix = whole["embed_tokens"]
    curvature = invented(tmp_path, {"token_embd.weight": matrix.rows, "output.weight": matrix.rows}, matrix.columns)
    built = {"INT8": (opened(graphs["INT8"])[0], opened(graphs["INT8"])[1]["embed_tokens"])}
    assert costs((header, matrix), built, curvature, rounded=True) == costs(
        (header, matrix), built, curvature, rounded=False
    )


def test_the_spread_is_that_of_rounding_to_even_steps() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20000, 64)) * np.repeat([1.0, 10.0], 32)
    blocks = values.reshape(len(values), 2, 32)
    step = np.abs(blocks).max(-1, keepdims=True) / 127
    measured = ((blocks / step).round() * step - blocks).reshape(values.shape).var(0).reshape(2, 32).mean(1)
    found = spread((values**2).mean(0), 32)[[0, 32]]
    assert found[1] / found[0] == pytest.approx(100, rel=0.05)
    assert (found / measured > 1).all()  # numbers of models have outliers, which normal ones have not
    assert (found / measured < 4).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_family_is_one_that_curvature_knows(variants: Variants, tmp_path: Path, name: str) -> None:
    plan = plan_model(open_checkpoint(variants(name)))
    inner, ends = sources(plan)
    known = Curvature(
        folder=tmp_path,
        places=dict.fromkeys([*inner, *(one for some in ends.values() for one in some)], 0),
        tokens=1,
        texts=1,
    )
    _, found = opened(built(variants(name), tmp_path / "built"))
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    for matrix in found.values():
        tensors = tensors_of(matrix.name, known)
        assert tensors, matrix.name
        rows = sum(shapes[one][0] for one in tensors)
        assert rows in (matrix.rows, 2 * matrix.rows if name == "phi3" else matrix.rows), matrix.name
        assert {shapes[one][-1] for one in tensors} == {matrix.columns}


def test_a_matrix_that_curvature_does_not_know_has_no_tensors(tmp_path: Path) -> None:
    known: dict[str, Any] = {"folder": tmp_path, "places": {"blk.0.attn_q.weight": 0}, "tokens": 1, "texts": 1}
    assert tensors_of("layers.0.attn.qkv_proj", Curvature(**known)) == ()
    assert tensors_of("lm_head", Curvature(**known)) == ()
