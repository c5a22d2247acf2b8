"""Texts as a model takes them: token ids and a mask. What is left out of a long text is said; special tokens in a text are text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeai.artifact import Artifact
from edgeai.engines.onnx.batches import Batch, Fill, Place, groups, never
from edgeai.engines.onnx.records import SUFFIXES, read_records
from edgeai.engines.onnx.schema import Text
from edgeai.errors import InvalidModel, UsageError
from edgeai.types import Notice

__all__ = ["Texts", "tokenizer_text"]

PADS = ("[PAD]", "<pad>", "<|padding|>")
TOKENIZER = "edgeai.tokenizer"
MAX_BYTES = 64_000_000


def tokenizer_text(artifact: Artifact) -> str:
    """Return the tokenizer.json of ARTIFACT: in its metadata, or beside its graph. Raises InvalidModel where there is none."""
    inside = artifact.metadata.get(TOKENIZER)
    if isinstance(inside, str):
        return inside
    path = (artifact.path if artifact.path.is_dir() else artifact.path.parent) / "tokenizer.json"
    try:
        if path.stat().st_size <= MAX_BYTES:
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{str(artifact.path)!r} has no tokenizer", hint="convert the model again") from error
    raise InvalidModel(f"{str(path)!r} has more than {MAX_BYTES} bytes", hint="convert the model again")


class Texts:
    """Makes token ids of texts, as TEXT says, with the tokenizer in the JSON text TOKENIZER_JSON."""

    def __init__(self, text: Text, tokenizer_json: str, *, where: str) -> None:
        import numpy as np

        self._text = text
        self.item_shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.int64)
        self._tokenizer = _tokenizer(tokenizer_json, where)
        self._pad = _pad_id(self._tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._array, self._ones = partial(np.array, dtype=np.int64), np.ones_like
        self._cutter = _tokenizer(tokenizer_json, where)
        self._cutter.no_padding()
        self._cutter.enable_truncation(text.max_tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of the graph."""
        return self._text.graph

    def filler(self, into: Any) -> Fill:  # noqa: ARG002
        """Return what never writes: a text has no fixed shape."""
        return never

    def alone(self, item: Any) -> dict[str, Any] | None:
        """Return the inputs of the graph for the one text ITEM; None for what `batches` has to say something of."""
        if type(item) is not str or not item or item.isspace():
            return None
        try:
            ids = self._array([found.ids for found in self._tokenizer.encode_batch_fast([item])])  # without offsets
        except Exception:  # noqa: BLE001 - half a character, which `batches` names
            return None
        if not 0 < ids.shape[1] <= self._text.max_tokens:
            return None
        graph = self._text.graph
        return {graph[0]: ids} if len(graph) == 1 else {graph[0]: ids, graph[1]: self._ones(ids)}

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return the token ids of TEXT, all of them."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def batches(self, items: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield ITEMS in batches of at most ROWS, each as long as its longest text. All texts are tokenized before."""
        import numpy as np

        texts = [text for at, item in enumerate(items) for text in self._texts(item, at, len(items))]
        if len(texts) == 1:  # without the library's threads, which take longer to start than a text to read
            encoded = [self._tokenizer.encode(texts[0][0])]
        else:
            encoded = self._tokenizer.encode_batch([text for text, _ in texts])
        found = [self._cut(text, list(tokens.ids), place) for (text, place), tokens in zip(texts, encoded, strict=True)]
        # Without a token to pad with, each text is computed alone.
        for group in groups(found, 1 if self._pad is None else rows):
            longest = max(len(ids) for ids, _ in group)
            ids = np.full((len(group), longest), self._pad or 0, dtype=np.int64)
            mask = np.zeros((len(group), longest), dtype=np.int64)
            for row, (tokens, _) in enumerate(group):
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            feed = dict(zip(self._text.graph, (ids, mask), strict=False))
            yield Batch(feed, len(group), tuple(notices for _, notices in group))

    def _texts(self, item: Any, at: int, of: int) -> Iterator[tuple[str, Place]]:
        place = Place(f"text {at + 1} of {of}" if of > 1 else "the text")
        if isinstance(item, os.PathLike):
            yield from self._file(Path(os.fsdecode(item)))
        elif isinstance(item, str):
            yield _checked(item, place), place
        else:
            raise UsageError(f"{place} is {item!r:.60}, no text", hint="give texts, or pathlib.Path for files")

    def _file(self, path: Path) -> Iterator[tuple[str, Place]]:
        """Yield the texts in PATH: the column of a table, or all that is in another file."""
        name, place = self._text.name, Place(repr(str(path)))
        if path.suffix.lower() not in SUFFIXES:
            try:
                yield _checked(path.read_text(encoding="utf-8-sig"), place), place
            except UnicodeDecodeError as error:
                raise UsageError(f"{place} is not UTF-8 text", hint=f"byte {error.start}: {error.reason}") from error
            except OSError as error:
                raise UsageError(f"{place} cannot be read: {error.strerror}", hint="check its path") from error
            return
        records = read_records(path, [name])
        for number, row in enumerate(records.rows, start=1):
            here = Place(place.name, number, name)
            if isinstance(row, Mapping):
                cell = row.get(name)
            else:
                cell = row[records.names.index(name)] if records.names and name in records.names else None
            if not isinstance(cell, str):
                what = f"is {cell!r:.60}, no text" if cell is not None else "is not there"
                raise UsageError(f"{here} {what}", hint=f"the texts stand in a column that is named {name!r}")
            yield _checked(cell, here), here
        if records.matrix is not None:
            raise UsageError(f"{place} is an array, and this model reads texts", hint="give texts")

    def _cut(self, text: str, ids: list[int], place: Place) -> tuple[list[int], tuple[Notice, ...]]:
        if not ids:
            raise UsageError(f"{place} is empty", hint="give at least one character")
        if len(ids) <= self._text.max_tokens:
            return ids, ()
        kept = list(self._cutter.encode(text, add_special_tokens=True).ids)
        message = f"{place} has {len(ids)} tokens and the model reads {len(kept)}: the last {len(ids) - len(kept)} were left out"
        return kept, (Notice(code="truncated", message=message),)


def _checked(text: str, place: Place) -> str:
    if not text or text.isspace():
        raise UsageError(f"{place} is empty", hint="give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place} is not valid Unicode", hint=f"character {error.start}: {text[error.start]!r}"
        ) from error
    return text


def _tokenizer(text: str, where: str) -> Any:
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(text)
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise InvalidModel(
            f"the tokenizer of {where!r} is not valid: {reason}", hint="convert the model again"
        ) from error
    found.encode_special_tokens = True  # what a user writes is text: "[SEP]" ends nothing
    return found


def _pad_id(tokenizer: Any) -> int | None:
    padding = tokenizer.padding
    if padding is not None:
        return int(padding["pad_id"])
    return next((found for pad in PADS if (found := tokenizer.token_to_id(pad)) is not None), None)
