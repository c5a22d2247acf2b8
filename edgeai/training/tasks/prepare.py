"""A recipe's examples → what the graph takes, for each part; whatever is learned for that is learned from the training part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeai.training.tasks import texts
from edgeai.training.tasks.examples import Examples, Split, split
from edgeai.training.tasks.networks import Shape
from edgeai.training.tasks.numeric_networks import CnnShape, MlpShape, TcnShape
from edgeai.training.tasks.recipe import (
    CnnSettings,
    EmbedderHeadSettings,
    ImageData,
    MlpSettings,
    SeriesData,
    TaskRecipe,
    TcnSettings,
    TextData,
    TextEncoderSettings,
)
from edgeai.training.tasks.text_networks import EmbedderHeadShape, TextEncoderShape
from edgeai.types import Notice

__all__ = ["Part", "Prepared", "prepare"]

Array = npt.NDArray[Any]
SCALE = 1 / 255


@dataclass(frozen=True, slots=True)
class Part:
    """Rows as the graph takes them, one array an input, and their answers: int64 classes, or float32 of spread 1."""

    inputs: tuple[Array, ...]
    answers: Array

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.answers)

    def rows(self, chosen: Any) -> Part:
        """Return the CHOSEN rows: a slice or indices."""
        return Part(tuple(values[chosen] for values in self.inputs), self.answers[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a run trains on and is judged by. `schema` says what the graph takes and what its outputs mean."""

    schema: dict[str, Any]
    shape: Shape
    graph: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    source: str
    sha256: str
    tokenizer: Tokenizer | None = None
    encoder: texts.Encoder | None = None
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """The inputs of all rows, as the graph takes them."""

    schema: dict[str, Any]
    graph: tuple[str, ...]
    arrays: tuple[Array, ...]
    tokenizer: Tokenizer | None = None
    encoder: texts.Encoder | None = None
    notices: tuple[Notice, ...] = ()


def prepare(recipe: TaskRecipe, examples: Examples) -> Prepared:
    """Deal EXAMPLES out and bring them into the form that the graph takes."""
    data = recipe.data
    parts = split(examples, test_fraction=data.test_fraction, val_fraction=data.val_fraction, seed=recipe.seed)
    made = _inputs(recipe, examples, parts)
    answers, meaning, outputs = _answers(examples, parts)
    schema = {
        "version": 1,
        "name": recipe.name,
        "task": recipe.task.kind,
        "inputs": [made.schema],
        **meaning,
    }

    def part(rows: npt.NDArray[np.int64]) -> Part:
        return Part(tuple(values[rows] for values in made.arrays), answers[rows])

    return Prepared(
        schema=schema,
        shape=_shape(recipe, made, outputs),
        graph=made.graph,
        train=part(parts.train),
        val=part(parts.val),
        test=part(parts.test),
        source=examples.source,
        sha256=hashlib.sha256((examples.sha256 + (made.encoder.sha256 if made.encoder else "")).encode()).hexdigest(),
        tokenizer=made.tokenizer,
        encoder=made.encoder,
        notices=examples.notices + made.notices,
    )


def _answers(examples: Examples, parts: Split) -> tuple[Array, dict[str, Any], int]:
    """Return the answers as they are trained on, what the schema says of the output, and how many outputs there are."""
    if examples.classes is not None:
        meaning = {"output": {"name": "logits", "kind": "logits"}, "labels": list(examples.labels)}
        return examples.classes, meaning, len(examples.labels)
    assert examples.values is not None  # noqa: S101 - every source fills one
    mean, std = _mean_and_std(examples.values[parts.train], axis=0)
    targets = [
        {"name": name, "mean": float(mean[index]), "std": float(std[index])}
        for index, name in enumerate(examples.targets)
    ]
    scaled = ((examples.values - mean) / std).astype(np.float32)
    return scaled, {"output": {"name": "values", "kind": "values"}, "targets": targets}, len(targets)


def _inputs(recipe: TaskRecipe, examples: Examples, parts: Split) -> _Inputs:
    if isinstance(recipe.data, ImageData):
        assert examples.images is not None  # noqa: S101 - `read` has filled it
        return _image(recipe.data, examples.images, parts)
    if isinstance(recipe.data, TextData):
        return _text(recipe, examples.texts, parts)
    if isinstance(recipe.data, SeriesData):
        return _series(recipe.data, examples, parts)
    return _table(examples, parts)


def _image(data: ImageData, images: npt.NDArray[np.uint8], parts: Split) -> _Inputs:
    scaled = images * SCALE
    if data.invert:
        scaled = 1 - scaled
    mean, std = _mean_and_std(scaled[parts.train], axis=(0, 2, 3))
    schema = {
        "kind": "image",
        "name": "image",
        "channels": data.channels,
        "height": data.height,
        "width": data.width,
        "resize": data.resize,
        "scale": SCALE,
        "invert": data.invert,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    ready = (scaled - mean[:, None, None]) / std[:, None, None]
    return _Inputs(schema=schema, graph=("image",), arrays=(ready.astype(np.float32),))


def _table(examples: Examples, parts: Split) -> _Inputs:
    columns: list[dict[str, Any]] = []
    features: list[Array] = []
    for column in examples.columns:
        if column.numbers is not None:
            mean, std = _mean_and_std(column.numbers[parts.train], axis=0)
            columns.append({"name": column.name, "kind": "number", "mean": float(mean), "std": float(std)})
            features.append(((column.numbers - mean) / std)[:, None])
        else:
            # A category that only held-out rows have is a row of zeros, as it will be for what is never seen here.
            values = sorted({column.texts[row] for row in parts.train})
            columns.append({"name": column.name, "kind": "category", "values": values})
            features.append(np.array([[text == value for value in values] for text in column.texts], dtype=np.float64))
    schema = {"kind": "table", "name": "features", "columns": columns}
    return _Inputs(schema=schema, graph=("features",), arrays=(np.concatenate(features, axis=1).astype(np.float32),))


def _series(data: SeriesData, examples: Examples, parts: Split) -> _Inputs:
    """Scale each channel as a whole: a step that hardly ever changes would else be blown up when it does."""
    numbers = np.stack([column.numbers for column in examples.columns if column.numbers is not None], axis=1)
    steps = numbers.reshape(len(numbers), data.channels, -1)  # (rows, channels, length)
    length = steps.shape[2]
    mean, std = _mean_and_std(steps[parts.train], axis=(0, 2))
    columns = [
        {
            "name": column.name,
            "kind": "number",
            "mean": float(mean[index // length]),
            "std": float(std[index // length]),
        }
        for index, column in enumerate(examples.columns)
    ]
    schema = {"kind": "series", "name": "series", "channels": data.channels, "length": length, "columns": columns}
    ready = (steps - mean[:, None]) / std[:, None]
    return _Inputs(schema=schema, graph=("series",), arrays=(ready.astype(np.float32),))


def _text(recipe: TaskRecipe, words: Sequence[str], parts: Split) -> _Inputs:
    model, encoder = recipe.model, None
    if isinstance(model, EmbedderHeadSettings):
        encoder = texts.read_encoder(model.encoder, recipe.folder, model.max_tokens)
        tokenizer = encoder.tokenizer
    else:
        assert recipe.tokenizer is not None  # noqa: S101 - a text-encoder has one
        tokenizer = texts.own_tokenizer([words[row] for row in parts.train], recipe.tokenizer)
    assert isinstance(model, EmbedderHeadSettings | TextEncoderSettings)  # noqa: S101 - `recipe.READS`
    graph = ("input_ids", "attention_mask")
    schema = {"kind": "text", "name": "text", "max_tokens": model.max_tokens, "graph": list(graph)}
    return _Inputs(
        schema=schema,
        graph=graph,
        arrays=texts.encode(tokenizer, words, model.max_tokens),
        tokenizer=tokenizer,
        encoder=encoder,
        notices=encoder.notices if encoder else (),
    )


def _shape(recipe: TaskRecipe, made: _Inputs, outputs: int) -> Shape:
    model, given, dropout = recipe.model, made.arrays[0].shape[1:], recipe.model.dropout
    if isinstance(model, CnnSettings):
        channels, height, width = given
        return CnnShape(
            channels=channels,
            height=height,
            width=width,
            features=model.width,
            stages=model.stages,
            outputs=outputs,
            dropout=dropout,
        )
    if isinstance(model, MlpSettings):
        hidden = {"hidden_size": model.hidden_size, "layers": model.layers}
        return MlpShape(inputs=given[0], **hidden, outputs=outputs, dropout=dropout)
    if isinstance(model, TcnSettings):
        sizes = {"width": model.width, "blocks": model.blocks, "kernel": model.kernel}
        return TcnShape(channels=given[0], **sizes, outputs=outputs, dropout=dropout)
    if isinstance(model, TextEncoderSettings):
        assert made.tokenizer is not None  # noqa: S101 - `_text` has made it
        return TextEncoderShape(
            vocab_size=made.tokenizer.get_vocab_size(),
            max_tokens=model.max_tokens,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            layers=model.layers,
            heads=model.heads,
            outputs=outputs,
            dropout=dropout,
        )
    assert made.encoder is not None  # noqa: S101 - `_text` has read it
    return made.encoder.shape, EmbedderHeadShape(
        pooling=made.encoder.pooling,
        normalize=made.encoder.normalize,
        hidden_size=model.hidden_size,
        layers=model.layers,
        outputs=outputs,
        dropout=dropout,
    )


def _mean_and_std(values: Array, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and spread over AXIS; the spread of what never changes is 1, so that it becomes 0."""
    mean, std = values.mean(axis=axis, dtype=np.float64), values.std(axis=axis, dtype=np.float64)
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1e-300), std, 1.0)
