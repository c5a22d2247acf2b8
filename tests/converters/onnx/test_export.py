"""A torch module → an ONNX file that computes the same. The reference is torch."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters.errors import ConvertError, OutputError, UnsupportedModel, WrongChoice
from converters.onnx import export_module
from converters.onnx.checks import file_checks, open_session, torch_checks
from converters.onnx.header import data_files, read_header
from tests.converters.onnx.networks import Cnn, Encoder, Mlp, Tcn, Tied, Two

IDS = torch.arange(1, 19).reshape(2, 9)
MASK = torch.ones(2, 9, dtype=torch.int64)
MASK[1, 5:] = 0
TEXT = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
NETWORKS: dict[str, tuple[type[nn.Module], Any, dict[str, Any]]] = {
    "cnn": (Cnn, torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)), {"labels": list("0123456789")}),
    "mlp": (Mlp, torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), {"labels": ["a", "b", "c"]}),
    "tcn": (Tcn, torch.randn(2, 2, 40, generator=torch.Generator().manual_seed(3)), {"labels": list("abcd")}),
    "encoder": (Encoder, (IDS, MASK), {"dynamic_axes": TEXT}),
    "tied": (Tied, IDS, {"dynamic_axes": {"ids": {0: "batch", 1: "length"}}}),
    "two outputs": (Two, {"x": torch.randn(2, 6, generator=torch.Generator().manual_seed(4))}, {}),
}


def build(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    torch.manual_seed(0)
    kind, example, options = NETWORKS[name]
    return kind(), example, options


def test_labels_that_are_one_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongChoice, match="are one text"):
        export_module(Mlp(), torch.zeros(1, 3), tmp_path / "x.onnx", labels="abc")


@pytest.mark.parametrize("place", ["no/such/x.onnx", "."])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="folder"):
        export_module(Mlp(), torch.zeros(1, 3), tmp_path / place, labels=["a", "b", "c"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_computes_what_torch_does_for_every_batch_and_length(name: str, tmp_path: Path) -> None:
    module, example, options = build(name)
    export_module(module, example, tmp_path / "it.onnx", **options)
    rows = torch_checks(module, tmp_path / "it.onnx", example)
    assert all(row.ok for row in rows), rows
    assert len(rows) == (9 if name == "two outputs" else 3)


def test_the_check_bites_where_a_weight_is_another(tmp_path: Path) -> None:
    module, example, options = build("mlp")
    export_module(module, example, tmp_path / "it.onnx", **options)
    with torch.no_grad():
        module.layers[0].weight[0, 0] += 0.05
    assert not all(row.ok for row in torch_checks(module, tmp_path / "it.onnx", example))


SCRIPT = """
import sys, torch
from pathlib import Path
from converters.onnx import export_module
from tests.converters.onnx.test_export import build
module, example, options = build(sys.argv[1])
export_module(module, example, Path(sys.argv[2]), **options)
"""


def test_equal_modules_give_equal_bytes_in_another_process_without_its_paths_and_without_a_word(tmp_path: Path) -> None:
    child = tmp_path / "child.onnx"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "encoder", str(child)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout == done.stderr == b""
    assert list(tmp_path.iterdir()) == [child]
    module, example, options = build("encoder")
    export_module(module, example, tmp_path / "it.onnx", **options)
    found = child.read_bytes()
    assert found == (tmp_path / "it.onnx").read_bytes()
    for trace in (b"site-packages", b".py", b"torch.nn", str(tmp_path).encode(), b"stack_trace"):
        assert trace not in found


def test_nothing_imports_torch_before_it_is_called() -> None:
    script = (
        "import sys; from converters.onnx import export_module; print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_axes_names_and_texts_are_in_the_file(tmp_path: Path) -> None:
    module, example, options = build("encoder")
    done = export_module(module, example, tmp_path / "it.onnx", metadata={"edgeai.version": "9"}, opset=19, **options)
    header = read_header(tmp_path / "it.onnx")
    assert [(port.name, port.shape) for port in header.inputs] == [(name, ("batch", "length")) for name in TEXT]
    assert [(port.name, port.shape) for port in header.outputs] == [("output", ("batch", 3))]
    assert header.metadata == {"edgeai.quant": "F32", "edgeai.version": "9"}
    assert header.opsets[""] == done.opset == 19


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "name"),
    [
        ((1, 3, 5, 4), torch.float32, "image", "image"),
        ((1, 4), torch.float32, "table", "features"),
        ((1, 2, 5, 4), torch.float32, "tensor", "input"),
        ((1, 4), torch.int64, "tensor", "input"),
    ],
)
def test_labels_alone_make_a_schema(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, name: str, tmp_path: Path
) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :2].float()

    done = export_module(Sum(), torch.ones(shape, dtype=dtype), tmp_path / "net.onnx", labels=["no", "yes"])
    schema = json.loads(read_header(tmp_path / "net.onnx").metadata["edgeai.schema"])
    given = schema["inputs"][0]
    assert (given["kind"], given["name"], schema["labels"], schema["name"]) == (kind, name, ["no", "yes"], "net")
    assert done.inputs == {name: ("batch", *shape[1:])}
    assert list(done.outputs) == ["logits"]
    if kind == "table":
        assert [column["name"] for column in given["columns"]] == ["x0", "x1", "x2", "x3"]
    if kind == "tensor":
        assert (given["dtype"], given["shape"]) == (str(dtype).removeprefix("torch."), list(shape[1:]))


def test_a_module_is_left_as_it_was_and_exported_in_eval_mode(tmp_path: Path) -> None:
    module, example, _ = build("mlp")
    module.layers[2].eval()
    module.double()
    export_module(module, example, tmp_path / "it.onnx")
    assert module.training
    assert not module.layers[2].training
    assert next(module.parameters()).dtype == torch.float64
    assert ("", "Dropout") not in read_header(tmp_path / "it.onnx").operators
    assert all(row.ok for row in torch_checks(module, tmp_path / "it.onnx", example))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    module, example, options = build("tied")
    assert export_module(module, example, tmp_path / "it.onnx", **options).bytes < 1.2 * 300 * 32 * 4


def test_large_weights_lie_beside_the_file_inside_its_folder(tmp_path: Path) -> None:
    module, example, options = build("tied")
    for _ in range(2):  # the second replaces the first
        done = export_module(module, example, tmp_path / "it.onnx", external_above=0, **options)
        assert done.external == tmp_path / "it.onnx.data"
        assert done.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert data_files(read_header(tmp_path / "it.onnx")) == [done.external]
    assert all(row.ok for row in torch_checks(module, tmp_path / "it.onnx", example))
    done.external.write_bytes(done.external.read_bytes()[:-1])
    assert not file_checks(tmp_path / "it.onnx")[0].ok
    export_module(module, example, tmp_path / "it.onnx", **options)
    assert not done.external.exists()


def test_halves_are_smaller_and_near_and_what_overflows_stays(tmp_path: Path) -> None:
    module, example, _ = build("mlp")
    module.layers[0] = nn.Linear(6, 64)
    module.layers[3] = nn.Linear(64, 64)
    with torch.no_grad():
        module.layers[0].weight[0, 0] = 1e5
    export_module(module, example, tmp_path / "it.onnx", dtype="f16")
    types = {tensor.name: tensor.dtype for tensor in read_header(tmp_path / "it.onnx").tensors}
    assert types["layers.0.weight"] == "float32"
    assert types["layers.3.weight.f16"] == "float16"
    rows = torch_checks(module, tmp_path / "it.onnx", example, limit=1e-6)
    assert all(row.ok for row in rows)
    assert rows[0].value > 1e-12  # it is not float32


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class OneSize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).sum(1)


class NoOperator(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("a word")
        logging.getLogger("theirs").error("a word")
        raise ValueError(f"not {x.ndim} today")


@pytest.mark.parametrize(
    ("module", "reason", "hint"),
    [
        (Decides(), "Could not guard on data-dependent expression", "torch.where"),
        (OneSize(), "specialized it to be a constant (2)", "dynamic_axes={}"),
        (NoOperator(), "svd", "no such operator"),
        (Raises(), "ValueError: not 3 today", None),
    ],
)
def test_a_module_that_cannot_be_exported_is_one_error_with_the_reason(
    module: nn.Module, reason: str, hint: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConvertError) as caught:
        export_module(module, torch.ones(2, 4, 4), tmp_path / "it.onnx")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")
    assert capfd.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())
    assert logging.root.manager.disable == logging.NOTSET


def test_fixed_sizes_are_possible_where_they_are_asked_for(tmp_path: Path) -> None:
    done = export_module(OneSize(), torch.ones(2, 4), tmp_path / "it.onnx", dynamic_axes={})
    assert done.inputs == {"x": (2, 4)}
    assert all(row.ok for row in torch_checks(OneSize(), tmp_path / "it.onnx", torch.ones(2, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["a", "b"]},
        {"labels": ["a", "a", "b"]},
        {"opset": 12},
        {"dtype": "int4"},
        {"input_names": ["a", "b"]},
        {"output_names": ["a", "b"]},
        {"dynamic_axes": {"nobody": {0: "batch"}}},
        {"dynamic_axes": {"features": {5: "batch"}}},
        {"example_inputs": (torch.ones(2, 6), torch.ones(2, 6))},
        {"example_inputs": {"other": torch.ones(2, 6)}},
        {"example_inputs": torch.ones(0, 6)},
        {"metadata": {"a": 1}},
        {"schema": {"inputs": []}},
    ],
)
def test_arguments_that_do_not_fit_are_wrong_choices(wrong: dict[str, Any], tmp_path: Path) -> None:
    example = wrong.pop("example_inputs", torch.ones(2, 6))
    with pytest.raises(WrongChoice):
        export_module(Mlp(), example, tmp_path / "it.onnx", **wrong)


def test_weights_without_values_and_too_many_for_one_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConvertError, match="meta"):
        export_module(Mlp().to("meta"), torch.ones(2, 6), tmp_path / "it.onnx")
    monkeypatch.setattr("converters.onnx.export.EXTERNAL_BYTES", 100)
    with pytest.raises(UnsupportedModel, match="holds 2"):
        export_module(Mlp(), torch.ones(2, 6), tmp_path / "it.onnx", external_above=None)


def test_an_operator_that_nobody_has_and_an_opset_that_is_another_fail_the_checks(tmp_path: Path) -> None:
    import onnx

    export_module(Mlp(), torch.ones(2, 6), tmp_path / "it.onnx")
    assert all(row.ok for row in file_checks(tmp_path / "it.onnx", opset=20))
    assert [row.name for row in file_checks(tmp_path / "it.onnx", opset=19) if not row.ok] == ["opset"]
    model = onnx.load(tmp_path / "it.onnx")
    model.graph.node[0].domain = "org.nobody"
    model.opset_import.add(domain="org.nobody", version=1)
    (tmp_path / "it.onnx").write_bytes(model.SerializeToString())
    failed = [row for row in file_checks(tmp_path / "it.onnx") if not row.ok]
    assert [(row.name, row.value) for row in failed] == [("operators", "org.nobody.Gemm")]
    model.graph.node[0].domain = ""
    model.graph.node[0].input[0] = "nothing"
    (tmp_path / "it.onnx").write_bytes(model.SerializeToString())
    assert [row.name for row in file_checks(tmp_path / "it.onnx") if not row.ok] == ["onnx.checker"]


def test_inputs_as_any_number_of_tensors_and_a_dict_of_outputs(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, *parts: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": parts[0] + parts[1], "product": parts[0] * parts[1]}

    given = (torch.randn(2, 3), torch.randn(2, 3))
    done = export_module(Several(), given, tmp_path / "it.onnx", output_names=["sum", "product"])
    found = open_session(tmp_path / "it.onnx").run(None, {f"parts_{i}": part.numpy() for i, part in enumerate(given)})
    assert list(done.outputs) == ["sum", "product"]
    np.testing.assert_allclose(found[1], (given[0] * given[1]).numpy())
