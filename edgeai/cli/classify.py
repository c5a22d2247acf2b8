"""What `edgeai run` prints for a classifier or a regression: a line for each picture, row, series, text or array."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeai.cli.output import Output, is_terminal
from edgeai.cli.show import printable
from edgeai.engines.onnx.schema import EXAMPLES
from edgeai.errors import InvalidModel, UsageError
from edgeai.model import Model
from edgeai.types import Prediction, finite

__all__ = ["classify"]

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".npy")
FILES = (
    *TABLES,
    ".txt",
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".pgm",
    ".ppm",
    ".pbm",
)
"""Endings by which a word is a path, also where a text would do."""
NAMES = {
    "image": "a picture",
    "table": "a file with rows",
    "series": "a file with rows",
    "text": "a text",
    "tensor": "a .npy file",
}
NEXT = 2
LONGEST = 48


@dataclass(frozen=True, slots=True)
class Said:
    """One prediction, of the input that the user named so, a path or a text; `row` counts the rows of a file from 1."""

    input: str
    is_path: bool
    row: int | None
    prediction: Prediction


def classify(model: Model, words: Sequence[str], files: Sequence[Path], out: Output) -> None:
    """Print what MODEL says of WORDS and FILES, and of the lines that are piped in where it reads texts."""
    kind = _kind(model)
    given = [(word, _item(word, kind)) for word in words] + [(str(path), path) for path in files]
    if kind == "text":
        given += [(line, line) for line in _piped()]
    if not given:
        raise UsageError(
            f"{model.artifact.name} needs {NAMES[kind]}", hint=f"edgeai run {model.artifact.path.name} {EXAMPLES[kind]}"
        )
    began = time.perf_counter()
    said = list(_predict(model, given))
    took = time.perf_counter() - began
    out.warn(dict.fromkeys(notice for item in said for notice in item.prediction.warnings))
    if out.as_json:
        out.json(
            {
                "model": model.artifact.name,
                "task": model.artifact.task,
                "predictions": finite([_json(item) for item in said]),
                "usage": {"rows": len(said)},
                "timings": {"load_s": round(model.engine.load_s, 4), "total_s": round(took, 6)},
                "backend": model.plan.engine,
                "device": model.engine.backend,
                "plan": model.plan.to_dict(),
                "warnings": [asdict(notice) for notice in out.warned],
            }
        )
    elif not said:
        out.note("there are no rows")
    elif not said[0].prediction.names:
        for item in said:
            out.answer(json.dumps([float(f"{value:.8g}") for value in item.prediction.values]))
    else:
        _print(said, out)


def _kind(model: Model) -> str:
    schema = model.artifact.schema
    if schema is None:
        return "tensor"
    kind = schema["inputs"][0].get("kind")
    if kind not in EXAMPLES:
        raise InvalidModel(f"{model.artifact.name} reads {kind!r}, which is not known", hint="convert the model again")
    return str(kind)


def _item(word: str, kind: str) -> Any:
    """Return what WORD stands for: a path, a text, or rows in JSON. Raises UsageError for a path at which there is nothing."""
    if kind in ("table", "series", "tensor") and word.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(word)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{word!r:.60} is not JSON: {error}", hint="give an object, a list, or a file") from error
        return found
    if kind == "text" and not _names_a_file(word):
        return word
    if not word:
        raise UsageError(f"an argument is empty, and this model reads {NAMES[kind]}", hint="give the path of a file")
    path = Path(word)
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        hint = "check its path; a text that looks like one can be piped in" if kind == "text" else "check its path"
        raise UsageError(f"there is no file {word!r:.200}, and this model reads {NAMES[kind]}", hint=hint)
    return path


def _names_a_file(word: str) -> bool:
    """Return whether WORD can only be meant as a path."""
    if any(character.isspace() for character in word) or "://" in word:
        return False
    return word.lower().endswith(FILES) or word.startswith(("./", "../", "/", "~", ".\\", "..\\"))


def _piped() -> list[str]:
    """Return the lines with something in them that are piped in."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return []
    try:
        return [line for line in sys.stdin.read().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError("what is piped in is not UTF-8 text", hint=f"byte {error.start}: {error.reason}") from error


def _predict(model: Model, given: Sequence[tuple[str, Any]]) -> Iterator[Said]:
    """Yield the predictions for what is GIVEN: what is one item each goes together, a file with rows goes alone."""
    alone = [isinstance(item, list) or (isinstance(item, Path) and item.suffix.lower() in TABLES) for _, item in given]
    at = 0
    while at < len(given):
        name, item = given[at]
        if alone[at]:
            rows = item if isinstance(item, list) and item and isinstance(item[0], dict | list) else [item]
            found = model.classify(rows)
            yield from (
                Said(name, isinstance(item, Path), row, prediction) for row, prediction in enumerate(found, start=1)
            )
            at += 1
            continue
        end = next((next_ for next_ in range(at, len(given)) if alone[next_]), len(given))
        part = given[at:end]
        found = model.classify([item for _, item in part])
        yield from (
            Said(name, isinstance(item, Path), None, prediction)
            for (name, item), prediction in zip(part, found, strict=True)
        )
        at = end


def _json(said: Said) -> dict[str, Any]:
    row = {} if said.row is None else {"row": said.row}
    return {"input": said.input, **row, **said.prediction.to_dict()}


# ---- for people


def _print(said: Sequence[Said], out: Output) -> None:
    """Print aligned columns: what it was, what it is, how probable that is, and what else it may be."""
    first = said[0].prediction
    if first.index is None:
        header = ["INPUT", *(printable(name).upper() for name in first.names)]
        lines = [[_name(item), *(f"{value:.6g}" for value in item.prediction.values)] for item in said]
    else:
        header = ["INPUT", "LABEL", "PROBABILITY", "NEXT"]
        lines = [[_name(item), *_ranked(item.prediction)] for item in said]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in (header, *lines):
        out.answer("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _name(said: Said) -> str:
    text = printable(said.input)
    if len(text) > LONGEST:  # paths differ at their end
        text = f"…{text[1 - LONGEST :]}" if said.is_path else f"{text[: LONGEST - 1]}…"
    return text if said.row is None else f"{text} row {said.row}"


def _ranked(prediction: Prediction) -> tuple[str, str, str]:
    ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    others = [(name, part) for name, part in ranked if name != prediction.label][:NEXT]
    following = ", ".join(f"{printable(name)} {part:.3f}" for name, part in others)
    return printable(prediction.label or ""), f"{prediction.score:.3f}", following
