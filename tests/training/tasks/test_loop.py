from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeai import training
from edgeai.errors import Interrupted, OutputError, RecipeError
from edgeai.training import settings, steps, workspace
from edgeai.training.tasks import loop, prepare, sources
from edgeai.training.tasks import recipe as recipes
from edgeai.training.tasks.augment import augment
from edgeai.training.tasks.networks import load_module
from edgeai.training.tasks.recipe import TaskRecipe

Load = Callable[..., TaskRecipe]
SMALL = ("cnn", "mlp", "regression", "tcn", "text-encoder")


def exported(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", SMALL)
def test_two_runs_give_the_same_bytes_and_a_resumed_one_too(load: Load, tmp_path: Path, name: str) -> None:
    recipe = load(name)
    first, second = training.train(recipe, tmp_path / "a é"), training.train(recipe, tmp_path / "b")
    assert exported(first.path) == exported(second.path)
    training.train(recipe, tmp_path / "cut", steps=10)
    resumed = training.train(recipe, tmp_path / "cut", resume=True)
    assert exported(first.path) == exported(resumed.path)
    assert first.train_loss == resumed.train_loss


@pytest.mark.parametrize("forgotten", ["optimizer", "torch_rng"])
def test_resume_that_forgets_something_would_be_noticed(load: Load, tmp_path: Path, forgotten: str) -> None:
    """The mutation of the test above; dropout draws from torch's generator."""
    straight = training.train(load("cnn"), tmp_path / "straight")
    training.train(load("cnn"), tmp_path / "resumed", steps=10)
    path = workspace.Workspace(tmp_path / "resumed").checkpoints[-1]
    state = torch.load(path, weights_only=True)
    if forgotten == "optimizer":
        state["optimizer"]["state"] = {}
    else:
        state["torch_rng"] = torch.Generator().manual_seed(1).get_state()
    torch.save(state, path)
    assert straight.sha256 != training.train(load("cnn"), tmp_path / "resumed", resume=True).sha256


def test_another_seed_is_another_model(load: Load, tmp_path: Path) -> None:
    first, other = (training.train(load("cnn", f"seed={seed}"), tmp_path / str(seed), steps=2) for seed in (1, 2))
    assert first.sha256 != other.sha256


def test_micro_batches_give_the_gradient_of_the_batch(load: Load, tmp_path: Path) -> None:
    made = [
        training.train(
            load("mlp", f"training.micro_batch_size={size}", "model.dropout=0"), tmp_path / str(size), steps=3
        )
        for size in (16, 4)
    ]
    whole, parts = (load_file(trained.path / "model.safetensors") for trained in made)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_interrupted_run_goes_on_exactly(load: Load, tmp_path: Path) -> None:
    straight = training.train(load("cnn"), tmp_path / "straight")

    def interrupt(event: Any) -> None:
        if event.step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 7 of 20"):
        training.train(load("cnn"), tmp_path / "cut", observe=interrupt)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["run"]
    resumed = training.train(load("cnn"), tmp_path / "cut", resume=True)
    assert exported(straight.path) == exported(resumed.path)


def test_resume_with_other_rows_is_an_error(load: Load, home: Path, tmp_path: Path) -> None:
    training.train(load("mlp"), tmp_path / "a", steps=5)
    with (home / "rows.csv").open("a", encoding="utf-8") as file:
        file.write("99,1.5,red,b\n")
    with pytest.raises(RecipeError, match="of another data"):
        training.train(load("mlp"), tmp_path / "a", resume=True)


def test_finished_run_is_not_overwritten(load: Load, tmp_path: Path) -> None:
    training.train(load("mlp"), tmp_path / "a", steps=1)
    with pytest.raises(OutputError, match="holds a finished run"):
        training.train(load("mlp"), tmp_path / "a")


def test_loss_that_is_not_finite_stops_the_run_without_an_export(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loop.networks.build

    def broken(*args: Any) -> Any:
        made = build(*args)
        torch.nn.init.constant_(made.layers[0].weight, float("inf"))
        return made

    monkeypatch.setattr(loop.networks, "build", broken)
    with pytest.raises(steps.Diverged, match="nothing was exported"):
        training.train(load("regression"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_learned_from_what_is_held_out(load: Load, name: str) -> None:
    """The leak check: other held-out examples change no statistic, no vocabulary and no row of the training part."""
    recipe = load(name)
    examples = sources.read(recipe)
    before = prepare.prepare(recipe, examples)
    split = prepare.split(
        examples, test_fraction=recipe.data.test_fraction, val_fraction=recipe.data.val_fraction, seed=recipe.seed
    )
    held = np.concatenate([split.val, split.test])
    changed = prepare.prepare(recipe, examples_with_other_inputs(examples, held))
    assert changed.schema == before.schema
    assert all(np.array_equal(a, b) for a, b in zip(changed.train.inputs, before.train.inputs, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(changed.test.inputs, before.test.inputs, strict=True))


def examples_with_other_inputs(examples: Any, rows: Any) -> Any:
    if examples.images is not None:
        images = examples.images.copy()
        images[rows, :, 0, 0] = 200  # no two held-out pictures become equal, so the split stays
        return replace(examples, images=images)
    if examples.texts:
        texts = list(examples.texts)
        for row in rows:
            texts[row] = f"zebra {row} {texts[row]}"
        return replace(examples, texts=tuple(texts))
    columns = []
    for column in examples.columns:
        if column.numbers is not None:
            numbers = column.numbers.copy()
            numbers[rows] += 1000.0
            column = replace(column, numbers=numbers)
        columns.append(column)
    return replace(examples, columns=tuple(columns))


@pytest.mark.parametrize("name", SMALL)
def test_folder_is_what_the_contract_says(load: Load, tmp_path: Path, name: str) -> None:
    recipe = load(name)
    trained = training.train(recipe, tmp_path / "a", steps=2)
    names = {"model.safetensors", "data.safetensors", "edgeai.json", "config.json", "run"}
    assert {path.name for path in trained.path.iterdir()} == names | ({"tokenizer.json"} if recipe.tokenizer else set())
    assert {tensor.dtype for tensor in load_file(trained.path / "model.safetensors").values()} == {torch.float32}
    config = json.loads((trained.path / "config.json").read_text(encoding="utf-8"))
    schema, rows = config["schema"], load_file(trained.path / "data.safetensors")
    graph = schema["inputs"][0].get("graph")
    inputs = [f".{part}" for part in graph] if graph else [""]
    assert set(rows) == {"test.labels"} | {f"{part}{name}" for part in ("calibration", "test") for name in inputs}
    answers = rows["test.labels"].numpy()
    module = load_module(trained.path)
    with torch.no_grad():
        outputs = module(*(rows[f"test{name}"] for name in inputs)).numpy()
    if recipe.is_classification:
        assert answers.dtype == np.int64
        assert (outputs.argmax(1) == answers).mean() == pytest.approx(trained.test["accuracy"])
        assert outputs.shape[1] == len(schema["labels"])
    else:
        assert answers.dtype == np.float32
        target = schema["targets"][0]
        wrong = outputs * target["std"] + target["mean"] - answers
        assert np.sqrt((wrong**2).mean()) == pytest.approx(trained.test["rmse"], rel=1e-4)


def test_lineage_has_the_test_s_result_and_names_neither_time_nor_machine(load: Load, tmp_path: Path) -> None:
    trained = training.train(load("mlp"), tmp_path / "a", steps=2)
    text = (trained.path / "edgeai.json").read_text(encoding="utf-8")
    lineage = json.loads(text)
    assert str(tmp_path) not in text
    assert lineage["test"] == trained.test
    assert (lineage["recipe_sha256"], lineage["seed"], lineage["steps"]) == (load("mlp").sha256, 3, 2)


def test_shipped_digits_recipe_reaches_97_percent_in_less_than_half_of_its_steps(tmp_path: Path) -> None:
    path = settings.shipped()["digits"]
    recipe = recipes.load(path, ["training.steps=300", "seed=2"])
    trained = training.train(recipe, tmp_path / "digits")
    assert trained.test["accuracy"] >= 0.97
    assert trained.test["rows"] >= 0.2 * 1797 - 1


def test_answers_that_mean_nothing_are_not_learned(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation of the test above: were the test part leaked, shuffled answers would be known too."""
    read = sources.read

    def shuffled(recipe: TaskRecipe) -> Any:
        examples = read(recipe)
        rng = np.random.default_rng(5)
        assert examples.classes is not None
        examples.classes[:] = rng.permutation(examples.classes)
        return examples

    monkeypatch.setattr(sources, "read", shuffled)
    trained = training.train(load("cnn", "training.steps=150", "model.width=16"), tmp_path / "a")
    assert trained.test["interval"][0] < 0.2


@pytest.mark.parametrize("name", ["regression", "tumors"])
def test_table_is_learned_better_than_the_baseline(load: Load, tmp_path: Path, name: str) -> None:
    recipe = recipes.load(settings.shipped()["diabetes" if name == "regression" else name], ["training.steps=150"])
    test = training.train(recipe, tmp_path / "a").test
    if name == "regression":
        assert test["rmse"] < 0.85 * test["baseline"]
        assert test["r2"] > 0.3
    else:
        assert test["interval"][0] > test["baseline"]


def test_pictures_move_by_whole_pixels_and_black_comes_in(load: Load) -> None:
    data = load("cnn", "data.flip=false").data
    schema = {"mean": [0.25], "std": [0.5]}
    picture = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    moved = augment(np.repeat(picture, 200, axis=0), data, schema, seed=1, number=1)
    wide = np.pad(picture[0, 0], 1, constant_values=-0.5)
    possible = [wide[row : row + 4, column : column + 4] for row in range(3) for column in range(3)]
    found = {next(index for index, one in enumerate(possible) if np.array_equal(one, shown[0])) for shown in moved}
    assert found == set(range(9))
