"""What has been read of an answer, and the whole answer that it makes in the end."""

from __future__ import annotations

import json
from typing import Protocol

from edgeai.engines.base import Engine
from edgeai.errors import IncompleteOutput, StreamInterrupted, UsageError
from edgeai.types import Chunk, Completion, Constraint, FinishReason, GenerationConfig, Notice, Served

__all__ = ["Transcript", "check_whole"]


class Loaded(Protocol):
    """The model that answers."""

    engine: Engine

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What is less than could be expected of the model as it is loaded."""

    def open_engine(self) -> Engine:
        """Return the engine. Raises ClosedError after the model was closed."""


class Transcript:
    """The chunks of one answer, in the order in which they were read. `cancelled`: the reader asked for the end."""

    def __init__(self, model: Loaded, config: GenerationConfig) -> None:
        self.cancelled = False
        self._model = model
        self._config = config
        self._seen: list[Chunk] = []

    def check_open(self) -> None:
        """Raise ClosedError if the model was closed under the answer."""
        self._model.open_engine()

    def add(self, chunk: Chunk) -> Chunk:
        """Keep CHUNK and return it. Raises ClosedError where it says that closing the model has ended the answer."""
        if chunk.finish_reason == "cancelled" and not self.cancelled:
            self.check_open()
        self._seen.append(chunk)
        return chunk

    def completion(self) -> Completion:
        """Return the answer as far as it came. Raises UsageError where the last chunk has not been read."""
        last = self._seen[-1] if self._seen else Chunk()
        if last.finish_reason is None or last.usage is None or last.timings is None:
            raise UsageError("the stream has not ended", hint="read it to its end, or cancel() and read what is left")
        engine, model = self._model.engine, self._model
        logprobs = tuple(token for chunk in self._seen for token in chunk.logprobs)
        served = last.served or Served(
            model=engine.artifact.name, backend=engine.plan.engine, device=engine.backend, plan=engine.plan.to_dict()
        )
        return Completion(
            text="".join(chunk.text for chunk in self._seen),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            model=served.model,
            backend=served.backend,
            device=served.device,
            plan=served.plan,
            warnings=(*model.notices, *(notice for chunk in self._seen for notice in chunk.notices)),
            logprobs=None if self._config.logprobs is None else logprobs,
            route=last.route,
            tool_calls=tuple(call for chunk in self._seen for call in chunk.tool_calls),
        )

    def whole(self) -> Completion:
        """Return the answer. Raises IncompleteOutput and StreamInterrupted as `check_whole` does."""
        done = self.completion()
        check_whole(done, self._config.constraint)
        return done


def check_whole(done: Completion, form: Constraint | None) -> None:
    """Raise IncompleteOutput when DONE was to have FORM and does not have it; an answer that was cancelled may be anything.

    Raises StreamInterrupted for an answer that its endpoint broke off: a part is no answer.
    """
    if done.finish_reason == "interrupted":
        why = next((notice.message for notice in done.warnings if notice.code == "stream_interrupted"), "no reason")
        raise StreamInterrupted(why, text=done.text, hint="ask again, or let the local model go on: `resume_local`")
    if form is None or done.finish_reason == "cancelled":
        return
    cut = next((notice.message for notice in done.warnings if notice.code == "incomplete-output"), None)
    if cut is None and not has_form(done.text, form):
        cut = f"the answer ended before it was whole, after {done.usage.completion_tokens} tokens"
    if cut is not None:
        raise IncompleteOutput(cut, text=done.text, hint=_hint(done.finish_reason, form))


def _hint(reason: FinishReason, form: Constraint) -> str | None:
    """Return what would let an answer of FORM, which ended for REASON, become whole."""
    bound = {
        "json_schema": ", or bound lists and texts in the schema: maxItems, maxLength",
        "regex": ", or bound what repeats in the regex: {1,40} for +",
        "lark": ", or bound what repeats in the grammar",
    }
    return {
        "length": f"allow more tokens (`max_tokens`) or a longer context (`ctx`){bound.get(form.kind, '')}",
        "timeout": "allow more time (`max_seconds`)",
        "stop": "a stop text ended it: leave it out",
    }.get(reason)


def has_form(text: str, form: Constraint) -> bool:
    """Whether TEXT can be a whole answer of FORM, as far as that is seen without its grammar."""
    if form.kind not in {"json_schema", "choices"}:
        return True
    try:
        value = json.loads(form.source if form.kind == "choices" else text)
    except ValueError:
        return False
    return form.kind == "json_schema" or text in value
