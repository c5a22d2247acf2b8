"""Endpoints and requests without a network, for tests of what the router does with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgeai.config import Config, RoutingSettings
from edgeai.engines.base import Engine
from edgeai.engines.fake import FakeEngine
from edgeai.errors import CloudFailure, FailureKind
from edgeai.routing.attempts import Upstream
from edgeai.routing.breaker import Breaker
from edgeai.routing.conductor import Conductor
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import Planned
from edgeai.routing.policy import decide
from edgeai.routing.request import CloudState, Facts, LocalState, State, Verdict
from edgeai.routing.retrying import RetryBudget
from edgeai.routing.timers import Timers
from edgeai.types import Chunk, FinishReason, GenerationConfig, Prompt, Timings, Usage

Step = str | float | CloudFailure | Chunk
"""A text that is given, a time that passes, an error that is raised, or a whole chunk."""

TIMINGS = Timings(load_s=0.0, ttft_s=0.1, prompt_tok_s=None, gen_tok_s=None, total_s=0.2)


def end(reason: FinishReason = "stop", text: str = "") -> Chunk:
    """The last chunk of an endpoint's answer."""
    usage = Usage(prompt_tokens=7, completion_tokens=3)
    return Chunk(text=text, finish_reason=reason, usage=usage, timings=TIMINGS)


def failed(kind: FailureKind = "server", status: int | None = 500, **more: Any) -> CloudFailure:
    return CloudFailure(f"it failed ({kind})", kind=kind, status=status, **more)


class FakeAsked:
    """An attempt that plays STEPS; `sent_bytes` are those of the body."""

    def __init__(self, steps: Sequence[Step], body: bytes) -> None:
        self._steps, self._aborted = steps, threading.Event()
        self.requests = 1
        self.sent_bytes, self.received_bytes, self.remote, self.ttft_s = len(body), 0, "127.0.0.1:9", None

    def __iter__(self) -> Iterator[Chunk]:
        given = False
        for step in self._steps:
            if isinstance(step, int | float):
                self._aborted.wait(step)
            if self._aborted.is_set():
                raise CloudFailure("stopped", kind="aborted", committed=given)
            if isinstance(step, CloudFailure):
                step.committed = given
                raise step
            if isinstance(step, Exception):
                raise step
            if isinstance(step, str):
                step = Chunk(text=step)
            if isinstance(step, Chunk):
                given = given or bool(step.text or step.tool_calls)
                self.received_bytes += len(step.text)
                yield step

    def abort(self) -> None:
        self._aborted.set()


@dataclass
class FakeEndpoint:
    """An endpoint that plays one script for each attempt, the last one for all that follow."""

    scripts: list[Sequence[Step]]
    name: str = "far"
    model: str = "far-model"
    asked: list[FakeAsked] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    known: str | None = None
    closed: bool = False

    def problem(self) -> str | None:
        return self.known

    def encode(self, prompt: Prompt, config: GenerationConfig) -> bytes:
        return repr(prompt).encode()

    def attempt(
        self, prompt: Prompt, config: GenerationConfig, *, deadline: float | None = None, first_token_s: float | None = None,
        body: bytes | None = None, repeats: bool = True,
    ) -> FakeAsked:  # fmt: skip
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        self.bodies.append(body or b"")
        self.asked.append(FakeAsked(script, body or b""))
        return self.asked[-1]

    def close(self) -> None:
        self.closed = True


OPENED: list[Timers] = []
"""Timers of tests, which close them."""


class FakeOrchestra:
    """What a conductor needs, with a local model that says LOCAL (None: there is none) and the ENDPOINTS."""

    def __init__(self, *endpoints: FakeEndpoint, local: str | Engine | None = "here it is") -> None:
        engine = FakeEngine(local) if isinstance(local, str) else local
        self.engine = engine
        self.local = None if engine is None else LocalModel.loaded_already("tiny", engine)
        self.timers, self.budget = Timers(), RetryBudget(0.2)
        OPENED.append(self.timers)
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.breakers = {endpoint.name: Breaker() for endpoint in endpoints}
        self.done: list[Conductor] = []

    def endpoint(self, name: str, model: str) -> tuple[Upstream, Breaker]:
        return self.endpoints[name], self.breakers[name]

    def planned(
        self, *, policy: str = "cloud-first", prompt: Prompt = "What is it?", config: Config | None = None, **facts: Any
    ) -> Planned:
        """Return the decision about PROMPT under POLICY, with FACTS of request.Facts."""
        routing = replace(config.routing if config else RoutingSettings(), policy=policy)
        config = replace(config or Config(), routing=routing)
        known = Facts(**{"placement": "any", "prompt_tokens": 4, **facts})
        local = (
            None
            if self.local is None
            else LocalState(model="tiny", context=64, loaded=True, calibrated=self.local.head() is not None)
        )
        state = State(
            local=local, clouds=tuple(CloudState(name=name, model=item.model) for name, item in self.endpoints.items())
        )
        return Planned(
            prompt=prompt, sent=(prompt, GenerationConfig()) if known.placement == "any" else None,
            verdict=Verdict(placement=known.placement),
            facts=known, state=state, decision=decide(known, state, routing), config=config,
        )  # fmt: skip

    def conduct(self, planned: Planned | None = None, *, resume: bool = False, **options: Any) -> Conductor:
        """Return the conductor of PLANNED, begun; OPTIONS are those of GenerationConfig."""
        conductor = Conductor(
            self, planned or self.planned(), GenerationConfig(**options), resume=resume, finished=self.done.append
        )
        self.stream = conductor.start()
        return conductor

    def read(
        self, planned: Planned | None = None, *, resume: bool = False, **options: Any
    ) -> tuple[list[Chunk], Conductor]:
        """Return the chunks of a whole answer, and its conductor. Raises what the reader gets."""
        conductor = self.conduct(planned, resume=resume, **options)
        return list(self.stream), conductor


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def codes(chunks: Sequence[Chunk]) -> list[str]:
    return [notice.code for chunk in chunks for notice in chunk.notices]
