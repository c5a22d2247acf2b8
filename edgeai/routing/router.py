"""The router: an engine that answers with the local model or an endpoint, request by request. See engines.base.Engine."""

from __future__ import annotations

import contextlib
import secrets
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.config import Config
from edgeai.engines.base import Engine
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ClosedError, EdgeAIError, UsageError
from edgeai.plan import Plan
from edgeai.routing.conductor import Conductor
from edgeai.routing.entry import Entry
from edgeai.routing.ledger import Ledger
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import Planned, plan_request, scope_of, texts_of_files
from edgeai.routing.surroundings import Surroundings
from edgeai.types import GenerationConfig, Notice, Prediction, Prompt, RouteOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Router", "plan"]

LOOK_S = 3.0
"""With less time than this nobody is connected to only to see whether there is a network."""


class Router:
    """Answers each request with the local model or one of the endpoints, as the policy decides, and writes down what left.

    A text with something private in it has no endpoint to go to. The local model is loaded when it is first asked. SCOPE is who may
    answer where a request does not say otherwise: "auto", "cloud/NAME", … (planning.scope_of). What is no answer (tokens, vectors,
    scores) comes from the local model. What could not be written
    down is among the warnings of a later answer, and in `take_notices`.
    """

    backend = "router"

    def __init__(self, around: Surroundings, *, scope: str = "auto") -> None:
        self.around, self.scope = around, scope
        self.config = around.config
        self._closed = False
        self._answering: weakref.WeakSet[Conductor] = weakref.WeakSet()
        scope_of(scope, self.config.cloud)  # raises for a name that is none

    @classmethod
    def open(
        cls, config: Config, *, scope: str = "auto", local_model: str | None = None, keys: Mapping[str, str] | None = None, **options: Any
    ) -> Router:  # fmt: skip
        """Return the router of CONFIG with its ledger; OPTIONS are those of options.LoadOptions for the local model.

        KEYS: name of an endpoint → its key, before what the configuration and the environment say.
        """
        name = scope_of(scope, config.cloud).local_model or local_model or config.routing.local_model
        local = LocalModel.of(name, options)
        around = Surroundings(config, local, ledger=Ledger(settings=config.ledger), keys=keys)
        return cls(around, scope=scope)

    # ---- an engine

    @property
    def artifact(self) -> Artifact:
        """The facts of the local model; without one, of a model that is somewhere else."""
        with contextlib.suppress(EdgeAIError):
            if self.around.local is not None:
                return self.around.local.artifact()
        return Artifact(
            path=Path("cloud"), name=self.scope, format="cloud", arch="cloud", params=0, context=None, quant="", bpw=0.0, vocab=0, bos=None,
            eos=None, template="{{ messages }}", size_bytes=0,
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """How the local model runs; before it is loaded, a plan that takes nothing."""
        local = self.around.local
        if local is not None and local.is_loaded:
            return local.engine(0.0).plan
        return Plan(
            engine="router", device="cpu", gpu_layers=0, context=self.artifact.context or 0, batch=0, threads=0, kv_type="none",
            extra_bufts=False, memory_bytes=0, fits=True,
        )  # fmt: skip

    @property
    def load_s(self) -> float:
        """How long loading the local model took, in seconds; 0 before it is loaded."""
        local = self.around.local
        return local.engine(0.0).load_s if local is not None and local.is_loaded else 0.0

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT by whom the decision names; `config.route` says what is wanted of it.

        The stream raises NoAnswer where nobody may or could answer, and ends as "interrupted" where an answer broke off.
        """
        self._check_open()
        submitted, options = time.monotonic(), self._options(config)
        unhurried = config.max_seconds is None or config.max_seconds > LOOK_S
        planned = plan_request(self.around, prompt, config, options, look=unhurried)
        resume = self.config.routing.resume_local if options.resume_local is None else options.resume_local
        conductor = Conductor(self.around, planned, config, resume=resume, finished=self._finished, submitted=submitted)
        self._answering.add(conductor)
        return conductor.start()

    def planned(self, prompt: Prompt, config: GenerationConfig) -> Planned:
        """Decide about PROMPT as `generate` would, without asking anybody or opening a socket."""
        return plan_request(self.around, prompt, config, self._options(config)).described()

    def _options(self, config: GenerationConfig) -> RouteOptions:
        options = config.route or RouteOptions()
        return replace(options, scope=self.scope) if options.scope == "auto" else options

    # ---- when a request has ended

    def _finished(self, conductor: Conductor) -> None:
        """Mark what came of something private, write everything down, and put the route into the last chunk."""
        planned = conductor.planned = conductor.planned.described()
        answer, text = conductor.answer, conductor.answer.text
        cost = self._cost_usd(conductor)
        ledger = self.around.ledger
        if ledger is not None:
            ledger.record(self._entry(conductor, text, cost))
        # Of what was refused, nothing was made.
        if planned.facts.placement == "local_only" and answer.winner is not None:
            self.around.taint.remember(planned.parts, planned.verdict, text)
        if answer.end is not None:
            notices = self.take_notices()
            answer.end = replace(
                answer.end, route=self._route(conductor, cost), notices=(*answer.end.notices, *notices)
            )

    def take_notices(self) -> tuple[Notice, ...]:
        """Return what could not be written down, of decisions and of what is private, and that was not returned before."""
        ledger = self.around.ledger
        return (*(() if ledger is None else ledger.take_notices()), *self.around.taint.take_notices())

    def _route(self, conductor: Conductor, cost: float) -> Mapping[str, Any]:
        attempts = [attempt.to_dict() for attempt in conductor.attempts]
        return conductor.planned.to_dict() | {
            "answered_by": conductor.answer.winner,
            "attempts": attempts,
            "egress_bytes": sum(attempt["sent_bytes"] for attempt in attempts),
            "cost_usd": cost,
        }

    def _entry(self, conductor: Conductor, text: str, cost: float) -> Entry:
        planned, end, error = conductor.planned, conductor.answer.end, conductor.answer.error
        bodies = self.config.ledger.bodies
        return Entry(
            id=secrets.token_hex(8),
            facts=planned.facts,
            state=planned.state,
            decision=planned.decision,
            verdict=planned.verdict,
            attempts=tuple(attempt.to_dict() if bodies else attempt.noted() for attempt in conductor.attempts),
            answered_by=conductor.answer.winner,
            finish_reason=None if end is None or error is not None else end.finish_reason,
            error=None if error is None else str(error) if bodies else type(error).__name__,
            usage=None if end is None else end.usage,
            cost_usd=cost,
            config=self.config.sha256,
            prompt=planned.prompt,
            answer=text,
        )

    def _cost_usd(self, conductor: Conductor) -> float:
        """Return what endpoints take for what they were asked: by their own counts, or by the estimate where an answer broke off.

        An error is not billed; a request that was given up while an answer was being made is.
        """
        end, total = conductor.answer.end, 0.0
        for attempt in conductor.attempts:
            if not attempt.received_bytes or (
                attempt.status == "failed" and attempt.kind not in ("timeout", "malformed")
            ):
                continue
            counted = end.usage if end is not None and attempt.model == conductor.answer.winner else None
            prompt = counted.prompt_tokens if counted else conductor.planned.facts.prompt_tokens
            total += self.around.price_usd(attempt.model, prompt, counted.completion_tokens if counted else 0)
        return total

    # ---- what only the local model can

    def _engine(self) -> Engine:
        self._check_open()
        if self.around.local is None:
            raise UsageError("there is no local model", hint="edgeai pull smollm2")
        return self.around.local.engine(self.config.timeouts.total_s)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT in the local model."""
        return self._engine().tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS of the local model."""
        return self._engine().detokenize(ids)

    def score(self, text: str | Sequence[int]) -> list[float]:
        """Return the log-probabilities that the local model gives to TEXT."""
        return self._engine().score(text)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return what the local model makes of TEXTS."""
        return self._engine().embed(texts)

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return what the local model says of DOCUMENTS."""
        return self._engine().rank(query, documents)

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Return what the local model says of ITEMS."""
        return self._engine().classify(items)

    def save_prompt(self, prompt: Prompt, path: Path) -> int:
        """Have the local model keep PROMPT in the file PATH."""
        return self._engine().save_prompt(prompt, path)

    def load_prompt(self, path: Path) -> int:
        """Have the local model begin with the prompt in the file PATH."""
        return self._engine().load_prompt(path)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the router has been closed", hint="open it again")

    def close(self) -> None:
        """End what runs and free everything. Calling it twice is fine."""
        if self._closed:
            return
        self._closed = True
        for conductor in list(self._answering):
            conductor.answer.cancel()
            conductor.join(1.0)  # its end is written down
        self.around.close()


def plan(
    prompt: Prompt, *, config: Config, scope: str = "auto", policy: str | None = None, private: bool = False, redact: bool | None = None,
    files: Sequence[Path] = (), deadline_s: float | None = None, max_tokens: int | None = None,
) -> Planned:  # fmt: skip
    """Decide about PROMPT as a router of CONFIG would, asking nobody: no model is loaded, no socket opened, nothing written down.

    FILES are read and examined as parts of what would be sent. Raises UsageError.
    """
    options = RouteOptions(
        scope=scope, policy=policy, private=private, redact=redact, files=tuple(texts_of_files(files).items())
    )
    router = Router.open(config, scope=scope)
    try:
        return router.planned(prompt, GenerationConfig(max_tokens=max_tokens, max_seconds=deadline_s, route=options))
    finally:
        router.close()
