"""Endpoints as an engine: each request goes to the first of them that begins to answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeai.artifact import Artifact
from edgeai.engines.cloud.attempt import Attempt
from edgeai.engines.cloud.endpoint import Endpoint
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.errors import ClosedError, CloudFailure, EdgeAIError, NoAnswer, StreamInterrupted, UsageError
from edgeai.plan import Plan
from edgeai.types import Chunk, GenerationConfig, Notice, Prediction, Prompt, Timings, Usage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["CloudEngine", "artifact_of"]


def artifact_of(endpoint: Endpoint) -> Artifact:
    """Return what is known of the model that ENDPOINT has: its name and its context, and of its file nothing."""
    return Artifact(
        path=Path(f"cloud/{endpoint.model}"), name=f"cloud/{endpoint.model}", format="cloud", arch="unknown", params=0,
        context=endpoint.settings.context, quant="unknown", bpw=0.0, vocab=0, bos=None, eos=None, template=None,
        size_bytes=0, metadata={"endpoint": endpoint.name, "host": endpoint.host},
    )  # fmt: skip


class CloudEngine:
    """Answers with ENDPOINTS, in their order, without a router: nothing is examined, so whoever uses it has decided that all may leave.

    An endpoint that fails before it has given anything is followed by the next, with a notice.
    """

    backend = "cloud"
    load_s = 0.0

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        if not endpoints:
            raise UsageError("there is no endpoint", hint="add a [[cloud]] to the configuration: edgeai config init")
        self._endpoints = tuple(endpoints)
        self._lock = threading.Lock()
        self._running: set[_Request] = set()
        self._closed = False
        self.artifact = artifact_of(endpoints[0])
        context = endpoints[0].settings.context
        self.plan = Plan(
            engine="cloud", device="cpu", gpu_layers=0, context=context, batch=0, threads=0, kv_type="none", extra_bufts=False,
            memory_bytes=0, fits=True, why=(f"the model runs at {endpoints[0].host}",),
        )  # fmt: skip

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT, in a thread of its own. The stream raises CloudFailure, NoAnswer where there were several endpoints,

        StreamInterrupted for an answer that broke off. Raises UsageError for what no endpoint can keep.
        """
        attempts = [endpoint.attempt(prompt, config) for endpoint in self._endpoints]
        request = _Request(self._endpoints, attempts)
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed", hint="open it again")
            self._running.add(request)
        threading.Thread(target=self._run, args=(request,), daemon=True, name="edgeai-cloud").start()
        return ChunkStream(request.channel, request.cancel)

    def _run(self, request: _Request) -> None:
        try:
            request.run()
        finally:
            with self._lock:
                self._running.discard(request)

    def close(self) -> None:
        """Close the connections; running generations end as cancelled."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for request in running:
            request.cancel()
        for endpoint in self._endpoints:
            endpoint.close()

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:  # noqa: ARG002
        """Refuse: an endpoint keeps its tokenizer to itself."""
        self._refuse("count tokens")

    def detokenize(self, ids: Sequence[int]) -> str:  # noqa: ARG002
        """Refuse."""
        self._refuse("turn tokens into text")

    def score(self, text: str | Sequence[int]) -> list[float]:  # noqa: ARG002
        """Refuse: the chat API gives no log-probabilities of a text that is there."""
        self._refuse("score texts")

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Refuse."""
        self._refuse("embed texts")

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:  # noqa: ARG002
        """Refuse."""
        self._refuse("rank documents")

    def classify(self, items: Sequence[Any]) -> list[Prediction]:  # noqa: ARG002
        """Refuse."""
        self._refuse("classify")

    def save_prompt(self, prompt: Prompt, path: Path) -> int:  # noqa: ARG002
        """Refuse."""
        self._refuse("keep prompts")

    def load_prompt(self, path: Path) -> int:  # noqa: ARG002
        """Refuse."""
        self._refuse("keep prompts")

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"an endpoint cannot {what} ({self.artifact.name!r})", hint="use a local model for it")


class _Request:
    """One request on its way through the endpoints, in a thread."""

    def __init__(self, endpoints: Sequence[Endpoint], attempts: Sequence[Attempt]) -> None:
        self.channel = Channel()
        self._endpoints = endpoints
        self._attempts = attempts
        self._cancelled = False
        self._text: list[str] = []

    def cancel(self) -> None:
        """Abort the attempt that runs, and those that would follow."""
        self._cancelled = True
        for attempt in self._attempts:
            attempt.abort()

    def run(self) -> None:
        """Put the chunks of the first endpoint that answers, or the error, into the channel."""
        failures: list[CloudFailure] = []
        try:
            for endpoint, attempt in zip(self._endpoints, self._attempts, strict=True):
                self.channel.begin()
                try:
                    self._pass_on(attempt, failures)
                    return
                except CloudFailure as failure:
                    if failure.kind == "aborted" or failure.committed:
                        self._break_off(failure)
                        return
                    failures.append(failure)
                    failure.add_note(f"endpoint {endpoint.name}")
            self.channel.put(self._no_answer(failures))
        except BaseException as error:  # noqa: BLE001  whatever it is, the reader must hear of it
            self.channel.put(error)

    def _pass_on(self, attempt: Attempt, failures: Sequence[CloudFailure]) -> None:
        notices = tuple(Notice(code="cloud-fallback", message=failure.message) for failure in failures)
        told = False
        for chunk in attempt:
            if notices and not told:
                self.channel.put(Chunk(notices=notices))
                told = True
            give = self.channel.put if self._text else self.channel.hand_over
            self._text.append(chunk.text)
            give(chunk)

    def _break_off(self, failure: CloudFailure) -> None:
        if failure.kind != "aborted":
            self.channel.put(StreamInterrupted(failure.message, text="".join(self._text), hint=failure.hint))
            return
        timings = Timings(load_s=0.0, ttft_s=None, prompt_tok_s=None, gen_tok_s=None, total_s=0.0)
        usage = Usage(prompt_tokens=0, completion_tokens=len(self._text))
        self.channel.put(Chunk(finish_reason="cancelled", usage=usage, timings=timings))

    def _no_answer(self, failures: Sequence[CloudFailure]) -> EdgeAIError:
        if len(failures) == 1:
            return failures[0]
        attempts = [
            {"model": f"cloud/{endpoint.model}", "host": endpoint.host, "status": failure.kind, "why": failure.message}
            for endpoint, failure in zip(self._endpoints, failures, strict=True)
        ]
        said = "; ".join(failure.message for failure in failures)
        return NoAnswer(f"no endpoint answered: {said}", attempts=attempts, hint=failures[0].hint)
