"""What configurations of decoders say: older layouts mean the same, absent keys mean what transformers takes, the rest is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.checkpoint import SINGLE, open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel
from converters.families import ModelPlan, plan_model
from tests.checkpoints import edit_json
from tests.families import VARIANTS, Variants, add_modules

CAUSAL = sorted(name for name, variant in VARIANTS.items() if variant.pooling is None and not variant.half_gelu)


@pytest.fixture
def copied(variants: Variants, tmp_path: Path) -> Variants:
    """Return a copy of the folder of a variant, to be changed."""
    return lambda name: Path(shutil.copytree(variants(name), tmp_path / name))


def plan_with(folder: Path, **config: Any) -> ModelPlan:
    """Return the plan of FOLDER after a change of its configuration; ... removes a key."""

    def change(found: dict[str, Any]) -> None:
        found.update(config)
        for key in [key for key, value in config.items() if value is ...]:
            del found[key]

    edit_json(folder / "config.json", change)
    return plan_model(open_checkpoint(folder))


def layout_of_transformers_4(config: dict[str, Any]) -> None:
    """Say the same as transformers 4 did: the rotary base beside its scaling, `torch_dtype`, nulls."""
    rope = config.pop("rope_parameters", None)
    if rope and "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"].pop("rope_theta")
        rope = rope["full_attention"]
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    config["torch_dtype"] = config.pop("dtype", "float32")
    config["_attn_implementation_autoset"] = True
    config["pretraining_tp"] = 1


@pytest.mark.parametrize("name", CAUSAL)
def test_the_layout_of_transformers_4_means_the_same(copied: Variants, name: str) -> None:
    folder = copied(name)
    new = plan_model(open_checkpoint(folder))
    edit_json(folder / "config.json", layout_of_transformers_4)
    old = plan_model(open_checkpoint(folder))
    assert (old.keys, old.context, old.warnings) == (new.keys, new.context, new.warnings)
    assert [tensor.name for tensor in old.tensors] == [tensor.name for tensor in new.tensors]


@pytest.mark.parametrize("name", CAUSAL)
def test_the_model_type_is_enough_without_architectures(copied: Variants, name: str) -> None:
    folder = copied(name)
    assert plan_with(folder, architectures=...).keys == plan_with(folder, architectures=[VARIANTS[name].model]).keys


@pytest.mark.parametrize("name", ["granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"])
def test_old_rotary_frequencies_are_no_tensor_that_would_be_lost(copied: Variants, name: str) -> None:
    folder = copied(name)
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, folder / SINGLE)
    assert plan_model(open_checkpoint(folder)).layers >= 2


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("gemma3", {"attention_bias": True}, "attention_bias"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
        ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "'yarn'"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "'linear'"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
        ("granite", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("granite", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"is_causal": False}, "is_causal False"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"head_dim": 8}, "head_dim 8"),
        ("olmo2", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'llama3'"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("smollm3", {"attention_bias": True}, "attention_bias"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "no_rope_layer_interval 2"),
    ],
)
def test_what_the_runtime_cannot_compute_is_refused_by_name(
    copied: Variants, name: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        plan_with(copied(name), **change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma3", {"query_pre_attn_scalar": 0}),
        ("gemma3", {"sliding_window": None}),
        ("gemma3", {"layer_types": ["full_attention"]}),
        ("gemma3", {"layer_types": "full_attention"}),
        ("gemma3", {"head_dim": None}),
        ("granite", {"logits_scaling": "8"}),
        ("granite", {"attention_multiplier": 0}),
        ("qwen3", {"head_dim": None}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}),
    ],
)
def test_an_impossible_configuration_is_refused(copied: Variants, name: str, change: dict[str, Any]) -> None:
    with pytest.raises(BrokenCheckpoint):
        plan_with(copied(name), **change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("smollm3", {"no_rope_layers": "all"}),
        ("smollm3", {"no_rope_layers": [1, 1]}),
        ("qwen3", {"layer_types": [{}, 1], "use_sliding_window": True}),
        ("gemma3", {"rope_parameters": [1]}),
        ("gemma3", {"rope_scaling": "linear"}),
        ("gemma3", {"rope_parameters": {"full_attention": "default"}}),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_of_ours(copied: Variants, name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConvertError):
        plan_with(copied(name), **change)


def test_gemma_takes_the_published_defaults(copied: Variants) -> None:
    absent = ("rope_parameters", "layer_types", "query_pre_attn_scalar", "max_position_embeddings", "rms_norm_eps")
    plan = plan_with(copied("gemma3"), sliding_window=1024, **dict.fromkeys(absent, ...))
    assert plan.context == 131072
    assert plan.keys["rope.freq_base"] == 1e6
    assert plan.keys["rope.freq_base_swa"] == 1e4
    assert plan.window == 1024


def test_a_pattern_of_one_means_no_window(copied: Variants) -> None:
    plan = plan_with(copied("gemma3"), layer_types=..., sliding_window_pattern=1)
    assert plan.window is None
    assert not any("sliding" in key or "swa" in key for key in plan.keys)


def conditional(folder: Path, *, old_names: bool) -> Path:
    """Make a Gemma3ForConditionalGeneration of a language model: its settings and names moved, with a part for images."""

    def move(config: dict[str, Any]) -> None:
        text = {key: config.pop(key) for key in list(config) if key not in ("transformers_version", "dtype")}
        text.pop("architectures")
        config.update(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text)
        config.update(vision_config={}, mm_tokens_per_image=256)

    edit_json(folder / "config.json", move)
    tensors, before = load_file(folder / SINGLE), "" if old_names else "model."
    inner = "language_model.model." if old_names else "model.language_model."
    renamed = {name.replace("model.", inner, 1): values for name, values in tensors.items()}
    renamed[f"{before}vision_tower.vision_model.post_layernorm.weight"] = np.zeros(4, np.float32)
    renamed[f"{before}multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    save_file(renamed, folder / SINGLE, {"format": "pt"})
    return folder


@pytest.mark.parametrize("old_names", [True, False])
def test_the_language_model_of_gemma_with_images_is_the_same_model(copied: Variants, *, old_names: bool) -> None:
    folder = copied("gemma3")
    alone = plan_model(open_checkpoint(folder))
    found = plan_model(open_checkpoint(conditional(folder, old_names=old_names)))
    assert found.keys == alone.keys
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in alone.tensors]
    assert [code for code, _ in found.warnings] == ["images-left-out"]


def test_gemma_with_images_and_without_a_text_configuration_is_broken(copied: Variants) -> None:
    folder = conditional(copied("gemma3"), old_names=False)
    with pytest.raises(BrokenCheckpoint, match="text_config None"):
        plan_with(folder, text_config=None)


def test_an_embedding_model_that_is_converted_as_a_language_model_says_so(copied: Variants) -> None:
    folder = copied("qwen3")
    add_modules(folder, pooling_mode="lasttoken")
    assert [code for code, _ in plan_model(open_checkpoint(folder)).warnings] == ["pooling-left-out"]


def test_qwen3_without_the_prefix_of_a_language_model_is_read(copied: Variants) -> None:
    folder = copied("qwen3-256-tied")
    tensors = load_file(folder / SINGLE)
    save_file({name.removeprefix("model."): values for name, values in tensors.items()}, folder / SINGLE)
    assert plan_model(open_checkpoint(folder)).tied


@pytest.mark.parametrize(
    ("name", "change", "context"),
    [
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 32768}, 4096),
        ("mistral", {"sliding_window": None, "max_position_embeddings": 32768}, 32768),
        ("mistral", {"sliding_window": None, "max_position_embeddings": ...}, 131072),
        ("ministral", {"layer_types": ["full_attention"] * 2}, 128),
        ("ministral", {"layer_types": ..., "sliding_window": 32}, 32),
        ("ministral", {"layer_types": ..., "sliding_window": None}, 128),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1, "layer_types": ...}, 32),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0, "layer_types": ...}, 32),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 28, "layer_types": ...}, 128),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 0}, 128),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 32, "layer_types": ...}, 32),
        ("smollm3", {"use_sliding_window": False, "sliding_window": 32, "layer_types": ...}, 128),
    ],
)
def test_a_window_that_the_runtime_lacks_shortens_the_context(
    copied: Variants, name: str, change: dict[str, Any], context: int
) -> None:
    plan = plan_with(copied(name), **change)
    assert plan.context == context
    shortened = context < json.loads((plan_folder(plan) / "config.json").read_text()).get(
        "max_position_embeddings", 131072
    )
    assert [code for code, _ in plan.warnings] == ["context-shortened"] * shortened


def plan_folder(plan: ModelPlan) -> Path:
    """Return where the tensors of PLAN are."""
    return plan.tensors[-1].sources[0].files[0].parent


def test_mistral_has_no_biases_whatever_its_configuration_says(copied: Variants) -> None:
    assert not any("bias" in tensor.name for tensor in plan_with(copied("mistral"), attention_bias=True).tensors)


def test_smollm3_has_a_rotary_base_of_its_own_where_none_is_given(copied: Variants) -> None:
    assert plan_with(copied("smollm3"), rope_parameters=...).keys["rope.freq_base"] == 2e6


def test_an_original_context_beside_the_rotary_settings_comes_first(copied: Variants) -> None:
    plan = plan_with(copied("llama-yarn"), original_max_position_embeddings=64)
    assert plan.keys["rope.scaling.original_context_length"] == 64


def test_granite_without_multipliers_multiplies_by_one(copied: Variants) -> None:
    absent = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    keys = plan_with(copied("granite"), **dict.fromkeys(absent, ...)).keys
    assert [keys[key] for key in ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")] == [1.0] * 4


@pytest.mark.parametrize(
    ("older", "base"),
    [({"type": "linear", "factor": 4.0}, 5e4), ({}, 77.0), (None, 77.0)],
    ids=["linear", "empty", "null"],
)
def test_of_rotary_settings_in_both_layouts_the_older_hold(
    copied: Variants, older: dict[str, Any] | None, base: float
) -> None:
    newer = {"rope_type": "default", "rope_theta": 77.0}
    plan = plan_with(copied("llama"), rope_scaling=older, rope_theta=5e4, rope_parameters=newer)
    assert plan.keys["rope.freq_base"] == base
    assert ("rope.scaling.factor" in plan.keys) == bool(older)
