"""Predictions are the softmax of what the graph gives, or values in their units, from any thread and in batches of any size."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import edgeai
from edgeai.artifact import open_artifact
from edgeai.engines.fake import FakeEngine
from edgeai.engines.onnx.engine import _Bound
from edgeai.engines.onnx.schema import Column, Table
from edgeai.engines.onnx.tables import Tables
from edgeai.errors import ClosedError, DeviceUnavailable, EngineCrashed, InvalidModel, UsageError
from edgeai.model import Model
from edgeai.types import GenerationConfig, Prediction
from tests.engines.onnx.models import IMAGE, LABELS, NUMBERS, linear, save, schema, softmax, table, weights

ROWS = np.random.default_rng(1).standard_normal((1000, 2)) * 3
READER = Tables(
    Table(name="features", columns=(Column(name="width", mean=2.0, std=4.0), Column(name="height", mean=-1.0, std=0.5)))
)
MEAN, STD = np.array([2.0, -1.0]), np.array([4.0, 0.5])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A classifier of rows with two numbers."""
    return linear(tmp_path / "rows.onnx", [2], schema(table(NUMBERS)))


@pytest.fixture
def model(path: Path) -> Any:
    """That classifier, loaded."""
    with edgeai.load(path) as found:
        yield found


def logits_of(rows: Any) -> Any:
    matrix, bias = weights(2)
    return ((np.asarray(rows) - MEAN) / STD) @ matrix.astype(np.float64) + bias


def test_one_item_alone_is_the_softmax_of_the_graph(model: Model) -> None:
    (found,) = model.classify([ROWS[0]])
    wanted = softmax(logits_of(ROWS[0]))
    assert (found.index, found.label) == (int(wanted.argmax()), LABELS[int(wanted.argmax())])
    assert found.score == pytest.approx(wanted.max(), rel=1e-5)
    assert list(found.probabilities.values()) == pytest.approx(wanted.tolist(), rel=1e-5)
    assert list(found.probabilities) == LABELS
    assert found.logits == pytest.approx(logits_of(ROWS[0]).tolist(), rel=1e-5)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-12)


def test_many_items_are_what_each_is_alone(model: Model) -> None:
    together = model.classify(list(ROWS))
    assert len(together) == len(ROWS)
    alone = [model.classify([row])[0] for row in ROWS]
    assert [item.index for item in together] == [item.index for item in alone]
    assert np.allclose([item.logits for item in together], [item.logits for item in alone], rtol=1e-6)
    assert np.allclose([item.logits for item in together], logits_of(ROWS), atol=1e-5)
    assert [item.score for item in together] == pytest.approx([item.score for item in alone], rel=1e-6)


def test_a_matrix_of_ten_thousand_rows_works(model: Model) -> None:
    rows = np.tile(ROWS, (10, 1)).astype(np.float32)
    found = model.classify(rows)
    assert len(found) == 10_000
    assert [item.index for item in found] == logits_of(rows).argmax(axis=1).tolist()


def test_no_items_are_no_predictions(model: Model) -> None:
    assert model.classify([]) == []


def test_many_threads_get_the_same_as_one(model: Model) -> None:
    wanted = [item.logits for item in model.classify(list(ROWS))]
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        found[number] = [model.classify([row])[0].logits for row in ROWS]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(found[number], wanted, rtol=1e-6) for number in range(4))


def test_a_prediction_stays_what_it_was_after_the_next_one(model: Model) -> None:
    first = model.classify([ROWS[0]])[0]
    kept = (first.logits, first.score)
    model.classify([ROWS[1]])
    assert (first.logits, first.score) == kept


def test_the_engine_works_after_an_error(model: Model) -> None:
    before = model.classify([ROWS[0]])
    for wrong in ([np.array([np.nan, 1.0])], [np.zeros(3)], ["nowhere.csv"], [None]):
        with pytest.raises(UsageError):
            model.classify(wrong)
    assert model.classify([ROWS[0]]) == before


@pytest.mark.parametrize("single", ["text", b"bytes", Path("x.csv"), {"width": 1.0}, 3, np.float32(3)])
def test_what_is_no_list_of_items_is_refused(model: Model, single: Any) -> None:
    with pytest.raises(UsageError) as caught:
        model.classify(single)
    assert "classify([item])" in (caught.value.hint or "")


def test_a_regression_gives_values_in_the_units_of_its_targets(tmp_path: Path) -> None:
    targets = [{"name": "price", "mean": 100.0, "std": 10.0}, {"name": "age", "mean": 3.0, "std": 2.0}]
    about = schema(
        table(NUMBERS), task="regression", targets=targets, output={"name": "values", "kind": "values"}, labels=None
    )
    path = linear(tmp_path / "r.onnx", [2], about, outputs=2, output="values")
    matrix, bias = weights(2, 2)
    wanted = (((ROWS[:2] - MEAN) / STD) @ matrix + bias) * [10.0, 2.0] + [100.0, 3.0]
    with edgeai.load(path) as model:
        assert np.allclose([item.values for item in model.classify(list(ROWS[:2]))], wanted, rtol=1e-5)
        (alone,) = model.classify([ROWS[0]])
    assert (alone.names, alone.label, alone.probabilities) == (("price", "age"), None, {})
    assert alone.values == pytest.approx(wanted[0].tolist(), rel=1e-5)
    with pytest.raises(UsageError, match="2 values"):
        _ = alone.value


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("wrong", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_outputs_that_are_no_numbers_are_a_crash(tmp_path: Path, count: int, wrong: float, word: str) -> None:
    matrix = np.full((2, 3), wrong, dtype=np.float32)
    with edgeai.load(linear(tmp_path / "n.onnx", [2], schema(table(NUMBERS)), matrix=matrix)) as model:
        with pytest.raises(EngineCrashed, match=r"NaN|infinity") as caught:
            model.classify([np.array([3.0, 1.0])] * count)
        assert caught.value.exit_code == 7
        assert word in str(caught.value) or "NaN" in str(caught.value)


@pytest.mark.parametrize("scale", [1e-3, 50.0, 1e4])
def test_the_softmax_of_large_logits_neither_overflows_nor_vanishes(tmp_path: Path, scale: float) -> None:
    matrix, _ = weights(2)
    path = linear(tmp_path / "l.onnx", [2], schema(table(NUMBERS)), matrix=(matrix * scale).astype(np.float32))
    with edgeai.load(path) as model:
        (alone,), pair = model.classify([ROWS[0]]), model.classify([ROWS[0]] * 2)
    shifted = np.array(alone.logits) - max(alone.logits)
    wanted = np.exp(shifted) / np.exp(shifted).sum()
    assert alone.score == pytest.approx(wanted.max(), rel=1e-12)
    assert pair[1].score == pytest.approx(wanted.max(), rel=1e-12)
    assert alone.probabilities[alone.label or ""] == pytest.approx(alone.score, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_graph_of_a_fixed_batch_takes_any_number_of_items(tmp_path: Path, batch: int) -> None:
    with edgeai.load(linear(tmp_path / "f.onnx", [2], schema(table(NUMBERS)), batch=batch)) as model:
        assert np.allclose([item.logits for item in model.classify(list(ROWS[:7]))], logits_of(ROWS[:7]), atol=1e-5)
        assert np.allclose(model.classify([ROWS[0]])[0].logits, logits_of(ROWS[0]), atol=1e-5)


def test_more_labels_than_plain_python_is_used_for(tmp_path: Path) -> None:
    labels = [f"l{at}" for at in range(200)]
    path = linear(tmp_path / "many.onnx", [2], schema(table(NUMBERS), labels=labels), outputs=200)
    matrix, bias = weights(2, 200)
    wanted = softmax(((ROWS[0] - MEAN) / STD) @ matrix + bias)
    with edgeai.load(path) as model:
        (found,) = model.classify([ROWS[0]])
    assert found.score == pytest.approx(wanted.max(), rel=1e-5)
    assert found.label == labels[int(wanted.argmax())]


def test_without_the_way_into_native_code_the_public_method_is_used(model: Model) -> None:
    native = model.engine.session.native  # type: ignore[attr-defined]
    bound = _Bound(
        SimpleNamespace(io_binding=native.io_binding, run_with_iobinding=native.run_with_iobinding), READER, "logits", 3
    )
    assert bound.fill(ROWS[0])
    bound.run()
    assert np.allclose(bound.row, logits_of(ROWS[0]), atol=1e-5)


def test_a_closed_model_says_so(path: Path) -> None:
    model = edgeai.load(path)
    model.classify([ROWS[0]])
    model.close()
    model.close()
    for call in (lambda: model.classify([ROWS[0]]), lambda: model.engine.classify([ROWS[0]])):
        with pytest.raises(ClosedError):
            call()


def test_a_forgotten_engine_frees_its_session(path: Path) -> None:
    model = edgeai.load(path)
    model.classify([ROWS[0]])
    session = weakref.ref(model.engine.session.native)  # type: ignore[attr-defined]
    del model
    gc.collect()
    assert session() is None


def test_the_other_methods_say_what_the_model_is_for(model: Model) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: model.embed(["a"]),
        lambda: model.rank("a", ["b"]),
        lambda: model.score("a"),
        lambda: model.complete("a"),
        lambda: model.engine.generate("a", GenerationConfig()),
        lambda: model.tokenize("a"),
        lambda: model.detokenize([1]),
        lambda: model.save_prompt("a", "b"),
        lambda: model.load_prompt("b"),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.hint == "use classify"


def test_other_models_refuse_to_classify(tiny: Model) -> None:
    with pytest.raises(UsageError, match="not a classifier"):
        tiny.classify(["a"])
    assert [item.label for item in Model(FakeEngine()).classify(["a", "bb"])] == ["odd", "even"]


def test_an_isolated_model_gives_the_same_and_says_the_same(path: Path, model: Model) -> None:
    wanted = model.classify(list(ROWS[:300]))
    with edgeai.load(path, isolated=True) as apart:
        assert apart.classify(list(ROWS[:300])) == wanted
        assert apart.classify([]) == []
        with pytest.raises(UsageError, match="'width' is nan"):
            apart.classify([{"width": float("nan"), "height": 1}])
        assert apart.plan.engine == "onnxruntime"
        assert np.allclose(apart.classify([ROWS[0]])[0].logits, wanted[0].logits, rtol=1e-6)


def test_an_isolated_language_model_refuses_to_classify(tiny_gguf: Path) -> None:
    with edgeai.load(tiny_gguf, isolated=True, threads=1) as apart, pytest.raises(UsageError, match="generation"):
        apart.classify(["a"])


def test_an_async_model_gives_the_same(path: Path, model: Model) -> None:
    async def ask() -> list[Prediction]:
        async with await edgeai.AsyncModel.load(path) as other:
            return await other.classify(list(ROWS[:3]))

    assert asyncio.run(ask()) == model.classify(list(ROWS[:3]))


def test_pictures_are_scaled_before_the_graph(tmp_path: Path) -> None:
    path = linear(tmp_path / "p.onnx", [1, 4, 4], schema(IMAGE), name="image")
    pixels = np.random.default_rng(2).integers(0, 256, (4, 4), dtype=np.uint8)
    matrix, bias = weights(16)
    wanted = ((pixels / 255 - 0.5) / 0.25).reshape(-1) @ matrix + bias
    with edgeai.load(path) as model:
        assert np.allclose(model.classify([pixels])[0].logits, wanted, atol=1e-5)
        assert np.allclose(model.classify([pixels, pixels])[1].logits, wanted, atol=1e-5)
        strided = np.ascontiguousarray(pixels.T).T
        assert np.allclose(model.classify([strided])[0].logits, wanted, atol=1e-5)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "other input": schema({**table(NUMBERS), "name": "rows"}),
    "other output": schema(table(NUMBERS), output={"name": "scores", "kind": "logits"}),
    "other count": schema(table(NUMBERS), labels=["a", "b"]),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_schema_that_is_not_of_the_graph_is_refused_when_loading(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidModel, match="contradicts itself"):
        edgeai.load(linear(tmp_path / "c.onnx", [2], CONTRADICTIONS[name]))


@pytest.mark.parametrize("option", [{"ctx": 64}, {"gpu_layers": 3}, {"kv_type": "q8_0"}, {"threads_batch": 2}])
def test_options_for_language_models_are_refused(path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not possible"):
        edgeai.load(path, **option)


def test_an_onnx_file_is_no_draft(path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(InvalidModel, match="GGUF"):
        edgeai.load(tiny_gguf, draft=path)


def test_directml_runs_no_gguf_file(tiny_gguf: Path) -> None:
    for options in ({}, {"gpu_layers": 0}):
        with pytest.raises(DeviceUnavailable, match="GGUF"):
            edgeai.load(tiny_gguf, device="dml", **options)


def test_a_table_of_pandas_is_told_how_to_come(model: Model) -> None:
    frame = SimpleNamespace(columns=["width"])
    with pytest.raises(UsageError) as caught:
        model.classify(frame)  # type: ignore[arg-type]
    assert "to_dict" in (caught.value.hint or "")


def test_the_plan_says_how_it_runs(path: Path) -> None:
    with edgeai.load(path) as model:
        assert (model.plan.engine, model.plan.device, model.plan.threads, model.engine.backend) == (
            "onnxruntime", "cpu", 1, "cpu",
        )  # fmt: skip
        assert any("on CPUExecutionProvider" in reason for reason in model.plan.why)
        assert model.notices == ()
    with edgeai.load(path, threads=2, deterministic=True) as model:
        assert (model.plan.threads, model.plan.batch) == (2, 1)


def test_a_file_without_schema_runs_on_arrays(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", [2, 3], None)
    item = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    matrix, bias = weights(6)
    wanted = item.reshape(-1) @ matrix + bias
    with edgeai.load(path) as model:
        assert open_artifact(path).task == "arrays"
        assert model.classify([item])[0].values == pytest.approx(wanted.tolist(), rel=1e-5)
        assert model.classify([item.tolist(), item])[0].values == pytest.approx(wanted.tolist(), rel=1e-5)
        assert model.classify([{"features": item}])[0].values == pytest.approx(wanted.tolist(), rel=1e-5)


def test_an_output_of_another_size_than_promised_is_a_crash(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in ("features", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["features"], ["logits"])], "odd", ports[:1], ports[1:])
    with (
        edgeai.load(save(tmp_path / "o.onnx", graph, schema(table(NUMBERS)))) as model,
        pytest.raises(EngineCrashed, match="2 numbers for 3 names"),
    ):
        model.classify([ROWS[0]])
