"""An embedding model in ONNX, in this process: texts to vectors of length 1; see engines.base.Engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeai.artifact import Artifact
from edgeai.engines.hfvocab import HFVocab
from edgeai.engines.onnx.cache import OptimizedModels
from edgeai.engines.onnx.engine import graph_of
from edgeai.engines.onnx.schema import Text, schema_of
from edgeai.engines.onnx.session import open_session, run_failure
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ClosedError, ContextExceeded, EngineCrashed, InvalidModel, UsageError
from edgeai.options import DeviceChoice
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["EmbedderEngine"]

BATCH_TOKENS, MOST_TEXTS = 1024, 32
"""Padded tokens and texts of one run: larger ones leave the caches of a CPU and are no faster (bench/LOG.md)."""


class EmbedderEngine:
    """Texts to vectors. Any number of threads may use it at once; texts of like length are computed together."""

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        *,
        device: DeviceChoice | None = None,
        cache: OptimizedModels | None = None,
    ) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        schema = schema_of(artifact)
        text = schema.inputs[0] if schema is not None else None
        if not isinstance(text, Text):
            raise InvalidModel(f"{str(artifact.path)!r} takes no texts, and gives vectors", hint="convert it again")
        self._names, self._most = text.graph, text.max_tokens
        self._vocab = HFVocab.of_folder(artifact.path)
        self._pad = self._pad_id()
        session = open_session(graph_of(artifact), device=device or plan.device, threads=plan.threads, cache=cache)
        self._session: Any = session.native
        self.backend = session.backend
        self._output = session.native.get_outputs()[0]
        self.plan = replace(
            plan,
            device=session.backend,
            context=self._most,
            batch=BATCH_TOKENS,
            why=(*plan.why, session.in_words),
            notices=(*plan.notices, *session.notices),
        )
        self._alone = plan.deterministic  # in 8 bits, texts of one run share the range of their activations
        self.batches = 0
        self.load_s = time.perf_counter() - began

    def _pad_id(self) -> int:
        """Return what fills up shorter texts; what it is does not matter where the mask says so, but RoBERTa counts positions from it."""
        named = self._vocab.named.get("pad_token", "")
        found = self._vocab.tokenize(named, parse_special=True) if named else []
        return found[0] if len(found) == 1 else 0

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        return self._vocab.detokenize(ids)

    def embed(self, texts: Sequence[str]) -> F32:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32.

        All texts are tokenized before any is computed. Raises ContextExceeded for one that is too long and UsageError for one that has
        no tokens, both with its place; ClosedError after `close`.
        """
        import numpy as np

        if isinstance(texts, str):
            raise UsageError(f"texts is one string, {texts[:40]!r}", hint="give a list: [text]")
        texts = list(texts)
        for at, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"item {at + 1} of texts is {text!r:.60}, no string", hint="give a list of strings")
        ids = self._vocab.tokenize_batch(texts)
        for at, item in enumerate(ids):
            self._check(item, texts[at], at, len(ids))
        dim = self._output.shape[-1]
        found = np.empty((len(ids), dim if isinstance(dim, int) else 0), np.float32)
        for rows in self._groups(ids):
            found[rows] = self._run([ids[row] for row in rows])
        return found

    def _check(self, ids: list[int], text: str, at: int, of: int) -> None:
        which = f"text {at + 1} of {of}" if of > 1 else "the text"
        if not text.strip():
            raise UsageError(f"{which} is empty", hint="give at least one character")
        if len(ids) > self._most:
            raise ContextExceeded(
                f"{which} has {len(ids)} tokens and the model takes {self._most}", hint="give it in pieces"
            )

    def _groups(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the places of texts that are computed together: of like length, so that little is padded."""
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        group: list[int] = []
        for row in order:
            if group and (self._alone or len(group) >= MOST_TEXTS or (len(group) + 1) * len(ids[row]) > BATCH_TOKENS):
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _run(self, lists: Sequence[Sequence[int]]) -> F32:
        import numpy as np

        session = self._session
        if session is None:
            raise ClosedError(f"{self.artifact.name!r} has been closed", hint="load it again")
        shape = (len(lists), max(map(len, lists)))
        ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for row, item in enumerate(lists):
            ids[row, : len(item)], mask[row, : len(item)] = item, 1
        try:
            found: F32 = session.run([self._output.name], dict(zip(self._names, (ids, mask), strict=True)))[0]
        except Exception as error:
            raise run_failure(self.artifact.name, error) from error
        self.batches += 1
        if not np.isfinite(found).all():
            raise EngineCrashed("the model gave a vector that is not finite", hint="edgeai verify MODEL")
        return found

    def rank(self, query: str, documents: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: there is no classifier that ranks."""
        raise UsageError(
            f"{self.artifact.name} is an embedding model: it has no classifier that ranks",
            hint="embed query and documents and compare the vectors",
        )

    def classify(self, items: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: there are no labels."""
        self._only_vectors()

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:  # noqa: ARG002
        """Raise UsageError: there is no text to come."""
        self._only_vectors()

    def score(self, text: str | Sequence[int]) -> list[float]:  # noqa: ARG002
        """Raise UsageError: there are no probabilities."""
        self._only_vectors()

    def save_prompt(self, prompt: Prompt, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._only_vectors()

    def load_prompt(self, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._only_vectors()

    def _only_vectors(self) -> NoReturn:
        raise UsageError(f"{self.artifact.name} is an embedding model: it gives vectors, not text", hint="use embed")

    def close(self) -> None:
        """Free the model; what runs in other threads ends as it would. Calling it twice is fine."""
        self._session = None
