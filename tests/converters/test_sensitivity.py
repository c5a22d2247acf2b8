"""What a type is expected to cost a tensor, against what it does to the model in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from converters import sensitivity
from converters.curvature import Curvature, Texts
from converters.dequantize import decode
from converters.errors import BrokenCheckpoint
from converters.families import ModelPlan, TensorPlan
from converters.feedback import feedback_of
from converters.mixes import BLOCK, SIZE
from converters.quantize import encode_with_feedback
from converters.quantmap import is_matrix
from converters.sensitivity import CANDIDATES, candidates, check_finite, costs, expected, feedback_from, sample
from edgeai.bounds.calibration import bundled_text
from edgeai.evaluation.corpus import default_text
from tests.curvatures import measured, plan_of

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
TINY = Path(__file__).parents[2] / "models" / "tiny"
READ, HELD_OUT, WINDOW = 16, 12, 128
"""Windows that are calibrated on, windows of other text that are compared on, and the tokens of each."""
KINDS = ("Q2_K", "Q3_K", "Q4_0", "Q5_0")


@pytest.fixture(scope="module")
def plan() -> ModelPlan:
    return plan_of(TINY)


def windows(text: str, count: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    step = len(ids) // count
    return [ids[at * step : at * step + WINDOW] for at in range(count)]


@pytest.fixture(scope="module")
def curvature() -> Curvature:
    """The curvature of models/tiny on some of the bundled text."""
    return measured(
        TINY, Texts(windows=windows(bundled_text()[:60_000], READ), generated=4, length=WINDOW, starts=[[1]])
    )


class Reference:
    """models/tiny in torch, and what changing one of its matrices does to its answers on text of the proof."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
        self.ids = torch.tensor(windows(default_text(scripts=False), HELD_OUT))
        self.before = self.said()

    def said(self) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return torch.log_softmax(self.model(self.ids, use_cache=False).logits.float(), -1)

    def rise(self, name: str, change: F32) -> float:
        """Return the mean KL when CHANGE is added to the parameter NAME."""
        import torch

        parameter = self.model.get_parameter(name)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.from_numpy(change))
        after = self.said()
        with torch.no_grad():
            parameter.copy_(kept)
        return float((self.before.exp() * (self.before - after)).sum(-1).mean())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def change_of(tensor: TensorPlan, kind: str, curvature: Curvature) -> F32:
    """Return what the type KIND adds to the weights of TENSOR, in the order of the checkpoint."""
    rows = tensor.rows(0, tensor.shape[0])
    data, _ = encode_with_feedback(rows, kind, feedback_from(curvature, tensor.name))
    found = decode(data, kind, tensor.shape[1]).reshape(rows.shape) - rows
    if tensor.transform is None:
        return found
    order = tensor.transform(np.arange(len(rows), dtype=np.float32)[:, None], tensor.block_rows)[:, 0].astype(int)
    plain = np.empty_like(found)
    plain[order] = found
    return plain


def table(plan: ModelPlan, curvature: Curvature, kinds: tuple[str, ...] = KINDS) -> Mapping[str, Mapping[str, float]]:
    return {
        tensor.name: costs(tensor, curvature, [kind for kind in kinds if not tensor.shape[-1] % BLOCK[kind]])
        for tensor in filter(is_matrix, plan.tensors)
    }


def test_what_one_tensor_costs_is_what_it_does_to_the_model(
    plan: ModelPlan, curvature: Curvature, reference: Reference
) -> None:
    ratios = []
    for tensor in filter(is_matrix, plan.tensors):
        for kind, cost in table(replace(plan, tensors=(tensor,)), curvature, ("Q3_K", "Q4_0"))[tensor.name].items():
            ratio = cost / reference.rise(tensor.sources[0].name, change_of(tensor, kind, curvature))
            assert 0.4 < ratio < 2.5, (tensor.name, kind, ratio)
            ratios.append(ratio)
    assert 0.6 < np.exp(np.mean(np.log(ratios))) < 1.4
    assert len(ratios) >= 25


def test_what_all_tensors_together_cost_is_nearly_the_sum(
    plan: ModelPlan, curvature: Curvature, reference: Reference
) -> None:
    import torch

    total = sum(cost["Q4_0"] for cost in table(plan, curvature, ("Q4_0",)).values())
    kept = {name: value.detach().clone() for name, value in reference.model.named_parameters()}
    with torch.no_grad():
        for tensor in filter(is_matrix, plan.tensors):
            change = torch.from_numpy(change_of(tensor, "Q4_0", curvature))
            reference.model.get_parameter(tensor.sources[0].name).add_(change)
    after = reference.said()
    with torch.no_grad():
        for name, value in kept.items():
            reference.model.get_parameter(name).copy_(value)
    rise = float((reference.before.exp() * (reference.before - after)).sum(-1).mean())
    assert 0.5 < total / rise < 2


def test_more_bits_cost_less(plan: ModelPlan, curvature: Curvature) -> None:
    ladder = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
    for cost in table(plan, curvature, ladder).values():
        found = [cost[kind] for kind in ladder if kind in cost]
        assert found == sorted(found, reverse=True)


def test_a_sample_of_the_rows_says_what_all_rows_say(
    plan: ModelPlan, curvature: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tuple(tensor for tensor in plan.tensors if is_matrix(tensor) and tensor.shape[0] >= 512)
    assert tensors
    some = table(replace(plan, tensors=tensors), curvature, ("Q4_0",))
    monkeypatch.setattr(sensitivity, "SAMPLE", 1 << 30)
    every = table(replace(plan, tensors=tensors), curvature, ("Q4_0",))
    monkeypatch.setattr(sensitivity, "SAMPLE", 1)  # 64 rows
    few = table(replace(plan, tensors=tensors), curvature, ("Q4_0",))
    for name, cost in every.items():
        assert some[name]["Q4_0"] == pytest.approx(cost["Q4_0"], rel=0.1)
        assert few[name]["Q4_0"] == pytest.approx(cost["Q4_0"], rel=0.4)


def test_the_shares_of_a_sample_sum_up_to_all_weights() -> None:
    weights = np.random.default_rng(0).gamma(0.3, size=5000)
    chosen, shares = sample(weights, 200)
    assert shares.sum() == pytest.approx(weights.sum())
    assert len(set(chosen.tolist())) == 200
    assert set(np.argsort(-weights)[:100]) <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()


def test_a_sample_of_rows_that_matter_to_nothing_is_worth_nothing() -> None:
    _, shares = sample(np.zeros(1000), 100)
    assert not shares.any()


def test_the_cost_is_half_of_the_weighted_squares_that_feedback_leaves() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((16, 64)).astype(np.float32)
    inputs = rng.standard_normal((400, 64)) @ rng.standard_normal((64, 64))
    feedback, shares = feedback_of((inputs.T @ inputs / 400).astype(np.float32)), rng.gamma(1, size=16)
    from converters.quantize import encode

    errors = rows - decode(encode(rows, "Q4_0", feedback.importance), "Q4_0", 64).reshape(16, 64)
    wanted = 0.0
    for first in (0, 32):  # tr(E_a M_aa M_aaᵀ E_aᵀ) of the two blocks
        block = feedback.factor[first : first + 32, first : first + 32].astype(np.float64)
        part = errors[:, first : first + 32].astype(np.float64)
        wanted += 0.5 * sum(share * row @ block @ block.T @ row for share, row in zip(shares, part, strict=True))
    assert expected(rows, "Q4_0", feedback, shares) == pytest.approx(wanted, rel=1e-5)


def test_a_type_whose_scales_cannot_hold_a_row_costs_infinitely_much() -> None:
    rows = np.full((4, 256), 1e30, np.float32)
    assert expected(rows, "Q4_K", feedback_of(np.eye(256, dtype=np.float32)), np.ones(4)) == float("inf")


@pytest.mark.parametrize("columns", [32, 96, 256, 576, 896])
def test_candidates_are_all_types_of_the_table_whose_blocks_fit(columns: int) -> None:
    assert set(candidates(columns)) == {kind for kind in CANDIDATES if columns % BLOCK[kind] == 0}
    assert {"Q4_0", "Q8_0", "F16"} <= set(candidates(columns))


def test_no_candidate_is_twice_and_each_is_smaller_than_f32() -> None:
    assert len(set(CANDIDATES)) == len(CANDIDATES)
    assert all(SIZE[kind] / BLOCK[kind] <= 2 for kind in CANDIDATES)


def test_few_tokens_are_damped_more(curvature: Curvature) -> None:
    name = "blk.0.ffn_down.weight"
    few = replace(curvature, tokens=10)

    def corner(found: Any) -> float:
        return float(found.factor[-1, -1])

    assert corner(feedback_from(few, name)) > corner(feedback_from(curvature, name))
    assert corner(feedback_from(replace(curvature, whole=True), name)) >= corner(feedback_from(curvature, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_found_wherever_it_is(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "SLAB", 64 * 10)
    data = np.ones((100, 64), np.float32)
    data[77, 5] = value
    tensor = TensorPlan(name="blk.0.ffn_up.weight", shape=data.shape, constant=data)
    with pytest.raises(BrokenCheckpoint, match=r"'blk\.0\.ffn_up\.weight' .* in rows 70 to 79"):
        check_finite(tensor)
    data[77, 5] = 0
    check_finite(tensor)


def test_what_rounded_inputs_cost_goes_by_the_blocks_of_the_type(plan: ModelPlan, curvature: Curvature) -> None:
    tensor = next(item for item in plan.tensors if item.name.endswith("ffn_down.weight"))
    kinds = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "F16")
    assert not tensor.shape[1] % 256
    plain = costs(tensor, replace(curvature, rounding={}), kinds)
    found = costs(tensor, replace(curvature, rounding={tensor.name: {"32": 1.0, "256": 3.0}}), kinds)
    more = {kind: round(found[kind] - plain[kind], 6) for kind in kinds}
    assert more == {"Q4_0": 1, "Q8_0": 1, "Q4_K": 3, "Q6_K": 3, "F16": 0}
