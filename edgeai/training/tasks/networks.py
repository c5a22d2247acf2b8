"""A network from its hyperparameters, for training; and again from a folder, with its weights.

Each takes the graph inputs of its schema in order, and returns the logits of the classes or the values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeai.errors import InvalidModel, RecipeError
from edgeai.training import settings
from edgeai.training.tasks.numeric_networks import Cnn, CnnShape, Mlp, MlpShape, Tcn, TcnShape
from edgeai.training.tasks.text_networks import (
    BertShape,
    EmbedderHead,
    EmbedderHeadShape,
    TextEncoder,
    TextEncoderShape,
)

__all__ = ["MODEL_TYPE", "Shape", "build", "hyperparameters", "load_module", "read_weights"]

MODEL_TYPE = "edgeai-classifier"

Shape = CnnShape | MlpShape | TcnShape | TextEncoderShape | tuple[BertShape, EmbedderHeadShape]

PLAIN: Mapping[str, tuple[Any, Any]] = {
    "cnn": (CnnShape, Cnn),
    "mlp": (MlpShape, Mlp),
    "tcn": (TcnShape, Tcn),
    "text-encoder": (TextEncoderShape, TextEncoder),
}


def build(architecture: str, shape: Shape) -> nn.Module:
    """Return a new network of ARCHITECTURE, its weights drawn from torch's generator."""
    if isinstance(shape, tuple):
        return EmbedderHead(*shape)
    made: nn.Module = PLAIN[architecture][1](shape)
    return made


def hyperparameters(shape: Shape) -> dict[str, Any]:
    """Return what config.json says under `network`; `load_module` builds the network from it."""
    if isinstance(shape, tuple):
        return {"encoder": asdict(shape[0]), **asdict(shape[1])}
    return asdict(shape)


def load_module(folder: Path) -> nn.Module:
    """Return the network in FOLDER with its weights, in eval mode, on the CPU, in float32.

    Its forward takes the graph inputs of the schema in order. Raises InvalidModel for a folder that is damaged, or
    whose weights are not those of the network that its config.json describes.
    """
    path = folder / "config.json"
    config = _read_config(path)
    try:
        shape = _shape(config.get("architecture"), config.get("network"))
        with torch.device("meta"):  # nothing is allocated for sizes that the weights do not have
            expected = build(str(config["architecture"]), shape).state_dict()
    except (RecipeError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, f"describes no network: {error}") from error
    weights = read_weights(folder / "model.safetensors")
    _compare({name: tuple(value.shape) for name, value in expected.items()}, weights, folder / "model.safetensors")
    module = build(str(config["architecture"]), shape)
    module.load_state_dict(weights, strict=True)
    return module.float().eval().requires_grad_(False)


def read_weights(path: Path, *, floats_only: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors of the safetensors file at PATH; raises InvalidModel for a damaged one, and for NaN."""
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    for name, value in weights.items():
        if (floats_only and not value.is_floating_point()) or not bool(torch.isfinite(value).all()):
            raise _damaged(path, f"has values in {name!r} that no weight can have")
    return weights


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise _damaged(path, f"is not of a model that `edgeai train` made ({MODEL_TYPE!r})")
    return config


def _shape(architecture: Any, network: Any) -> Shape:
    if not isinstance(network, dict):
        raise RecipeError("it has no network")
    if architecture == "embedder-head":
        rest = {key: value for key, value in network.items() if key != "encoder"}
        bert = settings.RECIPE.build(BertShape, network.get("encoder"), "network.encoder")
        return bert, settings.RECIPE.build(EmbedderHeadShape, rest, "network")
    if architecture not in PLAIN:
        raise RecipeError(f"the architecture {architecture!r} is not known")
    shape: Shape = settings.RECIPE.build(PLAIN[architecture][0], network, "network")
    return shape


def _compare(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name in sorted(expected.keys() | weights.keys()):
        wanted = expected.get(name, ())
        found = tuple(weights[name].shape) if name in weights else ()
        if wanted != found:
            raise _damaged(path, f"has {found or 'nothing'} for {name!r}, and config.json {wanted or 'nothing'}")


def _damaged(path: Path, what: str) -> InvalidModel:
    return InvalidModel(f"{str(path)!r} {what}", hint="train it again, or copy the folder whole")
