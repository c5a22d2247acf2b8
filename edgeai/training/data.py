"""Text → tokens on disk, split by document; `Windows.sample(step)` is a pure function, so there is no loader state."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeai.errors import RecipeError
from edgeai.training import tokenizer as bpe
from edgeai.training.recipe import DataSettings
from edgeai.training.workspace import write_whole

__all__ = ["Document", "Windows", "draw", "encode", "read", "sha256", "split"]

Tokens = npt.NDArray[np.integer]

PYDOC = "pydoc_data.topics"
SHARED_TEXT_CHARS = 60
"""Two documents with an equal paragraph of this many characters are copies in part, and never split."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is used whole for training or whole for evaluation."""

    name: str
    text: str


def read(settings: DataSettings, folder: Path) -> list[Document]:
    """Return the documents of `settings.source`, in an order that does not depend on the file system."""
    if settings.source == PYDOC:
        topics = importlib.import_module(PYDOC).topics
        return [Document(name, topics[name]) for name in sorted(topics)]
    path = folder / Path(settings.source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md") and file.is_file())
        documents = [Document(file.relative_to(path).as_posix(), _text(file)) for file in files]
    elif path.suffix == ".jsonl" and path.is_file():
        documents = _json_lines(path)
    else:
        raise RecipeError(
            f"data.source {settings.source!r} is neither a folder nor a .jsonl file",
            hint=f"use {PYDOC!r}, a folder of .txt and .md files, or a .jsonl file with a text in each line",
        )
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise RecipeError(f"data.source {settings.source!r} has no text", hint="put .txt or .md files there")
    return documents


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{str(path)!r} is not UTF-8 text", hint="convert it, or take it out of the folder"
        ) from error


def _json_lines(path: Path) -> list[Document]:
    documents = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecipeError(f"line {number} of {str(path)!r} is not JSON: {error.msg}") from error
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise RecipeError(f"line {number} of {str(path)!r} has no text", hint='each line is {"text": "…"}')
        documents.append(Document(f"{number}", value["text"]))
    return documents


def sha256(documents: Iterable[Document]) -> str:
    """Return the hash of all names and texts."""
    pairs = [[document.name, document.text] for document in documents]
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def split(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Return (training, held-out) documents; about FRACTION of the characters are held out.

    Documents that share a paragraph stay together. Python's own documentation needs it: the topic `try` is a piece
    of the topic `compound`, so a split by name alone would evaluate on text that was trained on.
    """
    groups = _groups_sharing_text(documents)
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group[0].name}".encode()).digest())
    budget = fraction * sum(len(document.text) for document in documents)
    held: list[Document] = []
    for group in order:
        size = sum(len(document.text) for document in group)
        if size <= budget:
            held += group
            budget -= size
    names = {document.name for document in held}
    rest = [document for document in documents if document.name not in names]
    if not held or not rest:
        raise RecipeError(
            f"no document can be held out: {len(documents)} documents, {len(groups)} without shared text",
            hint="give more documents, remove copies, or raise data.val_fraction",
        )
    return rest, sorted(held, key=lambda document: document.name)


def _groups_sharing_text(documents: Sequence[Document]) -> list[list[Document]]:
    """Return DOCUMENTS in groups such that no long paragraph is in two groups."""
    parent = list(range(len(documents)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first_with: dict[str, int] = {}
    for index, document in enumerate(documents):
        for paragraph in document.text.split("\n\n"):
            # A nested copy is indented differently, so only the words count.
            words = " ".join(paragraph.split())
            if len(words) >= SHARED_TEXT_CHARS:
                parent[root(index)] = root(first_with.setdefault(words, index))
    groups: defaultdict[int, list[Document]] = defaultdict(list)
    for index, document in enumerate(documents):
        groups[root(index)].append(document)
    return list(groups.values())


def encode(tokenizer: Tokenizer, documents: Iterable[Document], path: Path) -> Tokens:
    """Write the ids of DOCUMENTS to PATH in a row, each between BOS and EOS, and return them mapped for reading.

    They are uint16 where that holds every id, uint32 otherwise.
    """
    dtype = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for document in documents:
                file.write(np.array(bpe.encode(tokenizer, document.text), dtype=dtype).tobytes())

    write_whole(path, write)
    return np.memmap(path, dtype=dtype, mode="r")


def draw(
    step: int, batch_size: int, per_epoch: int, order: Callable[[int], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """Return the examples of STEP: the next BATCH_SIZE of passes in a row, each with the ORDER of its number."""
    first = step * batch_size
    return np.concatenate(
        [
            order(epoch)[max(first - epoch * per_epoch, 0) : first + batch_size - epoch * per_epoch]
            for epoch in range(first // per_epoch, (first + batch_size - 1) // per_epoch + 1)
        ]
    )


@dataclass(frozen=True, slots=True)
class Windows:
    """Training windows of CONTEXT + 1 tokens in an order that depends on the seed alone."""

    tokens: Tokens
    context: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.per_epoch < 1:
            raise RecipeError(
                f"the training text has {len(self.tokens)} tokens, too few for model.context {self.context!r}",
                hint=f"give more text, or set model.context to at most {max((len(self.tokens) - 1) // 2, 0)}",
            )

    @property
    def per_epoch(self) -> int:
        """Windows in one pass; one fewer than fit, because each pass starts at another offset."""
        return (len(self.tokens) - 1) // self.context - 1

    def sample(self, step: int) -> npt.NDArray[np.int64]:
        """Return the (batch, context + 1) ids of STEP: a slice of each pass's seeded permutation."""
        starts = draw(step, self.batch_size, self.per_epoch, self._starts)
        return np.stack([self.tokens[start : start + self.context + 1] for start in starts]).astype(np.int64)

    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return where each window of EPOCH starts, shuffled; the offset moves what a window cuts through."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        offset = rng.integers(self.context)
        return rng.permutation(self.per_epoch).astype(np.int64) * self.context + offset
