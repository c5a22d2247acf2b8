"""The Python API for applications: `edgeai.load` and the `Model` it returns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeai.artifact import Artifact
from edgeai.engines.base import Engine
from edgeai.engines.opening import open_engine
from edgeai.errors import IncompleteOutput, UsageError
from edgeai.plan import Plan
from edgeai.schema import FORMS, constraint_of
from edgeai.types import Chunk, Completion, GenerationConfig, Message, Notice, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Model", "Stream", "load", "open_engine"]


def load(model: str | os.PathLike[str], **options: Any) -> Model:
    """Load MODEL, a path or the name of a pulled model, and return it ready to answer; OPTIONS are those of plan.LoadOptions.

        with edgeai.load("smollm2") as m:
            print(m.chat([{"role": "user", "content": "Hi"}], max_tokens=64).text)

    Raises ModelNotFound, InvalidModel, DoesNotFit, DeviceUnavailable or EngineCrashed, each with a hint.
    """
    from edgeai.store import Store

    store, ref = Store.open(), os.fspath(model)
    engine = open_engine(store.find(ref), **options)
    return Model(engine, sampling=store.sampling(ref))


class Model:
    """A loaded model. One `Model` may be used from many threads at once; `close` it, or use it in a `with` block.

    `sampling` is what answers are sampled with unless a call says otherwise: what the catalogue says of the model, else what its file
    says, else the defaults of GenerationConfig.
    """

    def __init__(self, engine: Engine, *, sampling: Mapping[str, float] | None = None) -> None:
        self.engine = engine
        self.sampling = {**file_sampling(engine.artifact), **(sampling or {})}

    @property
    def artifact(self) -> Artifact:
        """The facts of the model file."""
        return self.engine.artifact

    @property
    def plan(self) -> Plan:
        """How the model runs here."""
        return self.engine.plan

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Answer PROMPT (messages, or a text to be continued) piece by piece; OPTIONS are those of `config`."""
        return self.stream_config(prompt, self.config(**options))

    def config(self, **options: Any) -> GenerationConfig:
        """Return OPTIONS with this model's own sampling for what they leave open. Raises UsageError for impossible values.

        OPTIONS are those of GenerationConfig; `schema`, `regex`, `grammar`, `choices` or `response_format` (see schema.constraint_of) make
        its constraint.
        """
        form = constraint_of(**{name: options.pop(name) for name in FORMS if name in options})
        if form is not None:
            if options.get("constraint") is not None:
                raise UsageError("a constraint and another form exclude each other", hint="an answer has one form")
            options["constraint"] = form
        return GenerationConfig(**{**self.sampling, **options})

    def stream_config(self, prompt: Prompt, config: GenerationConfig) -> Stream:
        """Answer PROMPT piece by piece with a CONFIG that is already made."""
        return Stream(self.engine, prompt, config)

    def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        """Answer MESSAGES through the model's chat template. Raises NoChatTemplate for a base model."""
        return self.stream(messages, **options).collect()

    def complete(self, text: str, **options: Any) -> Completion:
        """Continue TEXT."""
        return self.stream(text, **options).collect()

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the token ids of TEXT; special tokens written in it are plain text."""
        return self.engine.tokenize(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS."""
        return self.engine.detokenize(ids)

    def score(self, text: str) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT after the first."""
        return self.engine.score(text)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32. Raises UsageError for a language model."""
        return self.engine.embed(texts)

    def close(self) -> None:
        """Free the model; calling it twice is fine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_FILE_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}
"""`general.sampling.*` of a GGUF file (llama.cpp, llama-arch.cpp) → fields of GenerationConfig."""


def file_sampling(artifact: Artifact) -> dict[str, float]:
    """Return what the model file recommends to sample with; a value that is not possible is as good as none."""
    found: dict[str, float] = {}
    for key, name in _FILE_KEYS.items():
        value = artifact.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)):
            with contextlib.suppress(UsageError):
                GenerationConfig(**{name: value})  # type: ignore[arg-type]
                found[name] = value
    return found


def check_whole(done: Completion) -> None:
    """Raise IncompleteOutput when DONE was to have a form and does not have it; an answer that was cancelled may be anything."""
    cut = next((notice for notice in done.warnings if notice.code == "incomplete-output"), None)
    if cut is not None:
        raise IncompleteOutput(cut.message, text=done.text, hint=_CUT_BY.get(done.finish_reason))


_CUT_BY = {
    "length": "allow more tokens (max_tokens) or a longer context, or bound lists and texts in the schema: maxItems, maxLength",
    "timeout": "allow more time (max_seconds)",
    "stop": "a stop text ended it: leave it out",
}


class Stream:
    """The chunks of an answer. Leaving its `with` block, or `cancel()`, stops the work; `collect` makes the whole answer.

    Every chunk that was read is kept, so `completion()` says at any time what has come so far.
    """

    def __init__(self, engine: Engine, prompt: Prompt, config: GenerationConfig) -> None:
        self._engine = engine
        self._chunks = engine.generate(prompt, config)
        self._seen: list[Chunk] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        self._seen.append(chunk)
        return chunk

    def cancel(self) -> None:
        """Ask for the end; the last chunk then says `cancelled`."""
        self._chunks.cancel()

    def close(self) -> None:
        """Stop the work; nothing more will be read."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def collect(self) -> Completion:
        """Read the stream to its end and return the whole answer.

        Raises IncompleteOutput for an answer that was to have a form and was cut before it was whole.
        """
        for _ in self:
            pass
        done = self.completion()
        check_whole(done)
        return done

    def completion(self) -> Completion:
        """Return the answer of a stream that has been read to its last chunk."""
        last = self._seen[-1] if self._seen else Chunk()
        if last.finish_reason is None or last.usage is None or last.timings is None:
            raise ValueError("the stream has not ended: read it, or cancel() and read what is left")
        plan = self._engine.plan
        notices: list[Notice] = [*plan.notices, *(notice for chunk in self._seen for notice in chunk.notices)]
        return Completion(
            text="".join(chunk.text for chunk in self._seen),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            model=self._engine.artifact.name,
            backend=plan.engine,
            device=self._engine.backend,
            plan=plan.to_dict(),
            warnings=tuple(notices),
        )
