"""What every recipe has: TOML → frozen values, each with its type and range checked before anything else happens."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeai.catalogue import builtin
from edgeai.declared import File, choice, number
from edgeai.errors import RecipeError

__all__ = [
    "RECIPE",
    "BaseRecipe",
    "TokenizerSettings",
    "TrainingSettings",
    "find",
    "override",
    "read",
    "shipped",
    "top_level",
    "unknown_choice",
]

RECIPE = File("recipe", RecipeError)
PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
SCHEDULES = ("cosine", "wsd")
SPECIAL_TOKENS = 3
BYTE_ALPHABET = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """The byte-level BPE: its split, by llama.cpp's name, and its number of tokens."""

    pre: str = choice(PRE_TOKENIZERS, "gpt-2")
    vocab_size: int = number(BYTE_ALPHABET + SPECIAL_TOKENS, 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The optimiser, its schedule and how often to look. `steps` is also the schedule's horizon."""

    steps: int = number(1, 10**9)
    batch_size: int = number(1, 2**20)
    micro_batch_size: int | None = number(1, 2**20, None)
    lr: float = number(1e-8, 10.0)
    min_lr: float = number(0.0, 10.0, 0.0)
    schedule: str = choice(SCHEDULES, "cosine")
    warmup_steps: int = number(0, 10**9, 0)
    decay_steps: int = number(0, 10**9, 0)
    weight_decay: float = number(0.0, 10.0, 0.1)
    beta1: float = number(0.0, 0.9999, 0.9)
    beta2: float = number(0.0, 0.999999, 0.95)
    grad_clip: float = number(1e-6, 1e6, 1.0)
    log_every: int = number(1, 10**9, 10)
    eval_every: int = number(1, 10**9, 100)
    checkpoint_every: int = number(1, 10**9, 100)

    def rules(self) -> tuple[tuple[str, Any, bool, str], ...]:
        """Return what no single setting can show: (setting, value, whether it is right, what it must be)."""
        micro = self.micro_batch_size or self.batch_size
        after_warmup = self.steps - self.warmup_steps
        return (
            (
                "training.micro_batch_size",
                micro,
                self.batch_size % micro == 0,
                f"a divisor of batch_size {self.batch_size}",
            ),
            ("training.min_lr", self.min_lr, self.min_lr <= self.lr, f"at most training.lr {self.lr}"),
            ("training.warmup_steps", self.warmup_steps, after_warmup > 0, f"below training.steps {self.steps}"),
            (
                "training.decay_steps",
                self.decay_steps,
                self.decay_steps <= after_warmup,
                f"at most steps - warmup_steps ({after_warmup})",
            ),
            (
                "training.decay_steps",
                self.decay_steps,
                self.decay_steps == 0 or self.schedule == "wsd",
                "left out: only wsd has it",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """Everything that decides what a training run computes. `folder` (of the recipe file) is only where paths start."""

    name: str
    seed: int = number(0, 2**32 - 1, 1)
    folder: Path = Path()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, without `folder`."""
        values = asdict(self)
        del values["folder"]
        return values

    @property
    def sha256(self) -> str:
        """Hash of every setting, defaults included; equal recipes are equal however their files are written."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """Return the recipes that come with edgeai, by name; they lie beside its catalogue."""
    return {path.stem: path for path in sorted((builtin().parent / "recipes").glob("*.toml"))}


def find(ref: str) -> Path:
    """Return the recipe file that REF stands for: a file, else a name of one that comes with edgeai.

    With a separator or the ending .toml it is a path. Raises RecipeError for a word that is neither, with what is
    close.
    """
    path = Path(ref)
    is_path = any(mark in ref for mark in {"/", os.sep, os.altsep or "/"}) or path.suffix == ".toml"
    if is_path or os.path.isfile(ref):  # noqa: PTH113 - pathlib raises for a name that is too long
        return path
    recipes = shipped()
    if ref in recipes:
        return recipes[ref]
    close = difflib.get_close_matches(ref.lower(), recipes, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"name a recipe file, or one of edgeai's: {', '.join(recipes)}"
    raise RecipeError(f"there is no recipe {ref!r}", hint=hint)


def read(path: Path) -> dict[str, Any]:
    """Return the tables of the recipe at PATH as TOML has them, nothing checked. Raises RecipeError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the recipe {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}",
            hint="name a recipe file, or one that comes with edgeai: edgeai train tiny",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"the recipe {str(path)!r} is not TOML: {error}",
            hint=f"compare it with {str(builtin().parent / 'recipes' / 'tiny.toml')!r}",
        ) from error


PLAIN_NAME = re.compile(r"\w(?:[\w. -]{0,98}[\w-])?")


def top_level(values: Mapping[str, Any], tables: Collection[str], default_name: str) -> dict[str, Any]:
    """Return the name and the seed of a recipe whose other keys are TABLES; raises RecipeError for any further key."""
    known = ("name", "seed", *tables)
    for key in values:
        if key not in known:
            raise RECIPE.unknown(key, known)
    top: dict[str, Any] = {"name": default_name}
    for spec in fields(BaseRecipe):
        if spec.name in ("name", "seed") and spec.name in values:
            top[spec.name] = RECIPE.value(spec, int if spec.name == "seed" else str, values[spec.name], spec.name)
    if not PLAIN_NAME.fullmatch(top["name"]):
        hint = "a name is made of letters, digits, '.', '_', '-' and spaces, and names no folder: it becomes out/NAME"
        raise RecipeError(f"name {top['name']!r} is not possible", hint=hint)
    return top


def override(values: dict[str, Any], text: str, tables: Collection[str]) -> None:
    """Put `table.key=value` into VALUES; the value is TOML, or plain text where it is not."""
    name, equals, raw = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not table or (dot and not key):
        raise RecipeError(f"--set {text!r} is not key=value", hint="for example: --set training.lr=0.001")
    value = _toml_value(raw.strip())
    if not dot:
        if table in tables:
            raise RecipeError(f"--set {text!r} names a table", hint=f"name one of its settings: --set {table}.…=…")
        values[table] = value
        return
    if table not in tables:
        raise RECIPE.unknown(table, tuple(tables))
    if isinstance(values.setdefault(table, {}), dict):
        values[table][key] = value


def _toml_value(raw: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    return parsed["value"] if set(parsed) == {"value"} else raw


def unknown_choice(word: str, known: Iterable[str], message: str) -> RecipeError:
    """Return the error MESSAGE for a WORD that is none of KNOWN, with what is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    near = f"did you mean {close[0]!r}? " if close else ""
    return RecipeError(message, hint=f"{near}known here: {', '.join(names[:20])}")
