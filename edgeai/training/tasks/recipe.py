"""The recipe of a classifier or a regression: what it is made from, the network, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeai.declared import choice, number
from edgeai.errors import RecipeError
from edgeai.training import settings
from edgeai.training.settings import BaseRecipe, TokenizerSettings, TrainingSettings

__all__ = [
    "CnnSettings",
    "DataSettings",
    "EmbedderHeadSettings",
    "ImageData",
    "MlpSettings",
    "SeriesData",
    "TableData",
    "TaskRecipe",
    "TaskSettings",
    "TcnSettings",
    "TextData",
    "TextEncoderSettings",
    "from_values",
    "load",
]

KINDS = ("classification", "regression")
ARCHITECTURES = ("cnn", "mlp", "tcn", "text-encoder", "embedder-head")
RESIZES = ("bilinear", "bicubic", "nearest", "box")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What is learned, and by what: the architecture also says what is read.

    cnn: pictures, mlp: tables, tcn: series, text-encoder and embedder-head: texts.
    """

    kind: str = choice(KINDS, "classification")
    architecture: str = choice(ARCHITECTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the examples come from, and how much is held out.

    `source` is a name of `edgeai.training.tasks.bundled`, or a file or folder; paths are relative to the recipe.
    `test_fraction` is looked at once, at the end; `val_fraction` (of all) is what the losses on the way are of.
    """

    source: str
    test_fraction: float = number(0.05, 0.5, 0.2)
    val_fraction: float = number(0.01, 0.5, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData(DataSettings):
    """A folder with one folder of pictures a class. Each becomes `height` x `width` of 1 or 3 `channels`.

    `shift` moves each training picture by up to as many pixels, `flip` mirrors half of them.
    """

    height: int = number(4, 1024)
    width: int = number(4, 1024)
    channels: int = number(1, 3, 3)
    resize: str = choice(RESIZES, "bilinear")
    invert: bool = False
    shift: int = number(0, 64, 0)
    flip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableData(DataSettings):
    """A .csv or .tsv file with a header. `target` is the column to predict; those in `ignore` are left out.

    A column of numbers is a number, unless `categories` names it; any other is a category.
    """

    target: str | None = None
    ignore: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesData(DataSettings):
    """A .csv or .tsv file with one series a row: all steps of channel 1, then all of channel 2, and the `target`."""

    target: str | None = None
    ignore: tuple[str, ...] = ()
    channels: int = number(1, 1024, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextData(DataSettings):
    """A .csv, .tsv or .jsonl file with a text and what it is in each row."""

    text: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnSettings:
    """`stages` of two 3x3 convolutions and a halving of the picture; the first has `width` channels, each next twice."""

    width: int = number(1, 4096)
    stages: int = number(1, 8)
    dropout: float = number(0.0, 0.9, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSettings:
    """`layers` hidden layers of `hidden_size`; 0 layers are a linear model."""

    hidden_size: int = number(1, 65536)
    layers: int = number(0, 64)
    dropout: float = number(0.0, 0.9, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcnSettings:
    """`blocks` of two causal convolutions, each block with twice the dilation of the one before (Bai et al. 2018)."""

    width: int = number(1, 4096)
    blocks: int = number(1, 16)
    kernel: int = number(2, 64, 3)
    dropout: float = number(0.0, 0.9, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSettings:
    """A transformer encoder from nothing; it reads the first `max_tokens` of a text."""

    hidden_size: int = number(8, 65536)
    intermediate_size: int = number(8, 2**20)
    layers: int = number(1, 128)
    heads: int = number(1, 1024)
    max_tokens: int = number(4, 8192, 128)
    dropout: float = number(0.0, 0.9, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderHeadSettings:
    """A head on the vectors of `encoder`, which stays as it is: a pulled model, or a sentence-transformers folder.

    `layers` hidden layers of `hidden_size` before the last; 0 layers are a linear model.
    """

    encoder: str = "minilm"
    hidden_size: int = number(1, 65536, 256)
    layers: int = number(0, 8, 0)
    max_tokens: int = number(4, 8192, 128)
    dropout: float = number(0.0, 0.9, 0.0)


Model = CnnSettings | MlpSettings | TcnSettings | TextEncoderSettings | EmbedderHeadSettings

READS: Mapping[str, type[DataSettings]] = {
    "cnn": ImageData,
    "mlp": TableData,
    "tcn": SeriesData,
    "text-encoder": TextData,
    "embedder-head": TextData,
}
MODELS: Mapping[str, type] = {
    "cnn": CnnSettings,
    "mlp": MlpSettings,
    "tcn": TcnSettings,
    "text-encoder": TextEncoderSettings,
    "embedder-head": EmbedderHeadSettings,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe(BaseRecipe):
    """Everything that decides what the training of a classifier or a regression computes."""

    task: TaskSettings
    data: DataSettings
    model: Model
    tokenizer: TokenizerSettings | None
    training: TrainingSettings

    @property
    def is_classification(self) -> bool:
        """Whether classes are learned, not numbers."""
        return self.task.kind == "classification"


TABLES = ("task", "data", "model", "tokenizer", "training")


def load(path: Path, overrides: Iterable[str] = ()) -> TaskRecipe:
    """Read the recipe at PATH with OVERRIDES (`model.width=16`), all checked alike.

    Raises RecipeError naming the setting, its value and what it may be.
    """
    return from_values(settings.read(path), path, overrides)


def from_values(values: dict[str, Any], path: Path, overrides: Iterable[str] = ()) -> TaskRecipe:
    """Return the recipe of VALUES, which PATH holds, with OVERRIDES; see `load`."""
    for override in overrides:
        settings.override(values, override, TABLES)
    top = settings.top_level(values, TABLES, default_name=path.stem)
    task: TaskSettings = settings.RECIPE.build(TaskSettings, values.get("task", {}), "task")
    has_tokenizer = task.architecture == "text-encoder"
    if "tokenizer" in values and not has_tokenizer:
        raise RecipeError(
            f"a {task.architecture!r} has no [tokenizer]",
            hint="take the table out: only a text-encoder trains its own",
        )
    recipe = TaskRecipe(
        **top,
        task=task,
        data=settings.RECIPE.build(READS[task.architecture], values.get("data", {}), "data"),
        model=settings.RECIPE.build(MODELS[task.architecture], values.get("model", {}), "model"),
        tokenizer=settings.RECIPE.build(TokenizerSettings, values.get("tokenizer", {}), "tokenizer")
        if has_tokenizer
        else None,
        training=settings.RECIPE.build(TrainingSettings, values.get("training", {}), "training"),
        folder=path.parent,
    )
    _check_together(recipe)
    return recipe


def _check_together(recipe: TaskRecipe) -> None:
    """Check what no single setting can show."""
    data, model = recipe.data, recipe.model
    rules: list[tuple[str, Any, bool, str]] = list(recipe.training.rules())
    if isinstance(data, ImageData) and isinstance(model, CnnSettings):
        smallest = min(data.height, data.width)
        rules += [
            ("data.channels", data.channels, data.channels in (1, 3), "1 (grey) or 3 (colours)"),
            ("data.shift", data.shift, data.shift < smallest, f"below the picture's {smallest} pixels"),
            ("model.stages", model.stages, smallest >> model.stages > 0, f"less: each halves the {smallest} pixels"),
        ]
    if isinstance(model, TextEncoderSettings):
        divides = model.hidden_size % model.heads == 0
        rules.append(("model.heads", model.heads, divides, f"a divisor of model.hidden_size {model.hidden_size}"))
    settings.RECIPE.check_rules(rules)
