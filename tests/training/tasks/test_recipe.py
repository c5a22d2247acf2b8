from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeai import training
from edgeai.errors import RecipeError
from edgeai.training import recipe as language
from edgeai.training import settings
from edgeai.training.tasks import recipe as recipes
from edgeai.training.tasks.recipe import TaskRecipe

Load = Callable[..., TaskRecipe]


@pytest.mark.parametrize(
    ("name", "override", "message", "hint"),
    [
        ("cnn", "model.widht=3", "'model.widht' is not a setting", "'model.width'"),
        ("cnn", "task.architecture=rnn", "'rnn'", "cnn, mlp, tcn, text-encoder, embedder-head"),
        ("cnn", "task.kind=ranking", "'ranking'", "classification, regression"),
        ("cnn", "model.stages=4", "model.stages 4", "less: each halves the 8 pixels"),
        ("cnn", "data.channels=2", "data.channels 2", "1 (grey) or 3"),
        ("cnn", "data.shift=8", "data.shift 8", "below the picture's 8"),
        ("cnn", "data.resize=area", "'area'", "bilinear, bicubic, nearest, box"),
        ("cnn", "data.test_fraction=0.9", "0.9", "between 0.05 and 0.5"),
        ("cnn", "tokenizer.vocab_size=500", "has no [tokenizer]", "only a text-encoder"),
        ("cnn", "expert.dtype=fp16", "'expert' is not a setting", "known here: task, data"),
        ("mlp", "data.ignore=id", "'id'", "a list of texts"),
        ("mlp", "data.heigth=3", "'data.heigth' is not a setting", "known here: source"),
        ("text-encoder", "model.heads=3", "model.heads 3", "divisor of model.hidden_size"),
        ("text-encoder", "training.warmup_steps=20", "20", "below training.steps"),
        ("tcn", "model.kernel=1", "model.kernel 1", "between 2 and 64"),
    ],
)
def test_wrong_setting_is_named_with_its_value_and_rule(
    load: Load, name: str, override: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(name, override)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_list_of_texts_is_read_from_an_override(load: Load) -> None:
    assert load("mlp", 'data.ignore=["id", "size"]').data.ignore == ("id", "size")


def test_table_task_decides_which_trainer_reads_the_recipe(write: Callable[..., Path]) -> None:
    assert isinstance(training.load(write("cnn")), TaskRecipe)
    assert isinstance(training.load(settings.shipped()["tiny"]), language.Recipe)


@pytest.mark.parametrize("name", sorted(set(settings.shipped()) - {"tiny"}))
def test_shipped_recipe_is_right_and_has_its_file_s_name(name: str) -> None:
    assert recipes.load(settings.shipped()[name]).name == name


def test_equal_recipes_have_equal_hashes_and_a_setting_changes_them(load: Load) -> None:
    assert load("cnn").sha256 == load("cnn").sha256 != load("cnn", "model.width=5").sha256
