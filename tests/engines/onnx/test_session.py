"""A session runs where it says: providers are read back, what fell away is said, what was asked for is never replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeai.engines.onnx import session as module
from edgeai.engines.onnx.cache import OptimizedModels
from edgeai.engines.onnx.session import load_failure, one_line, open_session, run_failure
from edgeai.errors import DeviceUnavailable, DoesNotFit, EngineCrashed, InvalidModel
from tests.engines.onnx.models import NUMBERS, linear, save, schema, table

CPU, CUDA, DML = "CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small classifier."""
    return linear(tmp_path / "rows.onnx", [2], schema(table(NUMBERS)))


class Machine:
    """An onnxruntime that lists AVAILABLE and gives each session the providers and operators that it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, available: list[str], **outcomes: Any) -> None:
        self.outcomes = outcomes
        self.asked: list[list[str]] = []
        runtime = SimpleNamespace(**{name: getattr(onnxruntime, name) for name in dir(onnxruntime)})
        runtime.get_available_providers = lambda: available
        runtime.InferenceSession = self.make
        monkeypatch.setattr(module, "_prepared", lambda: runtime)

    def make(self, _path: str, _options: Any, *, providers: list[str], **more: Any) -> Any:
        assert more["enable_fallback"] == 0  # or it would print on stdout and go on with the CPU
        self.asked.append(providers)
        outcome = self.outcomes.get(providers[0], {providers[0]: 3})
        if isinstance(outcome, Exception):
            raise outcome
        groups = [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in outcome.items()
        ]
        return SimpleNamespace(
            get_providers=lambda: list(outcome) if any(outcome.values()) else providers,
            get_provider_graph_assignment_info=lambda: groups,
        )


def test_on_this_machine_the_cpu_gets_all_operators(path: Path) -> None:
    found = open_session(path, device="auto", threads=1)
    assert (found.backend, found.providers, found.notices) == ("cpu", (CPU,), ())
    assert list(found.operators) == [CPU]
    assert found.operators[CPU] >= 1


@pytest.mark.parametrize("device", ["cuda", "dml"])
def test_a_device_that_the_installed_onnxruntime_has_not_is_unavailable(path: Path, device: Any) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{device}.*has only") as caught:
        open_session(path, device=device, threads=1)
    package = {"cuda": "onnxruntime-gpu", "dml": "onnxruntime-directml"}[device]
    assert f"pip install {package}" in (caught.value.hint or "")
    assert caught.value.exit_code == 6


def test_auto_takes_the_best_device_that_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [CPU, DML, CUDA])
    found = open_session(path, device="auto", threads=1)
    assert (found.backend, found.notices, machine.asked) == ("cuda", (), [[CUDA, CPU]])


LANDINGS = {
    "no such provider in the session": {CPU: 3},
    "provider there but without operators": {CUDA: 0, CPU: 3},
    "refused": RuntimeError("CUDA driver version is insufficient"),
}


@pytest.mark.parametrize("landing", LANDINGS)
def test_a_listed_gpu_that_lands_on_the_cpu_is_a_notice_under_auto(
    path: Path, monkeypatch: pytest.MonkeyPatch, landing: str
) -> None:
    Machine(monkeypatch, [CUDA, CPU], **{CUDA: LANDINGS[landing]})
    found = open_session(path, device="auto", threads=1)
    assert found.backend == "cpu"
    assert [notice.code for notice in found.notices] == ["cpu-fallback"]
    assert CUDA in found.notices[0].message


@pytest.mark.parametrize("landing", LANDINGS)
def test_a_gpu_that_was_asked_for_and_lands_on_the_cpu_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, landing: str
) -> None:
    machine = Machine(monkeypatch, [CUDA, CPU], **{CUDA: LANDINGS[landing]})
    with pytest.raises(DeviceUnavailable) as caught:
        open_session(path, device="cuda", threads=1)
    assert caught.value.exit_code == 6
    assert machine.asked == [[CUDA, CPU]]  # and no second session is made on the CPU


def test_what_a_gpu_does_not_have_may_run_on_the_cpu_and_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, [CUDA, CPU], **{CUDA: {CUDA: 10, CPU: 2}})
    found = open_session(path, device="cuda", threads=1)
    assert found.operators == {CUDA: 10, CPU: 2}
    assert found.in_words == f"operators: 10 on {CUDA}, 2 on {CPU}"


def test_nothing_is_printed(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = open_session(path, device="cpu", threads=1)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        found.native.run(None, {"features": np.zeros((1, 5), np.float32)})
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a garbage")
    with pytest.raises(InvalidModel):
        open_session(tmp_path / "broken.onnx", device="cpu", threads=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "domain"), [("Frobnicate", ""), ("Frob", "com.acme")])
def test_an_unknown_operator_is_named(tmp_path: Path, kind: str, domain: str) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], domain=domain)], "g", ports[:1], ports[1:])
    with pytest.raises(InvalidModel, match=kind) as caught:
        open_session(save(tmp_path / "u.onnx", graph, None), device="cpu", threads=1)
    assert "\n" not in str(caught.value)


def test_errors_of_onnxruntime_are_one_line_of_ours(path: Path) -> None:
    long = "[ONNXRuntimeError] : 1 : FAIL : bad\n" + "x" * 500
    assert one_line(long).startswith("bad x")
    assert len(one_line(long)) == 200
    assert isinstance(load_failure(path, MemoryError()), DoesNotFit)
    assert isinstance(load_failure(path, RuntimeError("odd")), EngineCrashed)
    assert isinstance(run_failure("m", RuntimeError("Failed to allocate memory")), DoesNotFit)
    assert isinstance(run_failure("m", ValueError("odd")), EngineCrashed)


def test_threads_spin_for_a_moment_or_not_at_all() -> None:
    assert module._waiting("1.32.0") == module._waiting("2.0.1") == {"session.intra_op.spin_duration_us": "50"}
    assert module._waiting("1.22.0") == module._waiting("odd") == {"session.intra_op.allow_spinning": "0"}


def test_threads_do_not_spin_long_and_are_as_many_as_asked_for(path: Path) -> None:
    options = open_session(path, device="cpu", threads=2).native.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for key, value in module._waiting(onnxruntime.__version__).items():
        assert options.get_session_config_entry(key) == value
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


# ---- the cache of optimised graphs


def cache_in(folder: Path, **options: Any) -> OptimizedModels:
    return OptimizedModels(folder, **{"version": "1", "features": ["AVX2"], "least": 0, **options})


def graphs(folder: Path) -> set[str]:
    return {entry.name for entry in folder.glob("*.onnx")}


def run(path: Path, cache: OptimizedModels | None) -> Any:
    native = open_session(path, device="cpu", threads=1, cache=cache).native
    return native.run(None, {"features": np.ones((1, 2), np.float32)})[0]


def test_the_second_load_comes_from_the_cache_and_computes_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    plain, first = run(path, None), run(path, cache_in(folder))
    assert np.array_equal(plain, first)
    (kept,) = graphs(folder)
    loaded: list[str] = []
    real = module._load
    monkeypatch.setattr(module, "_load", lambda place, *rest: loaded.append(place.name) or real(place, *rest))
    assert np.array_equal(run(path, cache_in(folder)), plain)
    assert loaded == [kept]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_graph_is_made_again(path: Path, tmp_path: Path, damage: bytes | None) -> None:
    folder = tmp_path / "cache"
    wanted = run(path, cache_in(folder))
    (kept,) = folder.glob("*.onnx")
    whole = kept.read_bytes()
    kept.write_bytes(b"\0" * len(whole) if damage is None else damage)
    assert np.array_equal(run(path, cache_in(folder)), wanted)
    assert kept.read_bytes() == whole


def test_a_graph_that_was_exchanged_is_made_again(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    wanted = run(path, cache_in(folder))
    (kept,) = folder.glob("*.onnx")
    linear(kept, [2], schema(table(NUMBERS)), matrix=np.zeros((2, 3), np.float32))
    assert np.array_equal(run(path, cache_in(folder)), wanted)


def test_another_file_version_or_cpu_has_another_graph(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for options in ({}, {"version": "2"}, {"features": ["AVX512F"]}):
        run(path, cache_in(folder, **options))
    assert len(graphs(folder)) == 3
    linear(path, [2], schema(table(NUMBERS), name="other"))
    run(path, cache_in(folder))
    assert len(graphs(folder)) == 4


def test_the_cache_keeps_to_its_size_and_the_oldest_go_first(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    run(path, cache_in(folder))
    (first,) = graphs(folder)
    size = (folder / first).stat().st_size
    for version in "234":
        run(path, cache_in(folder, version=version, total=round(2.5 * size)))
    assert len(graphs(folder)) == 2
    assert first not in graphs(folder)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert np.array_equal(run(path, cache_in(tmp_path / "file" / "cache")), run(path, None))


def test_small_files_are_not_kept(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    run(path, OptimizedModels(folder, version="1", features=[]))
    assert not folder.exists()
