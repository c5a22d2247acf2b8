from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeai import training
from edgeai.errors import DoesNotFit
from edgeai.training import export
from edgeai.training import recipe as recipes
from edgeai.training.workspace import EXPORT_FILES


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("fp32", torch.float32)])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_transformers_loads_the_folder_and_gets_the_reported_loss(
    mini_file: Path, tmp_path: Path, dtype: str, kind: torch.dtype, tied: str
) -> None:
    recipe = recipes.load(mini_file, [f"export.dtype={dtype}", f"model.tie_embeddings={tied}"])
    trained = training.train(recipe, tmp_path / "out é", steps=8)
    weights = load_file(trained.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {kind}
    assert ("lm_head.weight" in weights) == (tied == "false")

    model = AutoModelForCausalLM.from_pretrained(trained.path, dtype=torch.float32)
    assert model.config.rope_parameters["rope_theta"] == recipe.model.rope_theta
    tokens = torch.frombuffer(bytearray((trained.path / "run" / "val.bin").read_bytes()), dtype=torch.uint16).long()
    total, context = 0.0, recipe.model.context
    for start in range(0, len(tokens) - 1, context):
        part = tokens[start : start + context + 1]
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(part[None, :-1]).logits[0], -1)
        total -= log_probabilities.gather(1, part[1:, None]).sum().item()
    assert total / (len(tokens) - 1) == pytest.approx(trained.eval_loss, rel=1e-4)


def test_transformers_loads_the_tokenizer_with_bos_and_another_pad_than_eos(mini_file: Path, tmp_path: Path) -> None:
    trained = training.train(recipes.load(mini_file), tmp_path / "out", steps=1)
    tokenizer = AutoTokenizer.from_pretrained(trained.path)
    assert set(tokenizer("the model")) == {"input_ids", "attention_mask"}
    ids = tokenizer("the model").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "the model"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    config = json.loads((trained.path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == 290
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [0, 1, 2]


def test_folder_holds_the_model_files_and_the_working_state_and_nothing_else(mini_file: Path, tmp_path: Path) -> None:
    trained = training.train(recipes.load(mini_file), tmp_path / "out", steps=1)
    assert {path.name for path in trained.path.iterdir()} == {*EXPORT_FILES, "run"}
    assert len({path.stat().st_mode for path in trained.path.iterdir() if path.is_file()}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_disk_that_is_full_at_the_export_is_told_and_resume_finishes_the_run(
    mini_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    def save_to_a_full_disk(*args: Any, **kwargs: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            save_file(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    mini = recipes.load(mini_file)
    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", save_to_a_full_disk)
        with pytest.raises(DoesNotFit, match="no space is left") as caught:
            training.train(mini, tmp_path / "out", steps=2)
    assert "--resume" in (caught.value.hint or "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]
    assert (tmp_path / "out" / "run" / "step-000000002.pt").exists()
    assert training.train(mini, tmp_path / "out", steps=2, resume=True).steps == 2


def test_lineage_names_neither_the_time_nor_the_machine(mini_file: Path, tmp_path: Path) -> None:
    trained = training.train(recipes.load(mini_file), tmp_path / "out", steps=1)
    text = (trained.path / "edgeai.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {
        "format", "edgeai", "kind", "recipe", "recipe_sha256", "tokenizer", "seed", "torch", "data", "steps",
        "tokens_seen", "params", "train_loss", "eval_loss", "baseline", "device",
    }  # fmt: skip
