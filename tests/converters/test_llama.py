from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.checkpoint import SINGLE, open_checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import interleave_halves, plan_model
from tests.checkpoints import edit_json


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy é"))


def test_interleaving_puts_both_halves_of_a_head_side_by_side() -> None:
    rows = np.arange(8, dtype=np.float32)  # two heads of four
    assert interleave_halves(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_interleaving_works_head_by_head() -> None:
    rows = np.random.default_rng(1).normal(size=(24, 5)).astype(np.float32)
    whole = interleave_halves(rows, 8)
    assert np.array_equal(whole, np.concatenate([interleave_halves(rows[at : at + 8], 8) for at in (0, 8, 16)]))


def test_every_missing_tensor_is_named(copy: Path) -> None:
    tensors = load_file(copy / SINGLE)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / SINGLE)
    with pytest.raises(BrokenCheckpoint, match=r"2 of 21 .*layers\.1\.mlp\.up_proj.*model\.norm"):
        plan_model(open_checkpoint(copy))


def test_a_tensor_that_would_be_lost_is_named(copy: Path) -> None:
    tensors = load_file(copy / SINGLE)
    tensors["model.layers.0.adapter.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, copy / SINGLE)
    with pytest.raises(UnsupportedModel, match="adapter"):
        plan_model(open_checkpoint(copy))


def test_old_rotary_frequencies_are_ignored(copy: Path) -> None:
    tensors = load_file(copy / SINGLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, copy / SINGLE)
    assert plan_model(open_checkpoint(copy)).layers == 2


def test_a_shape_that_config_does_not_allow_is_refused(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config.update(intermediate_size=95))
    with pytest.raises(BrokenCheckpoint, match=r"\[96, 64\].*\[95, 64\]"):
        plan_model(open_checkpoint(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": -4},
        {"num_key_value_heads": 3},
        {"rms_norm_eps": True},
        {"rms_norm_eps": None},
        {"max_position_embeddings": None},
        {"vocab_size": 10**12},
    ],
)
def test_an_impossible_configuration_is_refused(copy: Path, change: dict[str, Any]) -> None:
    edit_json(copy / "config.json", lambda config: config.update(change))
    with pytest.raises(BrokenCheckpoint):
        plan_model(open_checkpoint(copy))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel.*"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"head_dim": 7}, "head_dim 7"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(copy: Path, change: dict[str, Any], named: str) -> None:
    edit_json(copy / "config.json", lambda config: config.update(change))
    with pytest.raises(UnsupportedModel, match=named):
        plan_model(open_checkpoint(copy))


def test_an_unknown_family_lists_the_known_ones(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config.update(architectures=["T5EncoderModel"]))
    with pytest.raises(UnsupportedModel) as caught:
        plan_model(open_checkpoint(copy))
    assert "LlamaForCausalLM" in str(caught.value.hint)


def test_both_layouts_of_rope_settings_mean_the_same(copy: Path) -> None:
    new = plan_model(open_checkpoint(copy)).keys
    edit_json(copy / "config.json", lambda config: (config.pop("rope_parameters"), config.update(rope_theta=10000.0)))
    assert plan_model(open_checkpoint(copy)).keys == new


def test_a_sliding_window_shortens_the_context_and_says_so(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config.update(sliding_window=32))
    plan = plan_model(open_checkpoint(copy))
    assert plan.context == 32
    assert [code for code, _ in plan.warnings] == ["context-shortened"]
