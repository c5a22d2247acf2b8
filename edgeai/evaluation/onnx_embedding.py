"""The proof of an ONNX embedder: token ids, and the vector of each text, alone and beside longer ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters import tokenproof
from converters.onnx.checks import file_checks, open_session
from converters.onnx.embedder import INPUTS
from edgeai.device import cpu_facts
from edgeai.engines.hfvocab import HFVocab
from edgeai.evaluation import tokens
from edgeai.evaluation.embedding import EmbeddingProof, Vectors, unit
from edgeai.evaluation.limits import at_most, limit_of
from edgeai.evaluation.passport import half
from edgeai.evaluation.prompts import EXACT_NMSE
from edgeai.types import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["OnnxEmbeddingProof"]

EXACT_COSINE = 0.99999
TOGETHER = 8
"""Texts of one batch, padded to the longest."""
PADDED_NMSE = 1e-6
"""Padding and other batches change nothing but the order of additions. Of quantized files they change the ranges of activations."""


@dataclass(slots=True)
class OnnxEmbeddingProof(EmbeddingProof):
    """The proof of an ONNX file that gives vectors of length 1. Those of single tokens are not in the graph's outputs."""

    def export(self, path: Path) -> list[Row]:
        """Return the rows that prove the export PATH in float32 against torch."""
        self._export = path
        rows, alone, together = self._both(path)
        facts, reference = self._facts(), self._torchs()
        rows += [
            at_most("F32 vectors of texts against torch: NMSE", nmse(reference.pooled, alone), EXACT_NMSE),
            at_most("F32 vectors beside longer texts: NMSE", nmse(alone, together), PADDED_NMSE),
            *self._texts(reference, pooled(alone), EXACT_COSINE, "F32 vectors of texts"),
        ]
        return [*rows, *self._said(tokens.same_ids(self.vocabulary, facts))]

    def quantized(self, path: Path) -> list[Row]:
        """Return the rows that compare the vectors of the file PATH with torch's."""
        rows, alone, together = self._both(path)
        reference, limit = self._torchs(), limit_of(self.base)
        return [
            *rows,
            at_most("vectors of texts against torch: NMSE", nmse(reference.pooled, alone), limit.nmse),
            at_most("vectors beside longer texts: NMSE", nmse(alone, together), limit.nmse),
            *self._texts(reference, pooled(alone), limit.cosine, "vectors of texts"),
        ]

    def _torchs(self) -> Vectors:
        """Return torch's vectors of the texts, of length 1."""
        if self._reference is None:
            self._facts()
            assert self._torch is not None  # noqa: S101 - nothing in ONNX is proved without torch
            found = self._vectors(self._torch.folder)
            self._reference = Vectors(hidden=found.hidden, pooled=unit(found.pooled).astype("float32"))
        return self._reference

    def _both(self, path: Path) -> tuple[list[Row], F32, F32]:
        """Run the file PATH on each text alone, and on batches of them; with the rows about the file and its token ids."""
        import numpy as np

        rows = [Row(name=item.name, value=item.value, limit=item.limit, ok=item.ok) for item in file_checks(path)]
        vocab = HFVocab.of_folder(path.parent)
        question = tokenproof.ids_question(path, self.vocabulary)
        ids = [
            [
                vocab.tokenize(text, add_special=item.add_special, parse_special=item.parse_special)
                for text in question.texts
            ]
            for item in question.readings
        ]
        answer = {"ids": ids, "vocab": len(self.vocabulary.tokens), "eog": list(self.vocabulary.stop_ids)}
        rows += tokens.id_rows(self.vocabulary, question, answer)
        session = open_session(path, threads=half(cpu_facts().threads))
        pad = self.vocabulary.pad or 0
        many = len(self._lists)
        alone: list[F32] = []
        together: list[F32] = []
        for at, item in enumerate(self._lists):
            self.progress("running the file", at, many)
            alone.append(run(session, [item], pad)[0])
        for start in range(0, many, TOGETHER):
            together.extend(run(session, self._lists[start : start + TOGETHER], pad))
        self.progress("running the file", many, many)
        return rows, np.stack(alone), np.stack(together)


def run(session: object, lists: list[list[int]], pad: int) -> F32:
    """Return the vectors of LISTS of token ids, padded with PAD to the longest, (texts, dim)."""
    import numpy as np

    shape = (len(lists), max(map(len, lists)))
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(lists):
        ids[row, : len(item)], mask[row, : len(item)] = item, 1
    found: F32 = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]  # type: ignore[attr-defined]
    return found


def pooled(vectors: F32) -> Vectors:
    """Return VECTORS of texts as what a model makes of them."""
    return Vectors(hidden=vectors[:0], pooled=vectors)


def nmse(reference: F32, found: F32) -> float:
    """Return the squared error of FOUND over the squares of REFERENCE."""
    import numpy as np

    left, right = reference.astype(np.float64), found.astype(np.float64)
    return float(((right - left) ** 2).sum() / (left**2).sum())
