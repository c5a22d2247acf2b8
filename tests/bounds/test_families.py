"""Each family's types can be chosen: torch says something about every matrix, and a file of five bits per weight passes its proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.bounds.aim import Aim
from edgeai.bounds.goal import Goal
from edgeai.evaluation import passport
from edgeai.pipeline import convert
from tests.checkpoints import InProcessTorch
from tests.curvatures import InProcessCurvature
from tests.families import VARIANTS, make_variant

ONLY = ("Q2_K", "Q4_0", "Q5_0", "Q8_0")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3-two-layers", "phi3", "gpt2", "bert"])
def test_a_file_of_five_bits_per_weight_of_each_family_is_proved(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "Child", InProcessTorch)
    monkeypatch.setattr("converters.curvature.Child", InProcessCurvature)
    bits = 6.5 if name == "bert" else 5.5  # its vectors of positions stay F32
    wide = {"n_embd": 128} if name == "gpt2" else {"hidden_size": 128, "intermediate_size": 256}
    folder = make_variant(tmp_path / name, VARIANTS[name], **wide)
    made = convert(folder, aim=Aim(goal=Goal(target_bpw=bits, only=ONLY), tokens=512))
    assert "types-unmeasured" not in [notice.code for notice in made.warnings]
    assert made.report.ok
    assert 0.95 * bits < made.bpw <= bits
    assert made.outcome is not None
    assert all(cost > 0 for cost in made.outcome.costs.values())
