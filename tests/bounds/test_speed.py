"""How long a token may take where speed is preferred: as long as in the usual files of about the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.ggml_types import GGML_TYPES
from converters.quantmap import is_matrix, plan_types
from edgeai.bounds.goal import Goal
from edgeai.bounds.options import kinds_of, options_of
from edgeai.bounds.speed import SLACK, YARDSTICKS, seconds_of, speed_text, time_limit, token_seconds
from edgeai.evaluation.typespeed import TypeSpeeds

TINY = Path(__file__).parents[2] / "models" / "tiny"
FAST = 10.0
"""How many times as fast Q4_0 is as every other type, byte by byte."""


@pytest.fixture(scope="module")
def plan() -> ModelPlan:
    return plan_model(open_checkpoint(TINY))


@pytest.fixture(scope="module")
def seconds(plan: ModelPlan) -> dict[str, dict[str, float]]:
    """Times that grow with the bytes, but for Q4_0."""
    return {
        tensor.name: {
            kind.name: tensor.elements * kind.size / kind.block * 1e-9 / (FAST if kind.name == "Q4_0" else 1)
            for kind in GGML_TYPES.values()
        }
        for tensor in plan.tensors
        if is_matrix(tensor)
    }


def limit(plan: ModelPlan, seconds: dict[str, dict[str, float]], budget: int | None) -> float | None:
    kinds = kinds_of(plan, Goal(target_bpw=4.0, prefer="speed"), ())
    costs = {name: dict.fromkeys(some, 1.0) for name, some in kinds.items()}
    return time_limit(plan, options_of(plan, kinds, costs, seconds), budget, seconds)


def taken(plan: ModelPlan, seconds: dict[str, dict[str, float]], quant: str) -> float:
    return token_seconds(plan_types(plan, quant, importance=seconds), list(seconds), seconds)


def nbytes(plan: ModelPlan, seconds: dict[str, dict[str, float]], quant: str) -> int:
    return plan_types(plan, quant, importance=seconds).nbytes


def test_a_file_of_the_size_of_q4_0_is_as_fast_as_that(plan: ModelPlan, seconds: dict[str, dict[str, float]]) -> None:
    found = limit(plan, seconds, nbytes(plan, seconds, "Q4_0"))
    least = sum(min(some.values()) for some in seconds.values())
    assert found == pytest.approx(max(taken(plan, seconds, "Q4_0"), SLACK * least))


def test_a_larger_file_need_not_be_as_fast_as_a_much_smaller_one(
    plan: ModelPlan, seconds: dict[str, dict[str, float]]
) -> None:
    found = limit(plan, seconds, nbytes(plan, seconds, "Q6_K"))
    assert found is not None
    assert found > 3 * taken(plan, seconds, "Q4_0")
    assert found <= taken(plan, seconds, "Q6_K")


def test_without_a_size_or_a_usual_file_that_is_small_enough_there_is_no_limit(
    plan: ModelPlan, seconds: dict[str, dict[str, float]]
) -> None:
    smallest = min(nbytes(plan, seconds, quant) for quant in YARDSTICKS)
    assert limit(plan, seconds, None) is None
    assert limit(plan, seconds, smallest - 1) is None


def test_what_a_token_takes_is_said_beside_the_fastest_usual_file_of_the_size(
    plan: ModelPlan, seconds: dict[str, dict[str, float]]
) -> None:
    q6_k = plan_types(plan, "Q6_K", importance=seconds)
    own, q4_0 = (f"{taken(plan, seconds, quant) * 1e3:.3g} ms" for quant in ("Q6_K", "Q4_0"))
    assert speed_text(plan, q6_k, seconds).startswith(f"the weights of a token take {own} here")
    assert speed_text(plan, q6_k, seconds).endswith(f"those of q6_k {own}")
    assert speed_text(plan, plan_types(plan, "Q4_0", importance=seconds), seconds).endswith(f"those of q4_0 {q4_0}")


def test_what_a_matrix_takes_whatever_its_type_is_left_out(plan: ModelPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = TypeSpeeds(
        device="x", threads=1, seconds=dict.fromkeys((kind.name for kind in GGML_TYPES.values()), 1e-9), matrix_s=1.0
    )
    monkeypatch.setattr("edgeai.bounds.speed.type_speeds", lambda *_args, **_more: speeds)
    monkeypatch.setattr("edgeai.bounds.speed.runnable", lambda kinds: kinds)
    found = seconds_of(plan, {"blk.0.ffn_up.weight": ("Q4_0",)}, lambda *_said: None, lambda *_told: None)
    tensor = next(item for item in plan.tensors if item.name == "blk.0.ffn_up.weight")
    assert found["blk.0.ffn_up.weight"]["Q4_0"] == pytest.approx(tensor.elements * 1e-9)
