"""What configurations and folders say: refused by name where the runtime cannot do it, and read in each layout that is in use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.checkpoint import Checkpoint, Source, open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel
from converters.families import ModelPlan, plan_model
from tests.families import VARIANTS, Variants, add_modules, make_variant

REFUSED: list[tuple[str, Mapping[str, Any], type[ConvertError], str]] = [
    ("bert", {"hidden_act": "relu"}, UnsupportedModel, "hidden_act 'relu'"),
    ("bert", {"position_embedding_type": "relative_key"}, UnsupportedModel, "relative_key"),
    ("bert", {"is_decoder": True}, UnsupportedModel, "is_decoder"),
    ("bert", {"add_cross_attention": True}, UnsupportedModel, "add_cross_attention"),
    ("bert", {"pruned_heads": {"0": [1]}}, UnsupportedModel, "pruned_heads"),
    ("bert", {"num_attention_heads": 5}, BrokenCheckpoint, "5 attention heads"),
    ("bert", {"type_vocab_size": 3}, BrokenCheckpoint, r"token_type.*\[2, 64\].*\[3, 64\]"),
    ("bert", {"layer_norm_eps": "1e-12"}, BrokenCheckpoint, "layer_norm_eps"),
    ("bert", {"architectures": ["BertForSequenceClassification"]}, UnsupportedModel, "BertForSequenceClassification"),
    ("bert-roberta", {"pad_token_id": None}, UnsupportedModel, "pad_token_id None"),
    ("bert-roberta", {"pad_token_id": 200}, BrokenCheckpoint, "-71 positions"),
    ("gpt2", {"activation_function": "relu"}, UnsupportedModel, "relu"),
    ("gpt2", {"activation_function": "gelu"}, UnsupportedModel, "'gelu'"),
    ("gpt2", {"scale_attn_weights": False}, UnsupportedModel, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, UnsupportedModel, "inverse_layer_idx"),
    ("gpt2", {"add_cross_attention": True}, UnsupportedModel, "cross_attention"),
    ("gpt2", {"n_head": 5}, BrokenCheckpoint, "n_head 5"),
    ("gpt2", {"n_inner": 100}, BrokenCheckpoint, r"c_fc.*\[64, 256\].*\[64, 100\]"),
    ("lfm2", {"conv_bias": True}, UnsupportedModel, "conv_bias"),
    ("lfm2", {"conv_L_cache": 1}, UnsupportedModel, "conv_L_cache 1"),
    ("lfm2", {"layer_types": ["conv"] * 4}, UnsupportedModel, "every layer 'conv'"),
    ("lfm2", {"layer_types": ["conv"] * 3}, BrokenCheckpoint, "for 4 layers"),
    ("lfm2", {"layer_types": ["conv"] * 3 + ["sliding_attention"]}, UnsupportedModel, "sliding_attention"),
    ("lfm2", {"layer_types": None}, UnsupportedModel, "every layer 'full_attention'"),
    ("lfm2", {"layer_types": None, "full_attn_idxs": 1}, BrokenCheckpoint, "full_attn_idxs 1"),
    ("lfm2", {"head_dim": 32}, UnsupportedModel, "4 heads of 32"),
    ("lfm2", {"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModel, "longrope"),
    ("mixtral", {"num_experts_per_tok": 5}, BrokenCheckpoint, "5 of 4"),
    ("mixtral", {"num_local_experts": 5}, BrokenCheckpoint, r"experts\.4"),
    ("mixtral", {"num_local_experts": 3}, UnsupportedModel, r"experts\.3"),
    ("mixtral", {"hidden_act": "gelu"}, UnsupportedModel, "gelu"),
    ("phi3", {"hidden_act": "gelu"}, UnsupportedModel, "gelu"),
    ("phi3", {"head_dim": 32}, UnsupportedModel, "4 heads of 32"),
    ("phi3", {"partial_rotary_factor": 0.2, "rope_parameters": None}, UnsupportedModel, "0.2"),
    ("phi3", {"rope_parameters": {"rope_type": "llama3"}}, UnsupportedModel, "llama3"),
    (
        "phi3-long",
        {"rope_scaling": {"type": "su", "long_factor": [1.0] * 7}, "rope_parameters": None},
        BrokenCheckpoint,
        "7 numbers.* 8",
    ),
    ("phi3-long", {"rope_scaling": {"type": "su"}, "rope_parameters": None}, BrokenCheckpoint, "long_factor of None"),
]
"""Variant, what its configuration says, the error, and what that names."""


def with_config(checkpoint: Checkpoint, **config: Any) -> Checkpoint:
    return replace(checkpoint, config={**checkpoint.config, **config})


def renamed(checkpoint: Checkpoint, change: Callable[[str], str]) -> Checkpoint:
    return replace(checkpoint, tensors={change(name): tensor for name, tensor in checkpoint.tensors.items()})


def with_tensors(checkpoint: Checkpoint, *names: str) -> Checkpoint:
    """Add tensors of one number."""
    like = next(iter(checkpoint.tensors.values()))
    extra: dict[str, Source] = {name: replace(like, name=name, shape=(1,), dtype="I64") for name in names}
    return replace(checkpoint, tensors={**checkpoint.tensors, **extra})


def outline(plan: ModelPlan) -> tuple[Mapping[str, Any], list[Any]]:
    """Return what of PLAN goes into a file, the numbers of computed tensors included."""
    return plan.keys, [
        (tensor.name, tensor.shape, [source.name for source in tensor.sources], constant_of(tensor.constant))
        for tensor in plan.tensors
    ]


def constant_of(values: Any) -> Any:
    return None if values is None else np.asarray(values).tolist()


@pytest.mark.parametrize(("name", "config", "error", "named"), REFUSED)
def test_what_the_runtime_cannot_do_is_refused_by_name(
    variants: Variants, name: str, config: Mapping[str, Any], error: type[ConvertError], named: str
) -> None:
    with pytest.raises(error, match=named) as caught:
        plan_model(with_config(open_checkpoint(variants(name)), **config))
    assert type(caught.value) is error


@pytest.mark.parametrize("name", ["bert", "bert-roberta", "gpt2", "lfm2", "mixtral", "phi3"])
def test_the_type_of_a_model_says_its_family_where_no_architecture_does(variants: Variants, name: str) -> None:
    checkpoint = open_checkpoint(variants(name))
    bare = replace(
        checkpoint, config={key: value for key, value in checkpoint.config.items() if key != "architectures"}
    )
    assert outline(plan_model(bare)) == outline(plan_model(checkpoint))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert", lambda name: f"bert.{name}"),
        ("bert", lambda name: re.sub(r"LayerNorm\.weight", "LayerNorm.gamma", name).replace("Norm.bias", "Norm.beta")),
        ("bert-roberta", lambda name: f"roberta.{name}"),
        ("bert-xlm-roberta", lambda name: f"roberta.{name}"),
        ("gpt2", lambda name: name.removeprefix("transformer.")),
    ],
)
def test_tensors_are_found_under_the_names_of_older_checkpoints(
    variants: Variants, name: str, change: Callable[[str], str]
) -> None:
    checkpoint = open_checkpoint(variants(name))
    old = renamed(checkpoint, change)
    assert old.tensors.keys() != checkpoint.tensors.keys()
    assert outline(plan_model(old)) == outline(plan_model(checkpoint))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("bert", ("embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight")),
        ("bert-masked-lm", ("bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias")),
        ("bert-roberta", ("embeddings.position_ids", "embeddings.token_type_ids", "lm_head.decoder.weight")),
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("lfm2", ("model.pos_emb.inv_freq",)),
        ("phi3", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_buffers_and_heads_of_older_checkpoints_are_left_out(
    variants: Variants, name: str, extra: tuple[str, ...]
) -> None:
    checkpoint = open_checkpoint(variants(name))
    assert outline(plan_model(with_tensors(checkpoint, *extra))) == outline(plan_model(checkpoint))


@pytest.mark.parametrize("name", ["bert", "gpt2", "lfm2", "mixtral", "phi3"])
def test_a_tensor_that_would_be_lost_is_named(variants: Variants, name: str) -> None:
    with pytest.raises(UnsupportedModel, match="adapter"):
        plan_model(with_tensors(open_checkpoint(variants(name)), "model.layers.0.adapter.weight"))


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("lfm2", {"rope_parameters": None, "rope_theta": 1000000.0}),
        ("lfm2", {"rope_parameters": None}),
        ("lfm2", {"layer_types": None, "full_attn_idxs": [1, 3]}),
        ("lfm2", {"intermediate_size": 5, "block_ff_dim": 96, "tie_embedding": True}),
        ("mixtral", {"rope_parameters": None, "rope_theta": 1000000.0}),
        ("mixtral", {"rope_parameters": None}),
        ("phi3", {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None}),
        ("phi3", {"rope_parameters": None}),
        ("gpt2", {"n_embd": None, "hidden_size": 64, "n_positions": None, "max_position_embeddings": 128}),
        ("gpt2", {"n_inner": 256, "n_ctx": 128, "layer_norm_epsilon": None}),
    ],
)
def test_older_layouts_of_a_configuration_mean_the_same(variants: Variants, name: str, old: Mapping[str, Any]) -> None:
    checkpoint = open_checkpoint(variants(name))
    assert outline(plan_model(with_config(checkpoint, **old))) == outline(plan_model(checkpoint))


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_longrope_goes_by_all_its_names(variants: Variants, kind: str) -> None:
    checkpoint = open_checkpoint(variants("phi3-long"))
    new = dict(checkpoint.config["rope_parameters"])
    factors = {name: new[name] for name in ("long_factor", "short_factor")}
    old = with_config(checkpoint, rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": kind, **factors})
    assert outline(plan_model(old)) == outline(plan_model(checkpoint))


def test_longrope_says_where_the_runtime_changes_its_factors(variants: Variants) -> None:
    plan = plan_model(open_checkpoint(variants("phi3-short")))
    assert plan.rope_switch == 256
    assert [code for code, _ in plan.warnings] == ["rope-switch"]


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_a_sliding_window_shortens_the_context(variants: Variants, name: str) -> None:
    plan = plan_model(with_config(open_checkpoint(variants(name)), sliding_window=32))
    assert plan.context == plan.keys["context_length"] == 32
    assert [code for code, _ in plan.warnings] == ["context-shortened"]


def test_the_head_of_a_masked_language_model_is_left_out_and_that_is_said(variants: Variants) -> None:
    plan = plan_model(open_checkpoint(variants("bert-masked-lm")))
    assert [code for code, _ in plan.warnings] == ["head-left-out"]


def test_the_positions_before_the_padding_are_cut(variants: Variants) -> None:
    plan = plan_model(open_checkpoint(variants("bert-roberta")))
    assert plan.context == plan.keys["context_length"] == 128
    rows = next(tensor for tensor in plan.tensors if tensor.name == "position_embd.weight")
    assert np.array_equal(rows.rows(0, 1), rows.sources[0].rows(2, 3))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return make_variant(tmp_path / "bert é", VARIANTS["bert"])


def test_without_modules_the_mean_is_taken_and_that_is_said(bert: Path) -> None:
    (bert / "modules.json").unlink()
    plan = plan_model(open_checkpoint(bert))
    assert plan.pooling == "mean"
    assert [code for code, _ in plan.warnings] == ["pooling-guessed"]


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_is_read_as_old_and_new_versions_write_it(bert: Path, settings: dict[str, Any], pooling: str) -> None:
    add_modules(bert, "Normalize", word_embedding_dimension=64, **settings)
    assert plan_model(open_checkpoint(bert)).pooling == pooling


@pytest.mark.parametrize(
    ("modules", "settings", "named"),
    [
        (("Dense",), {"pooling_mode": "mean"}, "Dense"),
        (("Pooling",), {"pooling_mode": "mean"}, "2 modules for pooling"),
        ((), {"pooling_mode": "max"}, "'max'"),
        ((), {"pooling_mode": 3}, "pooling 3"),
        ((), {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls', 'mean'\]"),
    ],
)
def test_pooling_that_the_runtime_does_not_know_is_refused(
    bert: Path, modules: tuple[str, ...], settings: dict[str, Any], named: str
) -> None:
    add_modules(bert, *modules, **settings)
    with pytest.raises(UnsupportedModel, match=named):
        plan_model(open_checkpoint(bert))


@pytest.mark.parametrize(
    "modules",
    [
        "[",
        "{}",
        "[3]",
        '[{"type": "Transformer"}]',
        '[{"type": "a.Pooling", "path": "../elsewhere"}]',
        '[{"type": "a.Pooling", "path": "/etc"}]',
        '[{"type": "a.Pooling", "path": "9_Pooling"}]',
    ],
)
def test_a_damaged_list_of_modules_is_an_error(bert: Path, modules: str) -> None:
    (bert / "modules.json").write_text(modules)
    with pytest.raises(ConvertError):
        plan_model(open_checkpoint(bert))


def test_a_prompt_that_the_source_does_not_pool_is_a_warning(bert: Path) -> None:
    add_modules(bert, pooling_mode="mean", include_prompt=False)
    assert [code for code, _ in plan_model(open_checkpoint(bert)).warnings] == ["prompt-pooled"]


def test_the_configuration_of_the_pooling_is_part_of_the_lineage(bert: Path) -> None:
    before = open_checkpoint(bert).hashes()
    (bert / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    after = open_checkpoint(bert).hashes()
    assert {name for name in after if after[name] != before[name]} == {"1_Pooling/config.json"}
