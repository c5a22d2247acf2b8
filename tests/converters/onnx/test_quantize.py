"""Files in 8 bits. The reference is what the float32 file, torch, and onnxruntime's own calibrator say."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from converters.errors import ConvertError, WrongChoice
from converters.onnx import export_module
from converters.onnx.checks import file_checks, nmse, open_session
from converters.onnx.header import read_header
from converters.onnx.quantize import quantize_dynamic, quantize_static
from converters.onnx.ranges import METHODS, Seen, entropy_range, measure, percentile_range
from tests.converters.onnx.conftest import Digits
from tests.converters.onnx.networks import Encoder, Mlp, Tcn
from tests.converters.onnx.test_export import IDS, MASK, TEXT


def run(path: Path, inputs: Any) -> np.ndarray:
    session = open_session(path)
    feed = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    return session.run(None, feed)[0]


def accuracy(path: Path, digits: Digits) -> float:
    return float((run(path, digits.test).argmax(1) == digits.labels).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_static_file_has_the_accuracy_of_float(
    method: Any, per_channel: bool, digits: Digits, tmp_path: Path
) -> None:
    target = tmp_path / "it.onnx"
    done = quantize_static(digits.path, target, digits.calibration, method=method, per_channel=per_channel)
    assert accuracy(target, digits) > accuracy(digits.path, digits) - 0.01
    assert nmse(run(digits.path, digits.test), run(target, digits.test)) < 1e-3
    assert done.bytes < 0.5 * digits.path.stat().st_size
    assert done.int8_share > 0.95
    assert done.quantized["Conv"] == 3
    assert done.stayed == {}
    scale = next(item for item in onnx.load(target).graph.initializer if item.name == "third.weight_scale")
    assert list(scale.dims) == ([32] if per_channel else [])


def test_weights_are_signed_symmetric_and_of_seven_bits_and_activations_unsigned(
    digits: Digits, tmp_path: Path
) -> None:
    quantize_static(digits.path, tmp_path / "it.onnx", digits.calibration)
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "it.onnx").graph.initializer}
    weights = tensors["third.weight_quantized"]
    assert weights.dtype == np.int8
    assert np.abs(weights.astype(int)).max() == 64
    assert not tensors["third.weight_zero_point"].any()
    assert tensors["image_zero_point"].dtype == np.uint8
    # Two products of an activation and a weight in 16 bits, as AVX2 adds them: they cannot overflow.
    assert 2 * 255 * 64 <= 2**15 - 1
    quantize_static(digits.path, tmp_path / "it.onnx", digits.calibration, reduce_range=False)
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "it.onnx").graph.initializer}
    assert np.abs(tensors["third.weight_quantized"].astype(int)).max() == 127


def test_outputs_stay_float(digits: Digits, tmp_path: Path) -> None:
    quantize_static(digits.path, tmp_path / "it.onnx", digits.calibration)
    assert len(np.unique(run(tmp_path / "it.onnx", digits.test))) > 1000  # 8 bits would be 256 numbers


def test_names_and_texts_survive(digits: Digits, tmp_path: Path) -> None:
    before = read_header(digits.path)
    for target in (
        quantize_static(digits.path, tmp_path / "a.onnx", digits.calibration, metadata={"edgeai.version": "9"}),
        quantize_dynamic(digits.path, tmp_path / "b.onnx", metadata={"edgeai.version": "9"}),
    ):
        after = read_header(target.path)
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
        assert after.metadata == before.metadata | {"edgeai.quant": target.quant, "edgeai.version": "9"}
        assert all(row.ok for row in file_checks(target.path))


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from converters.onnx.quantize import quantize_dynamic, quantize_static
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
data = np.load(sys.argv[3])
quantize_static(source, folder / "static.onnx", data, method="entropy")
quantize_dynamic(source, folder / "dynamic.onnx")
"""


def test_equal_files_give_equal_bytes_in_another_process_and_leave_nothing_behind(
    digits: Digits, tmp_path: Path
) -> None:
    np.save(tmp_path / "data.npy", digits.calibration)
    folder = tmp_path / "child"
    (folder / "work").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(digits.path), str(folder), str(tmp_path / "data.npy")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=folder / "work",
        capture_output=True,
        check=True,
    )
    assert done.stdout == done.stderr == b""
    assert not any((folder / "work").iterdir())
    assert sorted(file.name for file in folder.iterdir()) == ["dynamic.onnx", "static.onnx", "work"]
    quantize_static(digits.path, tmp_path / "static.onnx", digits.calibration, method="entropy")
    quantize_dynamic(digits.path, tmp_path / "dynamic.onnx")
    for name in ("dynamic.onnx", "static.onnx"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_text_encoder_in_8_bits_is_near_and_keeps_its_lengths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = tmp_path / "it.onnx"
    export_module(Encoder(), (IDS, MASK), source, dynamic_axes=TEXT)
    feed = {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()}
    dynamic = quantize_dynamic(source, tmp_path / "dynamic.onnx")
    static = quantize_static(source, tmp_path / "static.onnx", feed)
    assert dynamic.int8_share > 0.8  # a table of positions that is cut, not looked up, stays float
    assert {"Softmax", "LayerNormalization", "Gelu", "MatMul"} <= set(dynamic.stayed)
    assert {"Softmax", "LayerNormalization", "Gelu", "MatMul"} <= set(static.stayed)
    for length in (9, 3):
        cut = {name: values[:, :length] for name, values in feed.items()}
        for done in (dynamic, static):
            assert nmse(run(source, cut), run(done.path, cut)) < 0.03


def test_convolutions_over_time_are_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(50, 2, 40).numpy()
    export_module(Tcn(), torch.from_numpy(data[:2]), tmp_path / "it.onnx")
    done = quantize_static(tmp_path / "it.onnx", tmp_path / "q.onnx", data)
    assert done.quantized["Conv"] == 3
    assert nmse(run(tmp_path / "it.onnx", data), run(done.path, data)) < 5e-3


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = Mlp(64, 10), torch.randn(40, 64).numpy()
    export_module(module, torch.from_numpy(data[:2]), tmp_path / "it.onnx", external_above=0)
    assert (tmp_path / "it.onnx.data").exists()
    for done in (
        quantize_static(tmp_path / "it.onnx", tmp_path / "a.onnx", data),
        quantize_dynamic(tmp_path / "it.onnx", tmp_path / "b.onnx"),
    ):
        assert nmse(run(tmp_path / "it.onnx", data), run(done.path, data)) < 5e-3
    assert len(list(tmp_path.iterdir())) == 4


def test_ranges_are_those_of_onnxruntimes_own_calibrator(digits: Digits, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, MinMaxCalibrater

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"image": digits.calibration}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    done = quantize_static(digits.path, tmp_path / "it.onnx", digits.calibration)
    calibrator = MinMaxCalibrater(digits.path, augmented_model_path=str(tmp_path / "augmented.onnx"))
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader())
    found = calibrator.compute_data()
    shared = [name for name in done.ranges if name in found]
    assert len(shared) > 5
    for name in shared:
        low, high = found[name].range_value
        assert done.ranges[name] == pytest.approx(
            (float(np.ravel(low)[0]), float(np.ravel(high)[0])), rel=1e-4, abs=1e-5
        )


def test_a_percentile_is_numpys_to_a_bin() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    seen = Seen()
    seen.extend(values)
    for part in np.array_split(values, 7):
        seen.count(part, sizes=False)
    bin_width = (seen.high - seen.low) / 8192
    assert percentile_range(seen, 99.0) == pytest.approx(tuple(np.percentile(values, [0.5, 99.5])), abs=2 * bin_width)
    assert percentile_range(seen, 100.0) == pytest.approx((seen.low, seen.high))


def test_entropy_cuts_outliers_and_nothing_of_an_even_distribution() -> None:
    rng = np.random.default_rng(0)
    normal, even = rng.standard_normal(200_000).astype(np.float32), rng.uniform(0, 1, 200_000).astype(np.float32)
    normal[:3] = 80.0
    for values, most in ((normal, 20.0), (even, 1.01)):
        seen = Seen()
        seen.extend(values)
        seen.count(values, sizes=True)
        low, high = entropy_range(seen)
        assert high < most
        assert high > 0.9
        assert low == (pytest.approx(-high) if values is normal and -high > seen.low else seen.low)


def test_memory_does_not_grow_with_the_calibration_data(digits: Digits, tmp_path: Path) -> None:
    from converters.onnx.metadata import load_graph
    from converters.onnx.quantize import values_of, with_outputs

    graph = load_graph(digits.path)
    names = values_of(graph.graph, ["Conv", "Relu", "MaxPool", "Gemm"], [])
    wider = with_outputs(graph, names, tmp_path)
    peaks = []
    for rows in (600, 6000):
        data = {"image": np.broadcast_to(digits.calibration[:1], (rows, 1, 8, 8))}
        tracemalloc.start()
        measure(wider, names, data, "percentile", 99.9)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_calibration_data_that_does_not_fit_is_refused(digits: Digits, tmp_path: Path) -> None:
    target = tmp_path / "it.onnx"
    broken = digits.calibration.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ConvertError, match="NaN"):
        quantize_static(digits.path, target, broken)
    for wrong in ({"other": broken}, broken[:, :, :5], broken[:0]):
        with pytest.raises(WrongChoice):
            quantize_static(digits.path, target, wrong)
    for options in ({"method": "guess"}, {"percentile": 3.0}):
        with pytest.raises(WrongChoice):
            quantize_static(digits.path, target, digits.calibration, **options)
    assert not target.exists()


def test_a_graph_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    export_module(Twice(), torch.ones(2, 3), tmp_path / "it.onnx")
    with pytest.raises(WrongChoice, match="nothing in"):
        quantize_dynamic(tmp_path / "it.onnx", tmp_path / "q.onnx")
    with pytest.raises(WrongChoice, match="nothing in"):
        quantize_static(tmp_path / "it.onnx", tmp_path / "q.onnx", np.ones((2, 3), np.float32))


def test_an_error_that_a_library_only_logs_is_raised(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime.quantization

    def fails(*_args: Any, **_options: Any) -> None:
        logging.getLogger("onnxruntime.quantization.shape_inference").error("it failed\nat length")

    monkeypatch.setattr(onnxruntime.quantization, "quant_pre_process", fails)
    with pytest.raises(ConvertError, match=r"it failed$"):
        quantize_dynamic(digits.path, tmp_path / "it.onnx")
    assert capfd.readouterr() == ("", "")
