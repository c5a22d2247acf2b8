"""The recipe of a language model: where the text is from, the tokenizer, a Llama's shape, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeai.declared import choice, number
from edgeai.training import settings
from edgeai.training.settings import (
    BaseRecipe,
    TokenizerSettings,
    TrainingSettings,
    find,
    shipped,
)

__all__ = [
    "DataSettings",
    "ExportSettings",
    "ModelSettings",
    "Recipe",
    "TokenizerSettings",
    "TrainingSettings",
    "find",
    "from_values",
    "load",
    "shipped",
]

DTYPES = ("fp16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the text comes from, and how much of it is held out.

    `source` is `pydoc_data.topics` (Python's own documentation), a folder of .txt and .md files (one document
    each), or a .jsonl file with a `text` in each line; paths are relative to the recipe.
    """

    source: str = "pydoc_data.topics"
    val_fraction: float = number(0.01, 0.5, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The shape of a Llama. Widths are multiples of 32: no GGUF block type can hold anything else."""

    hidden_size: int = number(32, 65536, multiple_of=32)
    intermediate_size: int = number(32, 2**20, multiple_of=32)
    layers: int = number(1, 512)
    heads: int = number(1, 1024)
    kv_heads: int = number(1, 1024)
    context: int = number(8, 2**20)
    rope_theta: float = number(1.0, 1e9, 10000.0)
    norm_eps: float = number(1e-8, 1e-2, 1e-5)
    init_std: float = number(1e-6, 1.0, 0.02)
    tie_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How the weights are stored; never bf16, which moves most block scales of a later quantization."""

    dtype: str = choice(DTYPES, "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(BaseRecipe):
    """Everything that decides what a language model's training computes."""

    data: DataSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    training: TrainingSettings
    export: ExportSettings


TABLES: Mapping[str, type] = {
    "data": DataSettings,
    "tokenizer": TokenizerSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "export": ExportSettings,
}


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read the recipe at PATH with OVERRIDES (`model.hidden_size=128`), all checked alike.

    Raises RecipeError naming the setting, its value and what it may be.
    """
    return from_values(settings.read(path), path, overrides)


def from_values(values: dict[str, Any], path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe of VALUES, which PATH holds, with OVERRIDES; see `load`."""
    for override in overrides:
        settings.override(values, override, TABLES)
    top = settings.top_level(values, TABLES, default_name=path.stem)
    tables = {name: settings.RECIPE.build(cls, values.get(name, {}), name) for name, cls in TABLES.items()}
    recipe = Recipe(**top, **tables, folder=path.parent)
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Check what no single setting can show."""
    m = recipe.model
    limits = (
        ("model.heads", m.heads, m.hidden_size % m.heads == 0, f"a divisor of model.hidden_size {m.hidden_size}"),
        ("model.heads", m.heads, m.head_dim % 2 == 0, f"such that hidden_size / heads is even (it is {m.head_dim})"),
        ("model.kv_heads", m.kv_heads, m.heads % m.kv_heads == 0, f"a divisor of model.heads {m.heads}"),
        *recipe.training.rules(),
    )
    settings.RECIPE.check_rules(limits)
