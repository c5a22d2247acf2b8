"""The proof of an embedding model: the vector of every token, and of every text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import tokenproof
from converters.child import NATIVE, Child, ChildFailed
from converters.tokenizer import source_tokenizer
from edgeai.errors import ProofFailed
from edgeai.evaluation import corpus, tokens
from edgeai.evaluation.intervals import Interval, mean_interval, spearman_interval
from edgeai.evaluation.limits import LIMITS, at_least, at_most, limit_of, stated
from edgeai.evaluation.passport import Proof, is_small
from edgeai.evaluation.prompts import EXACT_NMSE
from edgeai.evaluation.weights import weight_rows
from edgeai.types import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["EmbeddingProof", "cosines", "proof_class"]

TEXTS, MOST_TOKENS = 64, 96
"""How many texts are embedded, and the tokens of the longest."""
LEAST_CHARS = 20


@dataclass(slots=True)
class EmbeddingProof(Proof):
    """The proof of a model that gives vectors: those of tokens are compared by NMSE, those of texts by cosine and by rank."""

    _lists: list[list[int]] = field(default_factory=list, init=False)
    _reference: Vectors | None = field(default=None, init=False)

    @property
    def ranks(self) -> bool:
        """Whether a text gets a score and no vector."""
        return self.plan.pooling == "rank"

    def _choose(self) -> None:
        """Choose the texts: paragraphs of the given text, or of the bundled one."""
        text = self.text if self.text is not None else corpus.default_text(scripts=False)
        parts = [part.strip() for part in text.split("\n\n") if len(part.strip()) >= LEAST_CHARS] or [text]
        tokenizer = source_tokenizer(self.vocabulary.spec)
        tokenizer.encode_special_tokens = True  # a text may read like one, and RoBERTa gives padding no position
        around = len(self.vocabulary.before) + len(self.vocabulary.after)
        most = max(1, min(MOST_TOKENS, self.plan.context) - around)
        ids = [item.ids[:most] for item in tokenizer.encode_batch(parts[:TEXTS], add_special_tokens=False)]
        self._lists = [self.vocabulary.with_ends(item) for item in ids if item]

    def _request(self) -> dict[str, Any]:
        return {
            "class": "AutoModelForSequenceClassification" if self.ranks else "AutoModel",
            # a layer for another task, which checkpoints of this one leave out
            "optional": [] if self.ranks else ["pooler."],
            "window": None,
            "conversations": [],
            "continue": [],
            "lists": self._lists,
            "phases": [],
        }

    def export(self, path: Path) -> list[Row]:
        """Return the rows that prove the unquantized export PATH: tokens, and the vectors of tokens and texts."""
        self._export = path
        rows, found = self._embed(path)
        if self._torch is None:
            self._reference = found
            return [*rows, Row(name="vectors against torch", value="not compared")]
        facts, reference = self._facts(), self._vectors(self._torch.folder)
        self._reference = reference
        limit = EXACT_NMSE + self.plan.activation_nmse
        rows.append(at_most("F32 vectors of tokens against torch: NMSE", reference.nmse(found), limit))
        rows += self._texts(reference, found, LIMITS["F32"].cosine, "F32 vectors of texts")
        return [*rows, *self._said(tokens.same_ids(self.vocabulary, facts))]

    def quantized(self, path: Path) -> list[Row]:
        """Return the rows that compare the vectors of the file PATH with the reference's."""
        if self._reference is None:
            if self._torch is not None:
                self._facts()
                self._reference = self._vectors(self._torch.folder)
            else:
                assert self._export is not None  # noqa: S101 - `export` or `use_export` has set it
                self._reference = self._embed(self._export)[1]
        rows, found = self._embed(path)
        of = "torch" if self._torch else "the F32 export"
        rows.append(Row(name=f"vectors of tokens against {of}: NMSE", value=self._reference.nmse(found)))
        if self.min_cosine is not None and not self.ranks:
            rows.append(at_least("vectors of texts: mean cosine", self._reference.mean_cosine(found), self.min_cosine))
        return [*rows, *self._texts(self._reference, found, limit_of(self.base).cosine, "vectors of texts")]

    def _texts(self, reference: Vectors, found: Vectors, limit: float, what: str) -> list[Row]:
        """Return the rows about the vectors of texts: the least cosine, and whether the same texts are near each other."""
        if self.ranks:
            return self._scores(reference.pooled[:, 0], found.pooled[:, 0], limit, what.replace("vectors", "scores"))
        least = float(cosines(reference.pooled, found.pooled).min())
        ranks = spearman_interval(similarities(reference.pooled), similarities(found.pooled))
        self.summary |= {"min_cosine": least, "spearman": ranks.value}
        name = f"{what}: least cosine of {len(self._lists)}"
        return [
            Row(name=name, value=least, limit=f">= {limit:g}", ok=least >= limit),
            stated(f"{what}: rank correlation of similarities", ranks),
        ]

    def _scores(self, reference: F32, found: F32, limit: float, what: str) -> list[Row]:
        """Return the rows about scores: how they correlate, and how far the worst is off, in standard deviations of the reference."""
        import numpy as np

        left, right = (side.astype(np.float64) - side.mean(dtype=np.float64) for side in (reference, found))
        correlation = float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))
        worst = float(np.abs(found - reference).max() / max(float(reference.std()), 1e-12))
        ranks = spearman_interval(np.subtract.outer(left, left), np.subtract.outer(right, right))
        self.summary |= {"spearman": ranks.value}
        name = f"{what}: correlation of {len(self._lists)}"
        return [
            Row(name=name, value=correlation, limit=f">= {limit:g}", ok=correlation >= limit),
            stated(f"{what}: rank correlation", ranks),
            Row(name=f"{what}: worst error, in standard deviations", value=worst),
        ]

    def _embed(self, path: Path) -> tuple[list[Row], Vectors]:
        """Run the file PATH: the rows about its tokens, and its vectors."""
        question = tokenproof.ids_question(path, self.vocabulary)
        folder = self._place("file")
        request = {
            "jobs": [question.request()],
            "embed": {
                "model": str(path),
                "lists": self._lists,
                "folder": str(folder),
                "threads": 1 if is_small(path) else self._threads(),
            },
        }
        child = self._keep(Child(NATIVE, request, what=f"running {path.name!r}"))
        try:
            answer = child.result(lambda done, total: self.progress("running the file", done, total))
        except ChildFailed as error:
            raise ProofFailed(
                f"the runtime does not give vectors of the converted file: {error.reason}", hint=error.hint
            ) from error
        rows = [*tokens.id_rows(self.vocabulary, question, answer["jobs"][0]), *weight_rows(path, self.plan)]
        return rows, self._vectors(folder)

    def _vectors(self, folder: Path) -> Vectors:
        """Return what a child left in FOLDER."""
        import numpy as np

        hidden, pooled = (np.fromfile(folder / f"{name}.f32", np.float32) for name in ("hidden", "pooled"))
        return Vectors(
            hidden=hidden.reshape(sum(map(len, self._lists)), -1), pooled=pooled.reshape(len(self._lists), -1)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What a model makes of the texts: `hidden` (tokens of all texts, dim) and `pooled` (texts, dim), not normalised."""

    hidden: F32
    pooled: F32

    def nmse(self, other: Vectors) -> float:
        """Return the NMSE of the OTHER's vectors of tokens. Raises ProofFailed where they are of another size."""
        import numpy as np

        if self.hidden.shape != other.hidden.shape:
            raise ProofFailed(
                f"the file gives vectors of {other.hidden.shape[1]} numbers, and the source of {self.hidden.shape[1]}"
            )
        left, right = self.hidden.astype(np.float64), other.hidden.astype(np.float64)
        return float(((right - left) ** 2).sum() / (left**2).sum())

    def mean_cosine(self, other: Vectors) -> Interval:
        """Return the mean cosine of the vectors of texts with the OTHER's, and its interval; a text is the unit."""
        import numpy as np

        found = cosines(self.pooled, other.pooled)
        return mean_interval(found, np.arange(len(found)))


def cosines(left: F32, right: F32) -> npt.NDArray[np.float64]:
    """Return the cosine of each row of LEFT with the same row of RIGHT, both (texts, dim)."""
    import numpy as np

    one, two = unit(left), unit(right)
    found: npt.NDArray[np.float64] = np.einsum("td,td->t", one, two)
    return found


def similarities(vectors: F32) -> npt.NDArray[np.float64]:
    """Return the cosines of all pairs of rows, (texts, texts)."""
    rows = unit(vectors)
    found: npt.NDArray[np.float64] = rows @ rows.T
    return found


def unit(vectors: F32) -> npt.NDArray[np.float64]:
    """Return the rows of VECTORS with a length of one."""
    import numpy as np

    rows = vectors.astype(np.float64)
    found: npt.NDArray[np.float64] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return found


def proof_class(pooling: str | None) -> type[Proof]:
    """Return the class of the proof for a model with this POOLING; None is a language model."""
    return Proof if pooling is None else EmbeddingProof
