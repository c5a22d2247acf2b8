"""A recipe's `data.source` → its examples: a bundled set, or files of the user."""

from __future__ import annotations

from dataclasses import replace

from edgeai.errors import RecipeError
from edgeai.training.tasks import bundled, tables
from edgeai.training.tasks.examples import Examples
from edgeai.training.tasks.recipe import DataSettings, ImageData, SeriesData, TableData, TaskRecipe, TextData

__all__ = ["read"]

TABLE_FILES = (".csv", ".tsv")
TEXT_FILES = (".csv", ".tsv", ".jsonl")


def read(recipe: TaskRecipe) -> Examples:
    """Return the examples that RECIPE names; raises RecipeError for bad data, and says where it is bad."""
    examples = _read(recipe)
    if recipe.data.source == bundled.TOPICS or recipe.data.source.startswith(bundled.PREFIX):
        _check_unused(recipe.data)
    return examples


def _read(recipe: TaskRecipe) -> Examples:
    data, classes = recipe.data, recipe.is_classification
    if isinstance(data, ImageData):
        return _classified(recipe, _images(recipe, data))
    if isinstance(data, TextData):
        if data.source == bundled.TOPICS:
            return _classified(recipe, bundled.topics())
        table = tables.read_table(data.source, recipe.folder, TEXT_FILES)
        found = tables.answers(table, data.target, classes=classes)
        return replace(found, texts=tables.texts(table, data.text))
    assert isinstance(data, TableData | SeriesData)  # noqa: S101 - `recipe.READS` has no other
    if data.source.startswith(bundled.PREFIX):
        if isinstance(data, TableData):
            return bundled.table(data.source, classes=classes)
        return _classified(recipe, bundled.series(data.source))
    table = tables.read_table(data.source, recipe.folder, TABLE_FILES)
    found = tables.answers(table, data.target, classes=classes)
    if isinstance(data, TableData):
        columns = tables.table(table, target=data.target, ignore=data.ignore, categories=data.categories)
    else:
        columns = tables.series(table, target=data.target, ignore=data.ignore, channels=data.channels)
    return replace(found, columns=columns)


def _images(recipe: TaskRecipe, data: ImageData) -> Examples:
    if data.source.startswith(bundled.PREFIX):
        return bundled.images(data)
    from edgeai.training.tasks.images import read_folder

    return read_folder(data, recipe.folder)


def _classified(recipe: TaskRecipe, examples: Examples) -> Examples:
    """Return EXAMPLES of a source that has classes alone; raises RecipeError where numbers are wanted."""
    if not recipe.is_classification:
        raise RecipeError(
            f"data.source {recipe.data.source!r} has classes as answers", hint='task.kind must be "classification"'
        )
    return examples


def _check_unused(data: DataSettings) -> None:
    """Raise RecipeError for a setting that only a file of the user's has a use for."""
    for name in ("text", "target", "ignore", "categories"):
        value = getattr(data, name, None)
        if value:
            raise RecipeError(
                f"data.{name} {value!r} is not possible", hint=f"leave it out: {data.source!r} knows its own columns"
            )
