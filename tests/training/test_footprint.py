from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from edgeai import training
from edgeai.device import Memory
from edgeai.errors import DoesNotFit
from edgeai.training import accelerator, footprint, model, recipe
from edgeai.training import tokenizer as bpe


@pytest.mark.parametrize(
    "overrides", [[], ["model.tie_embeddings=false", "model.layers=3"], ["model.heads=4", "model.kv_heads=2"]]
)
def test_parameters_are_those_of_the_model(mini_file: Path, overrides: list[str]) -> None:
    mini = recipe.load(mini_file, overrides)
    tokenizer = bpe.train(["some text"], pre="gpt-2", vocab_size=mini.tokenizer.vocab_size)
    assert footprint.parameters(mini) == model.parameter_count(model.build(mini, tokenizer))


def test_step_that_does_not_fit_is_an_error_before_any_work(mini_file: Path, tmp_path: Path) -> None:
    huge = recipe.load(mini_file, ["model.hidden_size=65536", "model.intermediate_size=1048576", "model.layers=512"])
    with pytest.raises(DoesNotFit, match="needs about") as caught:
        training.train(huge, tmp_path / "a")
    assert "micro_batch_size" in (caught.value.hint or "")
    assert not (tmp_path / "a").exists()


def test_smaller_micro_batch_needs_less(mini_file: Path) -> None:
    small = recipe.load(mini_file, ["training.micro_batch_size=1"])
    assert footprint.memory_bytes(small) < footprint.memory_bytes(recipe.load(mini_file))
    assert footprint.memory_bytes(small) < psutil.virtual_memory().available


def test_memory_is_what_the_cgroup_leaves(mini_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini, chosen = recipe.load(mini_file), accelerator.choose("cpu")
    need = footprint.memory_bytes(mini)
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(
            footprint, "memory_facts", lambda free=free: Memory(total=2**40, available=free, limit=free)
        )
        with contextlib.nullcontext() if fits else pytest.raises(DoesNotFit, match="GB free"):
            footprint.check_memory(mini, chosen)
