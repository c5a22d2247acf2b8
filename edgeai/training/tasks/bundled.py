"""Examples that come with scikit-learn and with Python: no network, no file of the user."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeai.errors import RecipeError
from edgeai.training.settings import unknown_choice
from edgeai.training.tasks.examples import Column, Examples
from edgeai.training.tasks.recipe import ImageData
from edgeai.types import Notice

__all__ = ["PREFIX", "TOPICS", "images", "series", "table", "topics"]

PREFIX = "sklearn:"
TABLES = ("breast_cancer", "diabetes", "iris", "wine")
DIGIT_LEVELS = 16
"""The pixels of `load_digits` are 0…16: how many of the 4x4 pixels of the scan were set."""

TOPICS = "pydoc_data.topics"
SHORTEST_PARAGRAPH = 60
"""Characters: what is shorter is a heading or a line of grammar that any part might have."""

PARTS: Mapping[str, str] = {
    "data model": "attribute-access bltin-code-objects bltin-ellipsis-object bltin-null-object bltin-type-objects "
    "callable-types context-managers customization numeric-types objects sequence-types specialattrs specialnames types",
    "expressions": "atom-identifiers atom-literals attribute-references await binary bitwise booleans calls comparisons "
    "conversions dict exprlists in lambda lists operator-summary power shifting slicings subscriptions unary",
    "statements": "assert assignment async augassign break class compound continue del else for function global if import "
    "nonlocal pass raise return try while with yield",
    "names and literals": "dynamic-features exceptions execmodel floating id-classes identifiers imaginary integers naming "
    "numbers strings",
    "built-in types": "formatstrings string-methods truth typesfunctions typesmapping typesmethods typesmodules typesseq "
    "typesseq-mutable",
    "debugger": "debugger",
}
"""The part of Python's documentation that each topic of `help()` is a piece of (Doc/tools/extensions/pyspecific.py
lists the topics; the parts are chapters of the Language and the Library Reference, small ones taken together)."""


def _load(source: str, known: tuple[str, ...]) -> Any:
    name = source.removeprefix(PREFIX)
    if name not in known:
        names = [f"{PREFIX}{item}" for item in known]
        raise unknown_choice(source, names, f"data.source {source!r} is none that this architecture can read")
    datasets = importlib.import_module("sklearn.datasets")
    # In the units they were measured in: a user has an age of 59, not one of 0.038.
    return datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()


def images(settings: ImageData) -> Examples:
    """Return the digits as pictures of 8x8 with pixels of 0…255; raises RecipeError where other ones are wanted."""
    source = settings.source
    data = _load(source, ("digits",))
    for name, wanted, there in (
        ("height", settings.height, 8),
        ("width", settings.width, 8),
        ("channels", settings.channels, 1),
    ):
        if wanted != there:
            raise RecipeError(
                f"data.{name} {wanted!r} is not possible", hint=f"the pictures of {source!r} have {there}"
            )
    pixels = np.rint(data.images * (255 / DIGIT_LEVELS)).astype(np.uint8)
    return Examples(source=source, images=pixels[:, None], **_classes(data))


def series(source: str) -> Examples:
    """Return the digits as 64 steps, row by row from the top."""
    data = _load(source, ("digits",))
    steps = data.images.reshape(len(data.images), -1)
    columns = tuple(Column(f"pixel {index}", steps[:, index].astype(np.float64)) for index in range(steps.shape[1]))
    return Examples(source=source, columns=columns, **_classes(data))


def table(source: str, *, classes: bool) -> Examples:
    """Return a table of scikit-learn's, with CLASSES or with a value for each row."""
    data = _load(source, TABLES)
    is_regression = source == f"{PREFIX}diabetes"
    if classes == is_regression:
        raise RecipeError(
            f"data.source {source!r} has {'numbers' if is_regression else 'classes'} as answers",
            hint=f'task.kind must be "{"regression" if is_regression else "classification"}"',
        )
    columns = tuple(
        Column(str(name), data.data[:, index].astype(np.float64)) for index, name in enumerate(data.feature_names)
    )
    if is_regression:
        values = data.target[:, None].astype(np.float64)
        return Examples(source=source, columns=columns, values=values, targets=("progression",))
    return Examples(source=source, columns=columns, **_classes(data))


def _classes(data: Any) -> dict[str, Any]:
    return {"classes": data.target.astype(np.int64), "labels": tuple(str(name) for name in data.target_names)}


def topics() -> Examples:
    """Return the paragraphs of Python's documentation, and which part of it each is from; none is there twice."""
    texts: Mapping[str, str] = importlib.import_module(TOPICS).topics
    part_of = {topic: part for part, names in PARTS.items() for topic in names.split()}
    found: dict[str, tuple[str, set[str]]] = {}
    for topic in sorted(texts.keys() & part_of.keys()):
        for paragraph in texts[topic].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= SHORTEST_PARAGRAPH:
                found.setdefault(words.casefold(), (words, set()))[1].add(part_of[topic])
    rows = [(words, parts) for words, parts in found.values() if len(parts) == 1]
    labels = tuple(sorted(PARTS))
    others = sorted(texts.keys() - part_of.keys())
    message = (
        f"{len(others)} topics of this Python's help belong to no known part and are left out: {', '.join(others)}"
    )
    return Examples(
        source=TOPICS,
        texts=tuple(words for words, _ in rows),
        classes=np.array([labels.index(min(parts)) for _, parts in rows], dtype=np.int64),
        labels=labels,
        notices=(Notice(code="topics_left_out", message=message),) if others else (),
    )
