"""An engine without a model, for tests of everything above the engines: it answers with the words it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.engines.overflow import Tokens, fit_prompt
from edgeai.engines.streaming import Channel, ChunkStream, StopFilter
from edgeai.plan import Plan
from edgeai.types import Chunk, FinishReason, GenerationConfig, Prediction, Prompt, Timings, Usage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FakeEngine"]


class FakeEngine:
    """Answers every prompt with ANSWER, one word a chunk; a token is a word. Keeps the prompts it was given."""

    backend = "fake"
    load_s = 0.0

    def __init__(self, answer: str = "a fake answer", *, context: int = 64) -> None:
        self.answer = answer
        self.prompts: list[Prompt] = []
        self.cancelled = 0
        self.closed = False
        self._words: list[str] = []
        self.artifact = Artifact(
            path=Path("fake.gguf"), name="fake", format="gguf", arch="fake", params=0, context=context, quant="F32", bpw=32.0, vocab=0,
            bos=None, eos=None, template="{{ messages }}", sha256=None, parent=None, size_bytes=0, types={}, metadata={},
        )  # fmt: skip
        self.plan = Plan(
            engine="fake", device="cpu", gpu_layers=0, context=context, batch=context, threads=1, kv_type="none",
            extra_bufts=True, memory_bytes=0, fits=True,
        )  # fmt: skip

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:  # noqa: ARG002
        """Return one id per word, the same for the same word."""
        ids = []
        for word in text.split():
            if word not in self._words:
                self._words.append(word)
            ids.append(self._words.index(word))
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the words of IDS."""
        return " ".join(self._words[token] for token in ids)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one unit vector for each text, along the axis of its length."""
        import numpy as np

        return np.eye(8, dtype=np.float32)[[len(text) % 8 for text in texts]]

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return for each document how many of its words are in QUERY."""
        words = set(query.split())
        return [float(len(words & set(document.split()))) for document in documents]

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Say of each item whether its text is of even or odd length, and give both the same probability."""
        found = [len(str(item)) % 2 for item in items]
        return [Prediction(("even", "odd"), (0.0, 0.0), index, 0.5) for index in found]

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer, honouring max_tokens and stop."""
        self.prompts.append(prompt)
        tokens = Tokens(encode=self._encode, tokenize=self.tokenize, piece=lambda token: self._words[token].encode())
        fitted = fit_prompt(prompt, config, context=self.plan.context, trained=None, tokens=tokens)
        chunks = Channel()
        if fitted.notices:
            chunks.put(Chunk(notices=fitted.notices))
        words = self.answer.split(" ")
        limit = len(words) if config.max_tokens is None else config.max_tokens
        finish: FinishReason = "stop" if limit >= len(words) else "length"
        stops, count = StopFilter(config.stop), 0
        for count, word in enumerate(words[:limit], start=1):
            chunks.put(Chunk(text=stops.feed(word if count == 1 else f" {word}")))
            if stops.stopped:
                finish = "stop"
                break
        timings = Timings(load_s=0.0, ttft_s=0.0, prompt_tok_s=None, gen_tok_s=None, total_s=0.0)
        usage = Usage(prompt_tokens=len(fitted.ids), completion_tokens=count, truncated_tokens=fitted.truncated_tokens)
        chunks.put(Chunk(text=stops.flush(), finish_reason=finish, usage=usage, timings=timings))
        return ChunkStream(chunks, self._count_cancel)

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenize(prompt if isinstance(prompt, str) else " ".join(message["content"] for message in prompt))

    def _count_cancel(self) -> None:
        self.cancelled += 1

    def score(self, text: str | Sequence[int]) -> list[float]:
        """Return 0.0 (certainty) for every word after the first."""
        count = len(self.tokenize(text)) if isinstance(text, str) else len(text)
        return [0.0] * max(0, count - 1)

    def save_prompt(self, prompt: Prompt, path: Path) -> int:
        """Write the words of PROMPT to PATH."""
        text = prompt if isinstance(prompt, str) else " ".join(message["content"] for message in prompt)
        path.write_text(text, encoding="utf-8")
        return len(text.split())

    def load_prompt(self, path: Path) -> int:
        """Count the words in PATH."""
        return len(path.read_text(encoding="utf-8").split())

    def close(self) -> None:
        """Note that the engine was closed."""
        self.closed = True
