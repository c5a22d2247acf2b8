"""A trained classifier → the folder that it is kept in: network, weights, examples to check it by, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeai.errors import RecipeError
from edgeai.training import export as files
from edgeai.training.tasks import networks, texts
from edgeai.training.tasks.prepare import Part, Prepared
from edgeai.training.tasks.recipe import TaskRecipe

__all__ = ["MOST_BYTES", "file_names", "load_encoder", "write_folder"]

CALIBRATION_ROWS = 512
TEST_ROWS = 2000
MOST_BYTES = 2**28
"""Of large pictures fewer rows are kept, so that each part of data.safetensors stays below this."""


def file_names(ready: Prepared) -> tuple[str, ...]:
    """Return the files of the folder in the order in which they get their names; see `workspace.publish`."""
    tokenizer = ("tokenizer.json",) if ready.tokenizer is not None else ()
    return ("model.safetensors", "data.safetensors", *tokenizer, "edgeai.json", "config.json")


def write_folder(folder: Path, module: Any, recipe: TaskRecipe, ready: Prepared, facts: Mapping[str, Any]) -> None:
    """Write all files of the model into FOLDER, which is empty. Equal arguments give equal bytes."""
    weights = {
        name: value.detach().to("cpu", torch.float32).contiguous() for name, value in module.state_dict().items()
    }
    files.save_tensors(weights, folder / "model.safetensors")
    rows = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in _examples(ready).items()}
    files.save_tensors(rows, folder / "data.safetensors")
    if ready.tokenizer is not None:
        (folder / "tokenizer.json").write_text(texts.dump(ready.tokenizer), encoding="utf-8")
    files.write_json(folder / "edgeai.json", facts)
    config = {
        "model_type": networks.MODEL_TYPE,
        "architecture": recipe.task.architecture,
        "network": networks.hyperparameters(ready.shape),
        "schema": ready.schema,
    }
    files.write_json(folder / "config.json", config)
    for name in ("model.safetensors", "data.safetensors"):  # safetensors makes its files readable by the owner alone
        (folder / name).chmod((folder / "config.json").stat().st_mode)


def _examples(ready: Prepared) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of data.safetensors. Every part is in random order, so its first rows are a fair sample.

    The answers of a regression are in the targets' own units, (rows, targets) float32.
    """
    calibration, test = _first(ready.train, CALIBRATION_ROWS), _first(ready.test, TEST_ROWS)
    answers = test.answers
    if "targets" in ready.schema:
        spread, mean = ([target[key] for target in ready.schema["targets"]] for key in ("std", "mean"))
        answers = (answers.astype(np.float64) * spread + mean).astype(np.float32)
    tensors = {"test.labels": answers}
    for part, values in (("calibration", calibration), ("test", test)):
        for name, array in zip(ready.graph, values.inputs, strict=True):
            tensors[part if len(ready.graph) == 1 else f"{part}.{name}"] = array
    return tensors


def _first(part: Part, count: int) -> Part:
    """Return the first COUNT rows of PART, fewer where they are large; texts without padding that no row needs."""
    row_bytes = sum(values[0].nbytes for values in part.inputs)
    first = part.rows(slice(0, max(min(count, MOST_BYTES // max(row_bytes, 1)), 1)))
    if len(first.inputs) == 1:
        return first
    longest = max(int(first.inputs[1].sum(axis=1).max()), 1)
    return Part(tuple(values[:, :longest] for values in first.inputs), first.answers)


def load_encoder(module: Any, encoder: texts.Encoder) -> None:
    """Put the weights of ENCODER into MODULE, an EmbedderHead; raises RecipeError where they are of something else."""
    loaded = networks.read_weights(encoder.weights, floats_only=False)
    weights = {name.removeprefix("bert."): value for name, value in loaded.items()}
    wanted = module.encoder.state_dict()
    # The pooler and the heads of pre-training make no vector of a sentence; the positions are a list of 0, 1, 2, …
    others = [
        name
        for name in weights
        if name not in wanted and not name.startswith(("pooler.", "cls.", "embeddings.position_ids"))
    ]
    missing = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if others or missing:
        raise RecipeError(
            f"{str(encoder.weights)!r} is not of the encoder that its config.json describes: {(missing + others)[0]!r}",
            hint="copy or download the encoder again",
        )
    module.encoder.load_state_dict({name: weights[name].float() for name in wanted})
    module.encoder.requires_grad_(False)
