"""How the vectors of tokens become one: what sentence-transformers wrote beside the weights of an embedding model.

Sources: `modules.json` and the configuration of `Pooling` in sentence-transformers (sentence_transformer/modules/pooling.py);
`enum llama_pooling_type` in llama.h.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint, read_json, read_text
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Warnings

__all__ = ["POOLING_KEYS", "pooling"]

POOLING_KEYS: Mapping[str, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
"""The way of pooling → the number of `pooling_type` in the file."""
MODES: Mapping[str, str] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""sentence-transformers' name → the name here, for those that the runtime knows."""
FLAGS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of configurations before version 6 of sentence-transformers → mode; several at once are joined to a longer vector."""
CARRIED = {"Transformer", "Pooling", "Normalize", "Dropout"}
"""Modules that change no vector, or that whoever asks for a vector applies (the norm of one)."""


def pooling(checkpoint: Checkpoint) -> tuple[str, Warnings]:
    """Return "mean", "cls" or "last" for the embedding model CHECKPOINT, with a warning where nothing says so.

    Raises UnsupportedModel for modules and ways of pooling that the runtime does not compute.
    """
    modules = read_modules(checkpoint.path / "modules.json")
    if modules is None:
        message = (
            "no modules.json says how vectors of tokens become one: their mean is taken, as sentence-transformers does"
        )
        return "mean", (("pooling-guessed", message),)
    if other := [kind for kind, _ in modules if kind not in CARRIED]:
        raise UnsupportedModel(
            f"modules.json has a module {other[0]!r}, which the runtime does not compute",
            hint=f"known modules: {', '.join(sorted(CARRIED))}; the vectors without it would be others",
        )
    paths = [path for kind, path in modules if kind == "Pooling"]
    if len(paths) != 1:
        raise UnsupportedModel(f"modules.json has {len(paths)} modules for pooling, and one is needed")
    if Path(paths[0]).is_absolute() or ".." in Path(paths[0]).parts:
        raise BrokenCheckpoint(f"modules.json has the path {paths[0]!r}, which leaves the folder")
    settings = read_json(checkpoint.path / paths[0] / "config.json")
    if settings is None:
        raise BrokenCheckpoint(f"{str(checkpoint.path / paths[0])!r} has no config.json", hint="copy that folder too")
    return mode_of(settings)


def read_modules(path: Path) -> list[tuple[str, str]] | None:
    """Return (class, folder) of each module in the file PATH, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        modules = json.loads(read_text(path))
        return [(module["type"].rpartition(".")[2], str(module["path"])) for module in modules]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise BrokenCheckpoint(
            f"{str(path)!r} is not a list of modules: {type(error).__name__}: {error}", hint="copy or download it again"
        ) from error


def mode_of(settings: Mapping[str, Any]) -> tuple[str, Warnings]:
    """Return the way of pooling that the configuration of a `Pooling` module names."""
    named = settings.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in MODES:
        raise UnsupportedModel(
            f"the pooling {named!r} cannot be converted", hint=f"known: {', '.join(MODES)}, one alone"
        )
    if settings.get("include_prompt", True) is False:
        message = "the source leaves the tokens of a prompt out of the pooling, and the runtime takes all tokens"
        return MODES[modes[0]], (("prompt-pooled", message),)
    return MODES[modes[0]], ()
