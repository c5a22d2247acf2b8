"""A LoRA folder of PEFT: merged, or as an adapter file, it computes what PEFT computes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.checkpoint import SINGLE, Checkpoint, open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel
from converters.families import plan_model
from converters.lora import ADAPTER_CONFIG, WEIGHTS, is_adapter, matches, open_adapter
from converters.lora_gguf import check_adapter, write_adapter
from converters.lora_merge import merge
from tests.checkpoints import edit_json, make
from tests.conftest import Record
from tests.families import VARIANTS, libllama_logits, make_variant, nmse, some_ids, write_f32

LLAMA = ["q_proj", "v_proj", "down_proj"]
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA}
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "plain": PLAIN,
    "all": {**PLAIN, "target_modules": "all-linear"},
    "stabilised": {**PLAIN, "use_rslora": True},
    "patterns": {
        **PLAIN,
        "rank_pattern": {"v_proj": 2, r"model.layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"q_proj": 3, r"layers\.0\.mlp\.down_proj": 5},
    },
    "stabilised-patterns": {**PLAIN, "use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "head": {**PLAIN, "target_modules": [*LLAMA, "lm_head"]},
    "embeddings": {**PLAIN, "target_modules": [*LLAMA, "embed_tokens"]},
}
ONLY_MERGED: Mapping[str, Mapping[str, Any]] = {
    "dora": {**PLAIN, "use_dora": True},
    "dora-stabilised": {**PLAIN, "use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}},
    "saved-modules": {**PLAIN, "modules_to_save": ["lm_head", "norm"]},
}


def train(base: Path, folder: Path, **config: Any) -> Path:
    """Save an adapter with random numbers everywhere into FOLDER, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        wrapped.save_pretrained(folder)
    return folder


def peft_model(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        return PeftModel.from_pretrained(model, adapter).eval()


def peft_logits(base: Path, adapter: Path, ids: list[int]) -> Any:
    torch.set_num_threads(1)
    with torch.inference_mode():
        return peft_model(base, adapter)(torch.tensor([ids]), use_cache=False).logits[0].numpy()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("base é") / "model")


@pytest.fixture(scope="session")
def base_gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_f32(base, tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the adapter NAME lies; each is made when it is first asked for."""
    root = tmp_path_factory.mktemp("adapters é")

    def find(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else train(base, folder, **{**ADAPTERS, **ONLY_MERGED}[name])

    return find


@pytest.fixture
def copy(adapters: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapters("plain"), tmp_path / "adapter"))


def merged(base: Path, adapter: Path) -> Checkpoint:
    checkpoint = open_checkpoint(base)
    return merge(checkpoint, open_adapter(adapter, checkpoint))


@pytest.mark.parametrize("name", sorted({**ADAPTERS, **ONLY_MERGED}))
def test_merged_weights_are_those_that_peft_merges(base: Path, adapters: Callable[[str], Path], name: str) -> None:
    expected = peft_model(base, adapters(name)).merge_and_unload().state_dict()
    changed = 0
    for tensor_name, tensor in merged(base, adapters(name)).tensors.items():
        rows = tensor.rows(0, tensor.shape[0])
        assert np.allclose(rows, expected[tensor_name].numpy(), rtol=1e-5, atol=1e-6), tensor_name
        source = open_checkpoint(base).tensors[tensor_name]
        changed += not np.array_equal(rows, source.rows(0, source.shape[0]))
    assert changed >= 3


@pytest.mark.parametrize("name", ["plain", "dora", "embeddings"])
def test_a_slab_is_those_rows_of_the_merged_tensor(base: Path, adapters: Callable[[str], Path], name: str) -> None:
    for tensor in merged(base, adapters(name)).tensors.values():
        assert np.allclose(tensor.rows(3, 17), tensor.rows(0, tensor.shape[0])[3:17], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_base_and_adapter_in_the_runtime_give_the_logits_of_peft(
    base: Path, base_gguf: Path, adapters: Callable[[str], Path], tmp_path: Path, name: str, record_proof: Record
) -> None:
    checkpoint = open_checkpoint(base)
    plan, path = plan_model(checkpoint), tmp_path / "adapter é.gguf"
    write_adapter(path, plan, open_adapter(adapters(name), checkpoint), {})
    ids = some_ids(plan.vocab_size)
    expected = peft_logits(base, adapters(name), ids)
    error = nmse(expected, libllama_logits(base_gguf, ids, adapter=path))
    assert error < 1e-6
    assert nmse(expected, libllama_logits(base_gguf, ids)) > 1e-3
    record_proof(model="LlamaForCausalLM", source="LoRA adapter", variant=name, proof="F32 logits NMSE", error=error)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_other_families_give_the_logits_of_peft(tmp_path: Path, family: str, record_proof: Record) -> None:
    folder = make_variant(tmp_path / "base", VARIANTS[family])
    targets = {"gpt2": ["c_attn", "c_fc", "c_proj"], "qwen2": "all-linear"}[family]
    adapter = train(folder, tmp_path / "adapter", **{**PLAIN, "target_modules": targets})
    checkpoint = open_checkpoint(folder)
    plan, path = plan_model(checkpoint), tmp_path / "adapter.gguf"
    write_adapter(path, plan, open_adapter(adapter, checkpoint), {})
    ids = some_ids(plan.vocab_size)
    found = libllama_logits(write_f32(folder, tmp_path / "base.gguf"), ids, adapter=path)
    error = nmse(peft_logits(folder, adapter, ids), found)
    assert error < 1e-5
    record_proof(
        model=VARIANTS[family].model, source="LoRA adapter", variant=family, proof="F32 logits NMSE", error=error
    )


def test_a_permute_that_is_left_out_is_seen(
    base: Path, base_gguf: Path, adapters: Callable[[str], Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    checkpoint = open_checkpoint(base)
    plan, path = plan_model(checkpoint), tmp_path / "adapter.gguf"
    plain = replace(plan, tensors=tuple(replace(tensor, transform=None) for tensor in plan.tensors))
    write_adapter(path, plain, open_adapter(adapters("plain"), checkpoint), {})
    ids = some_ids(plan.vocab_size)
    expected = peft_logits(base, adapters("plain"), ids)
    assert nmse(expected, libllama_logits(base_gguf, ids, adapter=path)) > 1e-4


@pytest.mark.parametrize("name", sorted(ONLY_MERGED))
def test_what_an_adapter_file_cannot_hold_is_refused(base: Path, adapters: Callable[[str], Path], name: str) -> None:
    checkpoint = open_checkpoint(base)
    with pytest.raises(UnsupportedModel, match="cannot hold") as caught:
        check_adapter(plan_model(checkpoint), open_adapter(adapters(name), checkpoint))
    assert "--merge" in str(caught.value.hint)


def test_adapters_in_bin_files_are_read(base: Path, copy: Path, adapters: Callable[[str], Path]) -> None:
    torch.save(load_file(copy / WEIGHTS[0]), copy / WEIGHTS[1])
    (copy / WEIGHTS[0]).unlink()
    one, two = merged(base, copy).tensors, merged(base, adapters("plain")).tensors
    assert all(np.array_equal(one[name].rows(0, 8), two[name].rows(0, 8)) for name in one)


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"peft_type": "LOHA"},
        {"target_parameters": ["mlp.experts"]},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [1]},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"(a+)+": 4}},
    ],
)
def test_what_would_come_out_wrong_is_refused_by_name(base: Path, copy: Path, change: dict[str, Any]) -> None:
    edit_json(copy / ADAPTER_CONFIG, lambda config: config.update(change))
    with pytest.raises(UnsupportedModel, match=next(iter(change)) if "rank_pattern" not in change else "pattern"):
        open_adapter(copy, open_checkpoint(base))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 5}, "rank 5"),
        ({"lora_alpha": "8"}, "lora_alpha '8'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"(": 3}}, "pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    base: Path, copy: Path, change: dict[str, Any], said: str
) -> None:
    edit_json(copy / ADAPTER_CONFIG, lambda config: config.update(change))
    with pytest.raises(ConvertError, match=said):
        open_adapter(copy, open_checkpoint(base))


def test_an_adapter_of_another_size_is_refused(copy: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", hidden_size=128)
    with pytest.raises(BrokenCheckpoint, match="matrix of") as caught:
        open_adapter(copy, open_checkpoint(other))
    assert "trained on" in str(caught.value.hint)


def test_an_adapter_whose_tensors_match_nothing_is_refused(base: Path, copy: Path) -> None:
    tensors = {name.replace("q_proj", "query"): tensor for name, tensor in load_file(copy / WEIGHTS[0]).items()}
    save_file(tensors, copy / WEIGHTS[0])
    with pytest.raises(BrokenCheckpoint, match="query"):
        open_adapter(copy, open_checkpoint(base))


def test_half_a_pair_is_refused(base: Path, copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS[0])
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, copy / WEIGHTS[0])
    with pytest.raises(BrokenCheckpoint, match="one half"):
        open_adapter(copy, open_checkpoint(base))


def test_a_folder_without_weights_and_a_truncated_file_are_refused(base: Path, copy: Path) -> None:
    data = (copy / WEIGHTS[0]).read_bytes()
    (copy / WEIGHTS[0]).write_bytes(data[:-9])
    with pytest.raises(BrokenCheckpoint, match="not a whole safetensors"):
        open_adapter(copy, open_checkpoint(base))
    (copy / WEIGHTS[0]).unlink()
    with pytest.raises(BrokenCheckpoint, match="neither"):
        open_adapter(copy, open_checkpoint(base))


def test_embeddings_that_are_the_output_matrix_too_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "tied", tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = train(folder, tmp_path / "adapter", **ADAPTERS["embeddings"])
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UnsupportedModel, match="output matrix"):
        merge(checkpoint, open_adapter(adapter, checkpoint))
    with pytest.raises(UnsupportedModel, match="output matrix"):
        check_adapter(plan_model(checkpoint), open_adapter(adapter, checkpoint))


@pytest.mark.parametrize(
    ("pattern", "module", "wanted"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        (r"layers\.\d\.self_attn\.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
    ],
)
def test_patterns_match_as_they_do_in_peft(pattern: str, module: str, *, wanted: bool) -> None:
    from peft.utils.other import get_pattern_key

    assert matches(pattern, module) is wanted
    assert (get_pattern_key([pattern], module) == pattern) is wanted


def test_one_alpha_serves_matrices_of_different_scales(
    base: Path, adapters: Callable[[str], Path], tmp_path: Path
) -> None:
    from converters.header import read_header

    checkpoint = open_checkpoint(base)
    path = tmp_path / "adapter.gguf"
    write_adapter(path, plan_model(checkpoint), open_adapter(adapters("patterns"), checkpoint), {"general.name": "x"})
    header = read_header(path)
    assert header.kv["adapter.lora.alpha"] == 8.0
    assert (header.kv["general.type"], header.kv["adapter.type"]) == ("adapter", "lora")
    assert json.loads((adapters("patterns") / ADAPTER_CONFIG).read_text())["alpha_pattern"]


def test_names_that_peft_would_not_find_are_refused(base: Path, copy: Path) -> None:
    weights = load_file(copy / WEIGHTS[0])
    for change in ("", "base_model.model.base_model.model."):
        save_file(
            {name.replace("base_model.model.", change): value for name, value in weights.items()}, copy / WEIGHTS[0]
        )
        with pytest.raises(BrokenCheckpoint, match="PEFT would not find"):
            open_adapter(copy, open_checkpoint(base))


def test_a_pattern_that_could_take_for_ever_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="pattern"):
        matches(".*" * 12 + "z", "model.layers.10.self_attn.q_proj")


def test_values_that_are_no_numbers_are_found_before_anything_runs(base: Path, copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / WEIGHTS[0])
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, copy / WEIGHTS[0])
    checkpoint = open_checkpoint(base)
    with pytest.raises(BrokenCheckpoint, match="not finite"):
        write_adapter(tmp_path / "out.gguf", plan_model(checkpoint), open_adapter(copy, checkpoint), {})


def test_the_config_of_the_base_beside_an_adapter_makes_no_model_of_it(base: Path, copy: Path) -> None:
    shutil.copy(base / "config.json", copy)
    assert is_adapter(copy)
    assert not is_adapter(base)


def test_a_model_and_an_adapter_in_one_folder_are_refused(base: Path, copy: Path) -> None:
    shutil.copy(base / SINGLE, copy)
    with pytest.raises(UnsupportedModel, match="whole model"):
        is_adapter(copy)


def test_a_folder_of_adapters_says_which_there_are(copy: Path) -> None:
    with pytest.raises(UnsupportedModel, match="1 LoRA adapters") as caught:
        is_adapter(copy.parent)
    assert str(copy) in str(caught.value.hint)


def test_positions_take_no_adapter_in_the_runtime(tmp_path: Path) -> None:
    folder = make_variant(tmp_path / "base", VARIANTS["gpt2-untied"])
    adapter = train(folder, tmp_path / "adapter", **{**PLAIN, "target_modules": ["c_attn", "wpe"]})
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UnsupportedModel, match="no table of tokens"):
        check_adapter(plan_model(checkpoint), open_adapter(adapter, checkpoint))
