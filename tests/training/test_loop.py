from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeai import training
from edgeai.errors import DoesNotFit, Interrupted, InvalidModel, OutputError, RecipeError, UsageError
from edgeai.training import checkpoint, footprint, loop, recipe, workspace
from edgeai.training.monitor import Event
from edgeai.training.recipe import Recipe
from edgeai.training.workspace import EXPORT_FILES


def exported(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in EXPORT_FILES}


def at_step(step: int, act: Callable[[], Any]) -> Callable[[Event], None]:
    return lambda event: act() if event.step == step else None


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_two_runs_give_the_same_bytes(mini: Recipe, tmp_path: Path) -> None:
    first, second = training.train(mini, tmp_path / "a é"), training.train(mini, tmp_path / "b")
    assert exported(first.path) == exported(second.path)
    assert first.sha256 == second.sha256


def test_resumed_run_gives_the_bytes_of_a_straight_run(mini: Recipe, tmp_path: Path) -> None:
    straight = training.train(mini, tmp_path / "straight")
    training.train(mini, tmp_path / "resumed", steps=10)
    resumed = training.train(mini, tmp_path / "resumed", resume=True)
    assert exported(straight.path) == exported(resumed.path)
    lines = [json.loads(line) for line in (tmp_path / "resumed/run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]


@pytest.mark.parametrize("forgotten", ["optimizer", "step"])
def test_resume_that_forgets_something_would_be_noticed(
    mini: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The mutation of the test above."""
    straight = training.train(mini, tmp_path / "straight")
    training.train(mini, tmp_path / "resumed", steps=10)
    path = workspace.Workspace(tmp_path / "resumed").checkpoints[-1]
    state = torch.load(path, weights_only=True)
    if forgotten == "step":
        state["step"] = 9
    else:
        state["optimizer"]["state"] = {}
    torch.save(state, path)
    resumed = training.train(mini, tmp_path / "resumed", resume=True)
    assert straight.sha256 != resumed.sha256


def test_interrupted_run_keeps_its_step_and_goes_on_exactly(mini: Recipe, tmp_path: Path) -> None:
    straight = training.train(mini, tmp_path / "straight")
    with pytest.raises(Interrupted) as caught:
        training.train(mini, tmp_path / "cut", observe=at_step(7, interrupt), resume_command="edgeai train … --resume")
    assert "after step 7 of 20" in caught.value.message
    assert caught.value.hint == "go on with: edgeai train … --resume"
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["run"]
    assert not list((tmp_path / "cut" / "run").glob("*.tmp"))
    resumed = training.train(mini, tmp_path / "cut", resume=True)
    assert exported(straight.path) == exported(resumed.path)


def test_second_interrupt_ends_at_once(mini: Recipe, tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        training.train(mini, tmp_path / "cut", observe=at_step(7, twice))
    assert [path.stem for path in workspace.Workspace(tmp_path / "cut").checkpoints] == ["step-000000005"]


def test_signal_handler_is_given_back(mini: Recipe, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    training.train(mini, tmp_path / "a", steps=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_torch_settings_are_given_back(mini: Recipe, tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    training.train(mini, tmp_path / "a", steps=1)
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    assert before == after


def test_run_that_dies_before_its_first_checkpoint_leaves_nothing(mini: Recipe, tmp_path: Path) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(mini, tmp_path / "new" / "folder", observe=at_step(2, die))
    assert not (tmp_path / "new").exists()


def test_export_that_fails_leaves_no_model_and_resume_finishes_it(
    mini: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "disk full")

    straight = training.train(mini, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(loop.export, "write_json", fail)
        with pytest.raises(DoesNotFit, match="no space is left"):
            training.train(mini, tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["run"]
    resumed = training.train(mini, tmp_path / "cut", resume=True)
    assert exported(straight.path) == exported(resumed.path)


def test_loss_that_is_not_finite_stops_the_run_without_an_export(
    mini: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loop.model.build

    def broken(*args: Any) -> Any:
        made = build(*args)
        torch.nn.init.constant_(made.model.norm.weight, float("inf"))
        return made

    monkeypatch.setattr(loop.model, "build", broken)
    with pytest.raises(loop.Diverged, match="step 1; nothing was exported"):
        training.train(mini, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_model_learns_more_than_a_bigram_knows(mini_file: Path, tmp_path: Path) -> None:
    """The text is one long pattern that a bigram cannot see: which word follows `a` depends on the word before."""
    pattern = json.dumps({"text": "b a c d a e " * 60})
    lines = [json.dumps({"text": f"{number} " + json.loads(pattern)["text"]}) for number in range(10)]
    (mini_file.parent / "text.jsonl").write_text("\n".join(lines))
    trained = training.train(recipe.load(mini_file, ["training.steps=150", "model.init_std=0.1"]), tmp_path / "a")
    assert trained.eval_loss < trained.bigram_loss - 0.1


def test_reported_numbers_are_those_of_the_lineage_file(mini: Recipe, tmp_path: Path) -> None:
    trained = training.train(mini, tmp_path / "a")
    lineage = json.loads((tmp_path / "a" / "edgeai.json").read_text())
    assert lineage["eval_loss"] == trained.eval_loss
    assert lineage["baseline"] == {"bigram": trained.bigram_loss}
    assert lineage["steps"] == trained.steps == 20
    assert lineage["tokens_seen"] == 20 * 4 * 16
    assert lineage["recipe_sha256"] == mini.sha256
    assert set(trained.to_dict()) >= {
        "path", "steps", "train_loss", "eval_loss", "bigram_loss", "params", "tok_s", "seconds", "sha256", "warnings",
    }  # fmt: skip


def test_finished_run_is_not_overwritten(mini: Recipe, tmp_path: Path) -> None:
    training.train(mini, tmp_path / "a")
    before = exported(tmp_path / "a")
    with pytest.raises(OutputError, match="holds a finished run"):
        training.train(mini, tmp_path / "a")
    assert exported(tmp_path / "a") == before


def test_finished_run_can_be_trained_further(mini: Recipe, tmp_path: Path) -> None:
    training.train(mini, tmp_path / "a", steps=5)
    assert training.train(mini, tmp_path / "a", steps=15, resume=True).steps == 15


@pytest.mark.parametrize("steps", [5, 3])
def test_resume_with_no_steps_left_is_an_error(mini: Recipe, tmp_path: Path, steps: int) -> None:
    training.train(mini, tmp_path / "a", steps=5)
    with pytest.raises(UsageError, match="at step 5 already"):
        training.train(mini, tmp_path / "a", steps=steps, resume=True)


def test_unfinished_run_is_not_overwritten(mini: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        training.train(mini, tmp_path / "a", observe=at_step(2, interrupt))
    with pytest.raises(OutputError, match="unfinished run") as caught:
        training.train(mini, tmp_path / "a")
    assert "--resume" in (caught.value.hint or "")


def test_resume_without_a_checkpoint_is_an_error(mini: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        training.train(mini, tmp_path / "a", resume=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("change", ["seed=9", "training.lr=0.5", "model.hidden_size=64"])
def test_resume_with_another_recipe_is_an_error(mini_file: Path, tmp_path: Path, change: str) -> None:
    training.train(recipe.load(mini_file), tmp_path / "a", steps=5)
    with pytest.raises(RecipeError, match="of another recipe"):
        training.train(recipe.load(mini_file, [change]), tmp_path / "a", resume=True)


def test_resume_with_another_text_is_an_error(mini: Recipe, tmp_path: Path) -> None:
    training.train(mini, tmp_path / "a", steps=5)
    with (mini.folder / "text.jsonl").open("a") as file:
        file.write('\n{"text": "more"}')
    with pytest.raises(RecipeError, match="of another text"):
        training.train(mini, tmp_path / "a", resume=True)


def test_damaged_checkpoint_is_named(mini: Recipe, tmp_path: Path) -> None:
    training.train(mini, tmp_path / "a", steps=5)
    path = workspace.Workspace(tmp_path / "a").checkpoints[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidModel, match=r"step-000000005\.pt' is damaged"):
        training.train(mini, tmp_path / "a", resume=True)


def test_two_checkpoints_are_kept(mini: Recipe, tmp_path: Path) -> None:
    training.train(mini, tmp_path / "a")
    names = [path.stem for path in workspace.Workspace(tmp_path / "a").checkpoints]
    assert names == ["step-000000015", "step-000000020"]


def test_disk_too_small_is_an_error_before_the_first_step(
    mini: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "disk_bytes", lambda _: 10**18)
    events: list[Event] = []
    with pytest.raises(DoesNotFit):
        training.train(mini, tmp_path / "a", observe=events.append)
    assert not events
    assert not (tmp_path / "a").exists()


def test_full_disk_leaves_the_last_checkpoint_and_no_half_file(mini: Recipe, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    training.train(mini, tmp_path / "a", steps=5)
    space = workspace.Workspace(tmp_path / "a")
    weights = torch.nn.Linear(100, 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DoesNotFit, match="no space is left"):
            checkpoint.save(space, 9, weights, torch.optim.AdamW(weights.parameters()), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.stem for path in space.checkpoints] == ["step-000000005"]
    assert not list(space.run.glob(".*.tmp"))


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_a_usage_error(mini: Recipe, tmp_path: Path, steps: int) -> None:
    with pytest.raises(UsageError, match=f"steps {steps}"):
        training.train(mini, tmp_path / "a", steps=steps)
