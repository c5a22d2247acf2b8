"""What every engine can do, wherever the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgeai.artifact import Artifact
from edgeai.engines.streaming import ChunkStream
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prediction, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Engine"]


@runtime_checkable
class Engine(Protocol):
    """A loaded model. Safe to call from many threads; closing the stream of `generate` cancels the work behind it."""

    @property
    def artifact(self) -> Artifact:
        """The facts of the model file."""

    @property
    def plan(self) -> Plan:
        """How it runs here."""

    @property
    def load_s(self) -> float:
        """How long loading took, in seconds."""

    @property
    def backend(self) -> str:
        """What really computes, as read back after loading: `cpu`, `cuda`, or a name of the engine's own."""

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT; special tokens written in it are text unless `parse_special`."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS, special tokens as nothing."""

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT piece by piece; the last chunk carries finish reason, usage and timings.

        Raises ContextExceeded before any work, NoChatTemplate for messages to a base model, EngineCrashed.
        """

    def score(self, text: str | Sequence[int]) -> list[float]:
        """Return the log-probability in nats of each token of TEXT (or of token ids) after the first, given those before it."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32. Raises UsageError where the model is not made for it."""

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return how well each of DOCUMENTS answers QUERY, higher is better. Raises UsageError where the model is no reranker."""

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Return what the model says of each of ITEMS: pictures, rows, series, texts or arrays. Raises UsageError for other models."""

    def save_prompt(self, prompt: Prompt, path: Path) -> int:
        """Compute PROMPT once and keep its state in the file PATH; return its tokens. Raises UsageError where the engine cannot."""

    def load_prompt(self, path: Path) -> int:
        """Make the prompt in the file PATH part of what later requests begin with; return its tokens.

        Raises InvalidModel for a file that is damaged or of another model, UsageError where the engine cannot.
        """

    def close(self) -> None:
        """Free the model; running generations end as cancelled. Calling it twice is fine."""
