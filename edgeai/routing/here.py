"""The part of this machine in a routed request: the local model's answer, judged, hedged, or going on with what broke off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeai.errors import CloudFailure, EdgeAIError
from edgeai.routing.answer import Answer, Cancelled
from edgeai.routing.attempts import Attempt
from edgeai.routing.confidence import TOP, Head, agreement, features
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import Planned
from edgeai.types import Chunk, GenerationConfig, Message, Prompt, Served

__all__ = ["Hedge", "Here", "kind_of"]


class Here:
    """The LOCAL model answering PLANNED under CONFIG; what it says goes to ANSWER."""

    def __init__(self, local: LocalModel, planned: Planned, config: GenerationConfig, answer: Answer) -> None:
        self.model = local.model
        self._local, self._planned, self._config, self._answer = local, planned, config, answer

    def chunks(
        self, attempt: Attempt, *, judged: bool = False, begun: str = "", changes: Mapping[str, Any] | None = None
    ) -> Iterator[Chunk]:
        """Yield the chunks of its answer, JUDGED with log-probabilities, or going on after BEGUN; CHANGES are to the configuration.

        Raises what loading and answering raise, CloudFailure where the deadline passes before it is loaded, Cancelled.
        """
        answer, left = self._answer, self._answer.left_s()
        limit = self._planned.config.timeouts.total_s if left is None else left
        engine = self._local.engine(limit, wanted=lambda: not answer.cancelled.is_set())
        answer.check_wanted()
        changes = {"route": None, "prefill": self._config.prefill + begun, **(changes or {})}
        if (left := answer.left_s()) is not None:
            changes["max_seconds"] = max(left, 0.001)
        if judged:
            changes["logprobs"] = max(TOP, self._config.logprobs or 0)
        if begun and self._config.max_tokens is not None:
            changes["max_tokens"] = max(1, self._config.max_tokens - len(engine.tokenize(begun)))
        stream = engine.generate(_plain(self._planned.prompt), self._config.with_(**changes))
        with answer.stopped_by(self.model, stream.cancel), contextlib.closing(stream):
            for chunk in stream:
                if chunk.text:
                    attempt.began_text()
                hidden = chunk.logprobs and self._config.logprobs is None and not judged
                yield replace(chunk, logprobs=()) if hidden else chunk

    def sureness(self, head: Head, chunks: Sequence[Chunk], attempt: Attempt) -> float:
        """Return the probability that the answer in CHUNKS is right, by HEAD; it may need other answers to the same prompt."""
        from edgeai.routing.calibration import SAMPLE_TEMPERATURE

        text = "".join(chunk.text for chunk in chunks)
        others = []
        for number in range(head.samples):
            warm = {"temperature": max(SAMPLE_TEMPERATURE, self._config.temperature), "seed": number + 1}
            others.append("".join(chunk.text for chunk in self.chunks(attempt, changes=warm)))
        found = features(
            [token for chunk in chunks for token in chunk.logprobs],
            chunks[-1].finish_reason or "stop",
            agreed=agreement(text, others) if others else None,
        )
        return head.probability(found)

    def give(self, chunk: Chunk) -> None:
        """Give CHUNK of its answer. Raises Cancelled where it says that it was stopped."""
        answer = self._answer
        if chunk.logprobs and self._config.logprobs is None:
            chunk = replace(chunk, logprobs=())
        if chunk.finish_reason is None:
            if chunk.text:
                answer.claim(self.model)
            answer.give(chunk)
            return
        if chunk.finish_reason == "cancelled":
            answer.give(Chunk(text=chunk.text))
            raise Cancelled
        answer.claim(self.model)
        answer.finish_with(chunk, self.served())

    def served(self) -> Served:
        """Say who answered."""
        engine = self._local.engine(0.0)
        return Served(model=self.model, backend=engine.plan.engine, device=engine.backend, plan=engine.plan.to_dict())


class Hedge:
    """The local answer beside an endpoint that is slow: given from its first text on, if that comes before the endpoint's."""

    def __init__(self, here: Here, answer: Answer, attempts: list[Attempt]) -> None:
        self.here = here
        self._answer, self._attempts = answer, attempts
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._won = False

    @property
    def has_won(self) -> bool:
        """Whether its text is what the reader gets: not that of the same model that goes on with what broke off."""
        return self._won

    def begin(self) -> None:
        """Start it, once."""
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="edgeai hedge", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End it where its text is not wanted."""
        self._stopped.set()
        if not self.has_won:
            self._answer.stop(self.here.model)

    def join(self) -> None:
        """Wait for its end."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        attempt = Attempt(model=self.here.model)
        self._attempts.append(attempt)
        try:
            self._answer_beside(attempt)
        except Cancelled:
            attempt.ended("cancelled" if self._answer.cancelled.is_set() else "late")
        except EdgeAIError as error:
            attempt.ended("interrupted" if self.has_won else "failed", kind=kind_of(error), error=error.message)
        except BaseException as error:  # noqa: BLE001 - a bug, which is raised again in the reader
            attempt.ended("failed", kind=type(error).__name__, error=str(error))
            if self.has_won:  # else somebody else may still answer
                self._answer.error = error

    def _answer_beside(self, attempt: Attempt) -> None:
        before: list[Chunk] = []
        for chunk in self.here.chunks(attempt):
            if self._stopped.is_set() and not self.has_won:
                raise Cancelled
            if not self.has_won:
                before.append(chunk)
                if not chunk.text and chunk.finish_reason is None:
                    continue
                free = self._answer.winner is None and not self._stopped.is_set()
                if chunk.finish_reason == "cancelled" or not free or not self._answer.claim(self.here.model):
                    raise Cancelled
                self._won = True
                self._answer.stop("cloud/")
                self._warn()
            for held in before or (chunk,):
                self.here.give(held)
            before.clear()
        attempt.ended("ok")

    def _warn(self) -> None:
        failed = [item.line() for item in self._attempts if item.status == "failed"]
        why = "; ".join(dict.fromkeys(failed)) or "the endpoint is slow"
        self._answer.warn("fallback", f"{self.here.model} answers, because {why}")


def kind_of(error: EdgeAIError) -> str:
    """Return what kind of failure ERROR is, in one word."""
    return error.kind if isinstance(error, CloudFailure) else type(error).__name__


def _plain(prompt: Prompt) -> Prompt:
    """Return PROMPT as models on this machine read it: roles and texts."""
    if isinstance(prompt, str):
        return prompt
    return [Message(role=turn["role"], content=turn["content"]) for turn in prompt]
