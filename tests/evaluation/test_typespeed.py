"""Times of types are added up as products are, remembered for a library, and a type that kills the library is only left out."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.dequantize import decode
from converters.families import ModelPlan, TensorPlan
from converters.header import read_header
from converters.quantmap import TENSOR_TYPES
from edgeai import native
from edgeai.errors import EngineCrashed, UsageError
from edgeai.evaluation import typeprobe, typespeed
from edgeai.evaluation.typeprobe import BARE, BROAD, LAYERS, PROMPT, SLIM, STACK, TINY, Shape, write_uniform
from edgeai.evaluation.typespeed import TypeSpeeds, decode_seconds, failures, fit, prompt_seconds, runnable, type_speeds
from edgeai.paths import home

SPEEDS = TypeSpeeds(
    device="cpu",
    threads=1,
    seconds={"F32": 16.0, "Q4_0": 1.0, "Q8_0": 2.0},
    row_seconds={"F32": 0.0, "Q4_0": 10.0, "Q8_0": 30.0},
    unpacked_seconds={"Q4_0": 3.0},
    unpacked_row_seconds={"Q4_0": 40.0},
    prompt_seconds={"F32": 5.0, "Q4_0": 0.5, "Q8_0": 0.25},
    matrix_s=7.0,
    layer_s=1000.0,
    token_s=100000.0,
)


def plan(shapes: Mapping[str, tuple[int, ...]], *, layers: int = 1, **keys: int) -> ModelPlan:
    tensors = tuple(TensorPlan(name=name, shape=shape) for name, shape in shapes.items())
    return ModelPlan(
        architecture="llama", layers=layers, heads=4, kv_heads=4, context=64, vocab_size=64, tied=True, keys=keys, tensors=tensors
    )  # fmt: skip


# ---- the arithmetic


def test_a_token_takes_its_matrices_its_layers_and_itself() -> None:
    shapes = {"token_embd.weight": (64, 32), "blk.0.attn_q.weight": (16, 32), "blk.1.attn_norm.weight": (32,)}
    kinds = {"token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "Q4_0"}
    tied = 64 * (32 * 2 + 30) + 7
    assert decode_seconds(SPEEDS, plan(shapes, layers=2), kinds) == 100000 + 2 * 1000 + tied + 16 * (32 * 1 + 10) + 7


def test_a_lookup_is_free_where_the_output_is_another_matrix() -> None:
    shapes = {"token_embd.weight": (64, 32), "position_embd.weight": (64, 32), "output.weight": (64, 32)}
    kinds = {"token_embd.weight": "F32", "position_embd.weight": "F32", "output.weight": "Q8_0"}
    assert decode_seconds(SPEEDS, plan(shapes), kinds) == 101000 + 64 * (32 * 2 + 30) + 7
    assert decode_seconds(SPEEDS, plan({"token_embd.weight": (64, 32)}), kinds) == 101000 + 64 * 32 * 16 + 7


def test_of_the_experts_only_those_that_are_used_count_and_the_router_stays_f32() -> None:
    shapes = {"blk.0.ffn_up_exps.weight": (8, 16, 32), "blk.0.ffn_gate_inp.weight": (8, 32)}
    found = decode_seconds(SPEEDS, plan(shapes, expert_used_count=2), {"blk.0.ffn_up_exps.weight": "Q4_0"})
    assert found == 101000 + 2 * (16 * (32 + 10) + 7) + (8 * 32 * 16 + 7)


def test_rows_that_do_not_fill_the_lanes_take_the_slower_kernels() -> None:
    kinds = {"output.weight": "Q4_0"}
    assert decode_seconds(SPEEDS, plan({"output.weight": (17, 32)}), kinds) == 101000 + 17 * (32 * 3 + 40) + 7
    assert decode_seconds(SPEEDS, plan({"output.weight": (16, 32)}), kinds) == 101000 + 16 * (32 * 1 + 10) + 7
    kinds = {"output.weight": "Q8_0"}  # has none that are faster
    assert decode_seconds(SPEEDS, plan({"output.weight": (17, 32)}), kinds) == 101000 + 17 * (32 * 2 + 30) + 7


def test_what_is_multiplied_with_nothing_takes_nothing() -> None:
    shapes = {"blk.0.shortconv.conv.weight": (32, 3), "blk.0.attn_q.bias": (32,), "blk.0.attn_q_norm.weight": (2, 16)}
    assert decode_seconds(SPEEDS, plan(shapes), {}) == 101000


def test_a_prompt_passes_the_layers_and_its_last_token_the_output() -> None:
    shapes = {"token_embd.weight": (64, 32), "output.weight": (64, 32), "blk.0.attn_q.weight": (16, 32)}
    assert prompt_seconds(SPEEDS, plan(shapes), {"blk.0.attn_q.weight": "Q4_0"}) == 16 * 32 * 0.5


def test_a_type_without_a_speed_is_refused_with_the_reason() -> None:
    speeds = replace(SPEEDS, left_out={"Q8_K": "the native library died with SIGSEGV"})
    with pytest.raises(UsageError, match=r"'Q8_K'.*died with SIGSEGV") as raised:
        decode_seconds(speeds, plan({"output.weight": (16, 32)}), {"output.weight": "Q8_K"})
    assert "Q4_0" in (raised.value.hint or "")


# ---- from the models to the speeds


WEIGHT = {"F16": 5e-11, "Q4_0": 2e-11, "Q5_K": 3e-11}
ROW = {"F16": 1e-9, "Q4_0": 0.0, "Q5_K": 4e-9}
PRODUCT_S, LAYER_S, TOKEN_S = 2e-6, 9e-6, 2e-5


def ideal_times() -> dict[str, float]:
    """Return what the models take on a machine that does exactly as the sum says."""

    def took(shape: Shape, kind: str) -> float:
        layer = shape.weights * WEIGHT[kind] + shape.rows * ROW[kind] + 7 * PRODUCT_S + LAYER_S
        return TOKEN_S + shape.layers * layer

    found = {}
    for name, shape in (("slim", SLIM), ("broad", BROAD)):
        found[f"bare {name}"] = took(shape, "F16")
        for kind in WEIGHT:
            more = (shape.vocab - BARE) * (shape.width * WEIGHT[kind] + ROW[kind])
            found[f"{kind} {name}"] = found[f"bare {name}"] + more
            found[f"{kind} {name} unpacked"] = found[f"bare {name}"] + more * 2
    for kind in WEIGHT:
        found[f"{kind} layers"], found[f"{kind} prompt"] = took(LAYERS, kind), 1.0
    again = {f"{name} again": TOKEN_S + shape.layers * LAYER_S for name, shape in (("tiny", TINY), ("stack", STACK))}
    return found | {"tiny": took(TINY, "F16"), "stack": took(STACK, "F16")} | again


def test_the_speeds_of_an_ideal_machine_are_found_again() -> None:
    found = fit(ideal_times(), device="cpu", threads=1)
    assert found.seconds == pytest.approx(WEIGHT)
    assert found.row_seconds == pytest.approx(ROW, abs=1e-14)
    assert found.unpacked_seconds == pytest.approx({kind: 2 * seconds for kind, seconds in WEIGHT.items()})
    assert (found.layer_s, found.token_s) == pytest.approx((LAYER_S, TOKEN_S))
    assert found.matrix_s == pytest.approx(0, abs=1e-12)  # tiny layers have as many matrices, so these are in theirs
    assert found.prompt_seconds["Q4_0"] == pytest.approx(1 / PROMPT / LAYERS.layers / LAYERS.weights)


def test_no_part_of_a_token_takes_less_than_nothing() -> None:
    times = ideal_times() | {
        "Q4_0 slim": ideal_times()["Q4_0 slim"] * 0.8,
        "stack again": ideal_times()["tiny again"] * 0.9,
    }
    found = fit(times, device="cpu", threads=1)
    assert found.row_seconds["Q4_0"] == found.layer_s == 0
    assert found.seconds["Q4_0"] > 0


# ---- what is remembered


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for the measurement; the list holds the types of each."""
    asked: list[list[str]] = []

    def timed(kinds: list[str], threads: int, _progress: object) -> TypeSpeeds:
        asked.append(list(kinds))
        times = {
            name.replace("Q5_K", kind): taken
            for kind in kinds
            for name, taken in ideal_times().items()
            if "Q5_K" in name
        }
        return fit(times | ideal_times(), device="cpu", threads=threads)

    monkeypatch.setattr(typespeed, "_timed", timed)
    monkeypatch.setattr(typespeed, "failures", lambda kinds, **_: dict.fromkeys(kinds))
    return asked


def test_speeds_are_measured_once_for_library_and_threads(
    measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = type_speeds(["Q4_0", "Q5_K"], threads=2)
    assert type_speeds(["Q5_K"], threads=2) == first
    assert len(measured) == 1
    type_speeds(["Q5_K"], threads=1)
    assert len(measured) == 2
    monkeypatch.setattr(native, "fingerprint", lambda: "rebuilt")
    type_speeds(["Q5_K"], threads=2)
    type_speeds(["Q5_K"], threads=2, fresh=True)
    assert len(measured) == 4


def test_a_new_type_is_measured_beside_those_that_are_known(measured: list[list[str]]) -> None:
    type_speeds(["Q4_0"], threads=1)
    type_speeds(["Q6_K"], threads=1)
    assert {"Q4_0", "Q6_K"} <= set(measured[1])
    type_speeds(["Q4_0", "Q6_K"], threads=1)
    assert len(measured) == 2


@pytest.mark.parametrize("change", [{"layer_s": -1.0}, {"seconds": {"Q4_0": "fast"}}, {"row_seconds": {}}, {"more": 1}])
def test_a_strange_memory_is_measured_again(measured: list[list[str]], change: Mapping[str, object]) -> None:
    type_speeds(["Q4_0"], threads=1)
    memo = home() / "cache" / typespeed.MEMO
    known = json.loads(memo.read_text())
    memo.write_text(json.dumps({key: {**entry, **change} for key, entry in known.items()}))
    type_speeds(["Q4_0"], threads=1)
    assert len(measured) == 2


@pytest.mark.parametrize("change", [{"spread": 0.5}, {"asked_threads": 2}])
def test_times_of_a_busy_machine_are_said_to_be_and_not_remembered(
    measured: list[list[str]], monkeypatch: pytest.MonkeyPatch, change: dict[str, float]
) -> None:
    calm = typespeed._timed
    monkeypatch.setattr(typespeed, "_timed", lambda *given: replace(calm(*given), **change))
    assert type_speeds(["Q4_0"], threads=1).notice is not None
    monkeypatch.setattr(typespeed, "_timed", calm)
    assert type_speeds(["Q4_0"], threads=1).notice is None
    assert len(measured) == 2


# ---- types that the library dies of


def test_a_type_that_kills_the_library_is_left_out_with_its_reason() -> None:
    found = failures(["Q8_K", "Q4_0", "F64", "IQ1_M"])
    assert list(found) == ["Q8_K", "Q4_0", "F64", "IQ1_M"]
    assert found["Q4_0"] is found["IQ1_M"] is None
    assert "died with SIG" in (found["Q8_K"] or "")
    assert runnable(["F64", "Q4_0"]) == ("Q4_0",)


def test_an_embedding_is_tried_as_one() -> None:
    found = failures(["Q8_K", "Q6_K"], embedding=True)
    assert "SIGABRT (ops.cpp" in (found["Q8_K"] or "")  # libggml looks up no rows of it
    assert found["Q6_K"] is None


def child(code: int, *facts: Mapping[str, object], stderr: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, "".join(json.dumps(fact) + "\n" for fact in facts), stderr)


def test_a_type_that_the_library_refuses_is_left_out_and_is_not_tried_again() -> None:
    children = [
        child(0, {"begun": "Q4_0"}, {"failed": "InvalidModel: no such type"}, {"begun": "Q8_0"}, {"done": True})
    ]
    for _ in range(2):
        assert failures(["Q4_0", "Q8_0"], run=lambda *_, **__: children.pop()) == {
            "Q4_0": "InvalidModel: no such type",
            "Q8_0": None,
        }


@pytest.mark.parametrize("code", [1, -signal.SIGKILL])
def test_a_child_that_ends_for_another_reason_says_nothing_about_types(code: int) -> None:
    with pytest.raises(EngineCrashed):
        failures(["Q4_0"], run=lambda *_, **__: child(code, {"begun": "Q4_0"}))
    assert runnable(["Q4_0"]) == ("Q4_0",)


def test_a_name_that_is_no_type_is_refused() -> None:
    with pytest.raises(UsageError, match="'Q4_K_M' is no ggml type"):
        runnable(["Q4_0", "Q4_K_M"])


# ---- the models that are measured


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_the_weights_of_a_model_are_small_numbers_in_every_type(tmp_path: Path, kind: str) -> None:
    shape = Shape(width=256, inner=512, layers=1, heads=4)
    write_uniform(tmp_path / "model.gguf", shape, kind)
    header = read_header(tmp_path / "model.gguf")
    matrices = [tensor for tensor in header.tensors if tensor.name.startswith("blk.") and "norm" not in tensor.name]
    assert {tensor.type for tensor in matrices} == {kind}
    assert sum(tensor.shape[0] * tensor.shape[1] for tensor in matrices) == shape.weights
    data = (tmp_path / "model.gguf").read_bytes()
    values = decode(data[matrices[0].offset :][: matrices[0].nbytes], kind, 256)
    assert 0.001 < np.abs(values).max() < 1  # NaN is neither


@pytest.mark.parametrize("repacked", [True, False])
def test_every_model_is_timed_and_the_types_of_the_fast_kernels_without_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repacked: bool
) -> None:
    monkeypatch.setattr(typeprobe, "ROUNDS", 2)
    monkeypatch.setattr(typeprobe, "BALLAST_BYTES", 8)
    monkeypatch.setattr(typeprobe.Loaded, "is_repacked", repacked)
    said: dict[str, object] = {}
    monkeypatch.setattr(typeprobe, "say", lambda **facts: said.update(facts))
    typeprobe.time_types(tmp_path, ["F16", "Q4_0"], 1, 1.0)
    times = said["seconds"]
    assert isinstance(times, dict)
    assert set(times) == {name for name in ideal_times() if "Q5_K" not in name and (repacked or "unpacked" not in name)}
    found = fit(times, device="cpu", threads=1)
    assert 0 < found.seconds["Q4_0"] < 1e-8
    assert set(found.unpacked_seconds) == ({"F16", "Q4_0"} if repacked else set())


def test_the_spread_is_that_of_the_three_least_times_of_a_token() -> None:
    found = {"a": [4.0, 9.0, 2.0, 3.0], "b": [1.0, 1.0, 1.0], "c": [1.0, 1.5, 2.0], "c prompt": [9.0]}
    assert typeprobe.spread({"a": found["a"], "c prompt": found["c prompt"]}) == 1.0
    assert typeprobe.spread(found) == 1.0
    assert typeprobe.spread({"b": found["b"]}) == 0.0


def test_rounds_go_on_while_threads_sleep_at_barriers() -> None:
    sleeping = STACK.layers * typeprobe.SLEEPING_LAYER_S * 1.1
    assert typeprobe.has_settled({"stack": [1e-5] * 3})
    assert not typeprobe.has_settled({"stack": [sleeping] * 3})
    assert not typeprobe.has_settled({"stack": [1e-5, 2e-5, 3e-5]})


def test_one_thread_is_measured_where_the_cores_of_the_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typeprobe, "ROUNDS", 1)
    monkeypatch.setattr(typeprobe, "BALLAST_BYTES", 8)
    monkeypatch.setattr(typeprobe, "SLEEPING_LAYER_S", 0.0)
    said: dict[str, object] = {}
    monkeypatch.setattr(typeprobe, "say", lambda **facts: said.update(facts))
    typeprobe.time_types(tmp_path, ["F16"], 2, 1.0)
    assert said["threads"] == 1
