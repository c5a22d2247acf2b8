"""Embedding models and rerankers: texts to vectors and pairs to scores, many in one batch, as the file pools them."""

from __future__ import annotations

import time
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.pooled import MAX_TEXTS, RANK, Text
from edgeai.engines.llamacpp.pooling_thread import PoolingThread
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ContextExceeded, UsageError
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["EmbeddingEngine"]


class EmbeddingEngine:
    """An embedding model or a reranker in this process; see engines.base.Engine. It gives vectors or scores, and no text.

    One thread owns the context and takes one batch of each call in turn, so that a call with one text does not wait for one with
    10,000. An engine that is forgotten frees its model, as one that is closed does.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        began = time.perf_counter()
        if plan.adapters:
            raise UsageError(
                f"{artifact.name} is an embedding model, which takes no adapters here",
                hint="merge them: edgeai convert … --merge",
            )
        self.artifact = artifact
        self._thread = PoolingThread(artifact, plan)
        self._native = self._thread.native
        self.placement = self._native.weights.placement
        notices = (*plan.notices, *self._native.weights.notices)
        self.plan = replace(plan, batch=self._native.n_batch, sequences=MAX_TEXTS, streams=1, notices=notices)
        self._vocab = Vocab(self._native, normalizer=artifact.metadata.get("edgeai.tokenizer.normalizer"))
        self.backend = self.placement.backend
        weakref.finalize(self, self._thread.shut)
        self.load_s = time.perf_counter() - began

    @property
    def batches(self) -> int:
        """How many batches have been computed: a number that stands still while there is work means that native code hangs."""
        return self._native.batches

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        with self._thread.in_use():
            return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        self._vocab.check(ids)
        with self._thread.in_use():
            return self._vocab.detokenize(ids)

    def embed(self, texts: Sequence[str]) -> F32:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32.

        All texts are tokenized before any is computed. Raises ContextExceeded for one that is too long and UsageError for one that has
        no tokens, both with its place. Another thread's `close` raises ClosedError here; Ctrl-C stops the batch that runs.
        """
        import numpy as np

        if self._native.pooling == RANK:
            raise UsageError(
                f"{self.artifact.name} is a reranker: it scores texts against a query",
                hint="use rank(query, documents)",
            )
        _check_texts(texts, "texts")
        with self._thread.in_use():
            found = [
                Text(self._fitting(self._vocab.tokenize(text, add_special=True), at, len(texts)))
                for at, text in enumerate(texts)
            ]
        rows = self._thread.rows(found)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms == 0, 1, norms)
        return rows

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return how well each of DOCUMENTS answers QUERY: the classifier's own score, higher is better, not between 0 and 1.

        Its logistic function is what sentence-transformers' CrossEncoder gives for models with one label. Raises UsageError for a model
        that is no reranker, ContextExceeded for a pair that is too long, with the place of the document.
        """
        if self._native.pooling != RANK:
            raise UsageError(
                f"{self.artifact.name} is an embedding model: its file has no classifier that ranks",
                hint="embed query and documents and compare the vectors, or convert a reranker (…ForSequenceClassification)",
            )
        if self._native.width != 1:
            raise UsageError(
                f"the classifier of {self.artifact.name} has {self._native.width} labels, and one that ranks has one score",
                hint="use a reranker: a sequence classifier with num_labels 1",
            )
        _check_texts([query], "the query")
        _check_texts(documents, "documents")
        with self._thread.in_use():
            ids = self._vocab.tokenize(query)
            pairs = [self._pair(ids, document, at, len(documents)) for at, document in enumerate(documents)]
        return [float(row[0]) for row in self._thread.rows(pairs)]

    def _pair(self, query: list[int], document: str, at: int, of: int) -> Text:
        """Return QUERY and DOCUMENT as one text: with what the model puts around a text, and between two (llama-server's rule).

        BERT: [CLS] query [SEP] document [SEP]; RoBERTa: <s> query </s></s> document </s>.
        """
        vocab = self._vocab
        before, after = vocab.around
        first = [*before, *query, *after, *vocab.between]
        ids = [*first, *vocab.tokenize(document), *after]
        return Text(self._fitting(ids, at, of, "query and document"), second=len(first))

    def _fitting(self, ids: list[int], at: int, of: int, what: str = "text") -> Sequence[int]:
        """Return IDS, those of one of OF texts, in 4 bytes each, if the model can take them."""
        which = f"{what} {at + 1} of {of}" if of > 1 else f"the {what}"
        if not ids:
            raise UsageError(f"{which} is empty", hint="give at least one character")
        if len(ids) > self._native.n_ctx:
            raise ContextExceeded(
                f"{which} has {len(ids)} tokens and the model takes {self._native.n_ctx}",
                hint="give it in pieces",
            )
        return array("i", ids)

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:  # noqa: ARG002
        """Raise UsageError: there is no text to come."""
        self._no_text()

    def score(self, text: str | Sequence[int]) -> list[float]:  # noqa: ARG002
        """Raise UsageError: there are no probabilities."""
        self._no_text()

    def classify(self, items: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: there are no labels."""
        raise UsageError(f"{self.artifact.name} is an embedding model: it has no labels", hint="use embed")

    def save_prompt(self, prompt: Prompt, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._no_text()

    def load_prompt(self, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._no_text()

    def _no_text(self) -> NoReturn:
        raise UsageError(f"{self.artifact.name} is an embedding model: it gives vectors, not text", hint="use embed")

    def close(self) -> None:
        """Stop what runs and free the model. Calling it twice is fine."""
        self._thread.shut()
        self._thread.join()


def _check_texts(texts: Sequence[str], what: str) -> None:
    """Refuse a single string, which would be taken for its letters, and what is no string."""
    if isinstance(texts, str):
        raise UsageError(f"{what} is one string, {texts[:40]!r}", hint="give a list: [text]")
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"item {at + 1} of {what} is {text!r:.60}, no string", hint="give a list of strings")
