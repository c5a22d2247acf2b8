"""What a folder may not decide, and what holds when many wait."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeai.artifact import open_artifact
from edgeai.cli.convert_onnx import placed
from edgeai.engines.genai import runtime
from edgeai.engines.genai.scheduler import Scheduler
from edgeai.engines.opening import load_engine
from edgeai.errors import ClosedError, DeviceUnavailable, DoesNotFit, InvalidModel, UsageError
from edgeai.model import Model, open_engine
from edgeai.onnxplan import language_plan
from edgeai.options import LoadOptions
from edgeai.plan import Plan
from tests.genai import raw_greedy

TEXT = "The for statement is used to iterate over the elements of a sequence."


def with_search(folder: Path, place: Path, **search: Any) -> Path:
    """Return a copy of FOLDER whose configuration asks for SEARCH."""
    shutil.copytree(folder, place)
    path = place / "genai_config.json"
    config = json.loads(path.read_text())
    config["search"] |= search
    path.write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}, {"chunk_size": 1}, {"chunk_size": 7},
        {"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"do_sample": True, "temperature": 9.0},
    ],
)  # fmt: skip
def test_a_folder_decides_nothing_about_what_is_drawn(
    tiny_genai: Model, tiny_onnx_f32: Path, tmp_path: Path, search: dict[str, Any]
) -> None:
    folder = with_search(tiny_onnx_f32, tmp_path / "m", **search)
    with Model(open_engine(folder, threads=1, isolated="num_beams" in search)) as model:  # beams ended the process
        answer = model.complete(TEXT, max_tokens=24, temperature=0).text
        found = model.score(TEXT)
    assert answer == tiny_genai.complete(TEXT, max_tokens=24, temperature=0).text
    np.testing.assert_allclose(found, tiny_genai.score(TEXT), atol=1e-5)


def test_an_end_token_ends_the_answer_whatever_length_a_folder_wants(
    tiny_genai: Model, tiny_onnx_f32: Path, tmp_path: Path
) -> None:
    drawn = raw_greedy(tiny_onnx_f32, tiny_genai.tokenize(TEXT, add_special=True), 12)
    end = next(token for at, token in enumerate(drawn) if at > 2 and token not in drawn[:at])
    folder = with_search(tiny_onnx_f32, tmp_path / "m", min_length=200)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = end
    path.write_text(json.dumps(config))
    with Model(open_engine(folder, threads=1)) as model:
        answer = model.complete(TEXT, max_tokens=24, temperature=0)
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("stop", drawn.index(end))


class Slow:
    """A task that never ends by itself."""

    def __init__(self) -> None:
        self.cancelled = self.expired = False
        self.steps = self.stops = 0
        self.error: BaseException | None = None

    def step(self) -> bool:
        if self.expired:
            return False
        self.steps += 1
        time.sleep(0.001)
        return True

    def fail(self, error: BaseException) -> None:
        self.error = error

    def stop(self) -> None:
        self.stops += 1


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_request_whose_time_is_over_does_not_wait_for_those_before_it() -> None:
    core = Scheduler("m", streams=1, queue=4)
    first, second = Slow(), Slow()
    core.submit(first)
    until(lambda: first.steps)
    core.submit(second)
    second.expired = True
    until(lambda: second not in core._waiting)
    assert second.steps == 0
    assert not first.stops
    core.shut()
    core.join()


def test_an_end_that_fails_ends_nobody_else() -> None:
    core = Scheduler("m", streams=2, queue=4)
    bad, good = Slow(), Slow()

    def stop() -> None:
        raise OSError("a reader that is gone")

    bad.stop = stop  # type: ignore[method-assign]
    core.submit(bad)
    core.submit(good)
    until(lambda: bad.steps and good.steps)
    core.cancel(bad)
    before = good.steps
    until(lambda: good.steps > before + 5)
    core.shut()
    core.join()
    assert good.stops == 1
    with pytest.raises(ClosedError):
        core.submit(Slow())


def test_streams_that_do_not_fit_are_fewer_or_refused(tiny_onnx_f32: Path) -> None:
    artifact = open_artifact(tiny_onnx_f32)

    def plan(**options: Any) -> Any:
        return language_plan(artifact, LoadOptions(device="cpu", **options), lambda _name: False, free=free)

    free = 1 << 40
    whole = plan()
    weights, kv = whole.placement.cpu.weights_bytes + whole.overhead_bytes, whole.placement.cpu.kv_bytes
    free = weights + 3 * kv
    fewer = plan()
    assert (whole.streams, fewer.streams) == (8, 3)
    assert [notice.code for notice in fewer.notices] == ["fewer-streams"]
    with pytest.raises(DoesNotFit, match="4 streams"):
        plan(streams=4)
    free = weights + kv // 2
    with pytest.raises(DoesNotFit):
        plan()


def test_no_layers_on_a_gpu_means_the_cpu(monkeypatch: pytest.MonkeyPatch, tiny_onnx_f32: Path) -> None:
    plan = language_plan(open_artifact(tiny_onnx_f32), LoadOptions(gpu_layers=0), lambda _name: True)
    assert plan.device == "cpu"


@pytest.mark.parametrize("name", [".", ".."])
def test_a_place_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name"):
        placed(Path(name), "gguf", several=True, given=True)


def test_names_of_formats_are_not_put_behind_each_other() -> None:
    assert placed(Path("out/x-onnx"), "gguf", several=True, given=True) == Path("out/x.gguf")
    assert placed(Path("out/x.gguf"), "onnx", several=True, given=True) == Path("out/x-onnx")


class Gpu:
    """A library that says it has CUDA, where models fail in the way that FAILS says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
        self.tried: list[str] = []
        monkeypatch.setattr(runtime, "has_provider", lambda name: name == "cuda")
        opened = runtime.Runtime._open

        def on_gpu(runtime_: runtime.Runtime, plan: Plan) -> Any:
            self.tried.append(plan.device)
            if plan.device == "cuda" and fails == "does not open":
                raise InvalidModel("CUDA driver version is insufficient", hint="update the driver")
            return opened(runtime_, replace(plan, device="cpu"))  # it lands there

        monkeypatch.setattr(runtime.Runtime, "_open", on_gpu)


FAILS = ["does not open", "lands on the CPU"]


@pytest.mark.parametrize("fails", FAILS)
def test_a_gpu_that_fails_is_replaced_by_a_plan_for_the_cpu(
    tiny_onnx_f32: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    gpu = Gpu(monkeypatch, fails)
    with Model(load_engine(tiny_onnx_f32, LoadOptions(threads=1))) as model:
        assert gpu.tried == ["cuda", "cpu"]
        assert (model.plan.device, model.plan.placement.gpus) == ("cpu", ())
        assert "cpu-fallback" in [notice.code for notice in model.plan.notices]
        assert model.complete(TEXT, max_tokens=2, temperature=0).usage.completion_tokens == 2


@pytest.mark.parametrize("fails", FAILS)
def test_a_gpu_that_was_asked_for_and_fails_is_an_error(
    tiny_onnx_f32: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    gpu = Gpu(monkeypatch, fails)
    with pytest.raises(DeviceUnavailable, match="cuda"):
        load_engine(tiny_onnx_f32, LoadOptions(threads=1, device="cuda"))
    assert gpu.tried == ["cuda"]
