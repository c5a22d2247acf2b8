"""Persons and places, which have no form of their own: a model that labels tokens finds them, in ONNX, or presidio's. Optional.

Either may be wrong in both directions. Nothing is ever downloaded: a model that is not on this machine is an error when it is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from edgeai.config import PrivacySettings
from edgeai.errors import InvalidModel, UsageError
from edgeai.routing.request import Finding

__all__ = ["Names", "OnnxNames", "PresidioNames", "open_names"]

LABELS = {
    "PER": "person", "PERSON": "person", "LOC": "address", "LOCATION": "address", "GPE": "address", "ADDRESS": "address",
    "STREET": "address", "STREET_ADDRESS": "address", "FAC": "address", "NAME": "person", "FIRSTNAME": "person",
    "LASTNAME": "person", "GIVENNAME": "person", "SURNAME": "person",
}  # fmt: skip
"""What models call persons and places (CoNLL-2003, OntoNotes, presidio), and what we do. Other labels are passed over."""
PIECE_CHARS, OVERLAP_CHARS = 1200, 200
LEAST_SCORE = 0.5


class Names(Protocol):
    """Something that finds persons and places."""

    def find(self, text: str) -> Iterator[list[Finding]]:
        """Yield what is in TEXT, piece by piece, with places in TEXT."""


def open_names(settings: PrivacySettings) -> Names:
    """Return what SETTINGS ask for: the model at `names_model`, else presidio. Raises UsageError, InvalidModel."""
    if settings.names_model is not None:
        return OnnxNames(Path(settings.names_model).expanduser())
    return PresidioNames()


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(id=f"privacy.{kind}", kind=kind, start=start, end=end, masked="…")


class OnnxNames:
    """A token classifier in ONNX at PATH, a file or its folder, with tokenizer.json and config.json (`id2label`) beside it."""

    def __init__(self, path: Path) -> None:
        from edgeai.engines.onnx.session import open_session

        file = (
            path
            if path.suffix == ".onnx"
            else next(iter(sorted(path.glob("*.onnx")) + sorted(path.glob("onnx/*.onnx"))), path / "model.onnx")
        )
        if not file.is_file():
            raise UsageError(f"privacy.names_model {str(path)!r} has no ONNX file", hint="give the file, or its folder")
        folder = file.parent if (file.parent / "tokenizer.json").is_file() else file.parent.parent
        self._labels = _labels(folder)
        self._tokenizer = _tokenizer(folder)
        self._session = open_session(file, device="cpu", threads=1).native
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._most = _most_tokens(folder)

    def find(self, text: str) -> Iterator[list[Finding]]:
        """Yield the persons and places in TEXT."""
        for begin in range(0, max(len(text), 1), PIECE_CHARS):
            piece = text[begin : begin + PIECE_CHARS + OVERLAP_CHARS]
            found = []
            for offset, tokens in self._windows(piece):
                found += [
                    _finding(kind, begin + offset + start, begin + offset + end)
                    for kind, start, end in self._spans(tokens, piece, offset)
                ]
            yield found

    def _windows(self, piece: str) -> Iterator[tuple[int, Any]]:
        """Yield PIECE with where it begins, halved until its tokens fit into the model."""
        waiting = [(0, piece)]
        while waiting:
            offset, part = waiting.pop()
            encoding = self._tokenizer.encode(part)
            if len(encoding.ids) <= self._most or len(part) < 2:
                yield offset, encoding
            else:
                middle = (
                    max(part.rfind(" ", 1, len(part) // 2 + 1), 1)
                    if " " in part[1 : len(part) // 2 + 1]
                    else len(part) // 2
                )
                waiting += [(offset, part[:middle]), (offset + middle, part[middle:])]

    def _spans(self, encoding: Any, piece: str, offset: int) -> Iterator[tuple[str, int, int]]:
        import numpy as np

        feeds = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        arrays = {name: np.array([feeds[name]], dtype=np.int64) for name in self._inputs}
        logits = self._session.run(None, arrays)[0][0]  # (tokens, labels)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        kind, start, end = "", 0, 0
        for best, share, (first, last) in zip(shares.argmax(-1), shares.max(-1), encoding.offsets, strict=True):
            if first == last:
                continue  # a special token
            found = self._labels.get(int(best), "") if share >= LEAST_SCORE else ""
            if found != kind or (found and piece[offset + end : offset + first].strip()):
                if kind:
                    yield kind, start, end
                kind, start = found, first
            end = last
        if kind:
            yield kind, start, end


def _labels(folder: Path) -> dict[int, str]:
    path = folder / "config.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        found = {
            int(index): LABELS.get(
                str(label).upper().removeprefix("B-").removeprefix("I-").removeprefix("E-").removeprefix("S-"), ""
            )
            for index, label in labels.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"{path.name} of privacy.names_model has no usable id2label: {error}",
            hint="put the model's config.json beside it",
        ) from error
    if not any(found.values()):
        raise InvalidModel(
            "privacy.names_model has no label for persons or places", hint="use a model for named entities"
        )
    return found


def _most_tokens(folder: Path) -> int:
    value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings", 512)
    return value - 2 if isinstance(value, int) and value > 8 else 510  # some families count two positions for padding


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise InvalidModel(
            f"tokenizer.json of privacy.names_model cannot be read: {error}", hint="put the model's own beside it"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class PresidioNames:
    """presidio-analyzer with a spaCy model that is installed as a package; it may not fetch one."""

    def __init__(self) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import spacy.util
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.nlp_engine import NlpEngineProvider
        except ImportError as error:
            raise UsageError(
                "privacy.tier 'names' needs presidio-analyzer, which is not installed",
                hint="pip install edgeai[names], or give `names_model`",
            ) from error
        models = sorted(name for name in spacy.util.get_installed_models() if name.startswith(("en_", "xx_")))
        if not models:
            raise UsageError(
                "privacy.tier 'names' needs a spaCy model, and none is installed",
                hint="python -m spacy download en_core_web_sm, or give `names_model`",
            )
        engine = NlpEngineProvider(
            nlp_configuration={"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": models[0]}]}
        )
        self._analyzer = AnalyzerEngine(nlp_engine=engine.create_engine(), supported_languages=["en"])

    def find(self, text: str) -> Iterator[list[Finding]]:
        """Yield the persons and places in TEXT."""
        for begin in range(0, max(len(text), 1), PIECE_CHARS):
            piece = text[begin : begin + PIECE_CHARS + OVERLAP_CHARS]
            results = self._analyzer.analyze(
                text=piece, language="en", entities=["PERSON", "LOCATION"], score_threshold=LEAST_SCORE
            )
            yield [_finding(LABELS[result.entity_type], begin + result.start, begin + result.end) for result in results]
