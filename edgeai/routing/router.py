"""The router: an engine that answers with the local model or an endpoint, request by request. See engines.base.Engine."""

from __future__ import annotations

import contextlib
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.config import CloudSettings, Config
from edgeai.engines.base import Engine
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ClosedError, EdgeAIError, UsageError
from edgeai.plan import Plan
from edgeai.routing.attempts import Upstream
from edgeai.routing.breaker import Breaker
from edgeai.routing.conductor import Conductor
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import Planned, plan_request, scope_of, texts_of_files
from edgeai.routing.request import CloudState, Finding, Part, State, Verdict
from edgeai.routing.retrying import RetryBudget
from edgeai.routing.state import Machine
from edgeai.routing.timers import Timers
from edgeai.types import GenerationConfig, Prediction, Prompt, RouteOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgeai.routing.confidence import Head
    from edgeai.routing.ledger import Ledger
    from edgeai.routing.privacy.detector import Detector
    from edgeai.routing.privacy.taint import Taint

__all__ = ["Router", "plan"]

MakeEndpoint = Callable[[CloudSettings], Upstream]


class Router:
    """Answers each request with the LOCAL model or one of the endpoints of CONFIG, as its policy decides, and writes down what left.

    A text with something private in it has no endpoint to go to. The local model is loaded when it is first asked. SCOPE is who may
    answer where a request does not say otherwise. ENDPOINT makes an endpoint of its settings, LEDGER keeps the decisions (None: nothing is
    kept). What is not an answer (tokens, vectors, scores) comes from the local model.
    """

    def __init__(
        self, config: Config, local: LocalModel | None, *, scope: str = "auto", endpoint: MakeEndpoint | None = None,
        ledger: Ledger | None = None, detector: Detector | None = None, taint: Taint | None = None,
    ) -> None:  # fmt: skip
        from edgeai.routing.privacy.detector import Detector
        from edgeai.routing.privacy.taint import Taint

        self.config, self.local, self.scope = config, local, scope
        self.timers, self.budget = Timers(), RetryBudget(config.routing.retry_budget)
        self.ledger = ledger
        self._detector = detector or Detector(config.privacy)
        self._taint = taint or Taint()
        self._machine = Machine()
        self._make = endpoint or self._cloud_endpoint
        self._lock = threading.Lock()
        self._endpoints: dict[tuple[str, str], Upstream] = {}
        self._breakers = {cloud.name: Breaker() for cloud in config.cloud}
        self._settings = {cloud.name: cloud for cloud in config.cloud}
        self._closed = False
        self._answering: weakref.WeakSet[Conductor] = weakref.WeakSet()
        scope_of(scope, config.cloud)  # raises for a name that is none

    @classmethod
    def open(cls, config: Config, *, scope: str = "auto", local_model: str | None = None, **options: Any) -> Router:
        """Return the router of CONFIG with its ledger; OPTIONS (of options.LoadOptions) are for the local model."""
        from edgeai.routing.ledger import Ledger

        name = scope_of(scope, config.cloud).local_model or local_model or config.routing.local_model
        return cls(config, LocalModel.of(name, options), scope=scope, ledger=Ledger(settings=config.ledger))

    # ---- an engine

    @property
    def artifact(self) -> Artifact:
        """The facts of the local model; without one, those of a model that is somewhere else."""
        with contextlib.suppress(EdgeAIError):
            if self.local is not None:
                return self.local.artifact()
        return Artifact(
            path=Path("cloud"), name=self.scope, format="cloud", arch="cloud", params=0, context=None, quant="", bpw=0.0, vocab=0, bos=None,
            eos=None, template="{{ messages }}", size_bytes=0,
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """How the local model runs; before it is loaded, nothing that takes anything."""
        if self.local is not None and self.local.is_loaded:
            return self.local.engine(0.0).plan
        return Plan(
            engine="router", device="cpu", gpu_layers=0, context=self.artifact.context or 0, batch=0, threads=0, kv_type="none",
            extra_bufts=False, memory_bytes=0, fits=True,
        )  # fmt: skip

    @property
    def load_s(self) -> float:
        """How long loading the local model took, in seconds; 0 before it is loaded."""
        return self.local.engine(0.0).load_s if self.local is not None and self.local.is_loaded else 0.0

    @property
    def backend(self) -> str:
        """What computes: each answer says who made it."""
        return "router"

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT by whom the decision names; `config.route` says what is wanted of it.

        The stream raises NoAnswer where nobody may or could answer, and ends as "interrupted" where an answer broke off.
        """
        self._check_open()
        options = self._options(config)
        planned = plan_request(self, prompt, config, options, look=True)
        resume = self.config.routing.resume_local if options.resume_local is None else options.resume_local
        conductor = Conductor(self, planned, config, resume=resume)
        self._answering.add(conductor)
        return conductor.start()

    def planned(self, prompt: Prompt, config: GenerationConfig) -> Planned:
        """Decide about PROMPT as `generate` would, without asking anybody or opening a socket."""
        return plan_request(self, prompt, config, self._options(config))

    def _options(self, config: GenerationConfig) -> RouteOptions:
        options = config.route or RouteOptions()
        return replace(options, scope=self.scope) if options.scope == "auto" else options

    # ---- what a decision looks at (planning.Surroundings)

    def examine(self, parts: Sequence[Part]) -> Verdict:
        """Say what is private in PARTS, by the detectors, the user's rules, and what was private before."""
        verdict = self._detector.examine(parts)
        touched = tuple(
            Finding(
                id="privacy.taint",
                kind="part of an earlier private text",
                start=0,
                end=len(part.text),
                masked="…",
                where=part.where,
                message=part.message,
                redactable=False,
            )
            for part in parts
            if self._taint.touches(part.text)
        )
        if not touched:
            return verdict
        return replace(verdict, placement="local_only", findings=(*verdict.findings, *touched))

    def state(self, *, look: bool) -> State:
        """Return this machine and the endpoints as they are now; with LOOK one may be connected to, to see whether there is a network."""
        from edgeai.engines.cloud.online import online

        limited = self.config.routing.usd_per_day is not None
        spent = self.ledger.spent_usd() if limited and self.ledger is not None else 0.0
        clouds = tuple(self._cloud_state(cloud) for cloud in self.config.cloud)
        hosts = [endpoint for cloud in self.config.cloud if (endpoint := self._known(cloud)) is not None]
        return State(
            local=None if self.local is None else self._machine.local_state(self.local),
            clouds=clouds,
            online=online(hosts, probe=look and self.config.routing.policy != "offline"),
            metered=self._machine.is_metered(),
            spent_usd=spent,
        )

    def _cloud_state(self, cloud: CloudSettings) -> CloudState:
        breaker = self._breakers[cloud.name]
        try:
            problem = self.endpoint(cloud.name, cloud.model)[0].problem()
        except EdgeAIError as error:
            problem = error.message
        return CloudState(
            name=cloud.name, model=cloud.model, context=cloud.context, quality=cloud.quality, breaker=breaker.state, problem=problem,
            usd_per_million_input=cloud.usd_per_million_input, usd_per_million_output=cloud.usd_per_million_output,
        )  # fmt: skip

    def _known(self, cloud: CloudSettings) -> Upstream | None:
        with contextlib.suppress(EdgeAIError):
            return self.endpoint(cloud.name, cloud.model)[0]
        return None

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens TEXT is for the local model, None while that is not loaded."""
        if self.local is None or not self.local.is_loaded:
            return None
        return len(self.local.engine(0.0).tokenize(text))

    def problem_with(self, name: str, prompt: Prompt, config: GenerationConfig) -> str | None:
        """Say why the endpoint NAME cannot be asked this, None where it can."""
        try:
            self.endpoint(name, self._settings[name].model)[0].encode(prompt, config)
        except UsageError as error:
            return error.message
        return None

    # ---- what requests share (conductor.Orchestra)

    def endpoint(self, name: str, model: str) -> tuple[Upstream, Breaker]:
        """Return the endpoint NAME, to be asked for MODEL, and its breaker. Raises UsageError for an address that cannot be one."""
        with self._lock:
            key = (name, model)
            if key not in self._endpoints:
                self._endpoints[key] = self._make(replace(self._settings[name], model=model))
            return self._endpoints[key], self._breakers[name]

    def _cloud_endpoint(self, settings: CloudSettings) -> Upstream:
        from edgeai.engines.cloud import Endpoint

        return Endpoint(settings, self.config.timeouts)

    def head(self) -> Head | None:
        """Return the calibrated confidence of the local model, None where there is none for this file."""
        return None if self.local is None else self._machine.head(self.local)

    def finished(self, conductor: Conductor) -> None:
        """Write down what happened, mark what came of something private, and put the route into the last chunk."""
        planned, answer, end = conductor.planned, conductor.answer, conductor.answer.end
        text = answer.text
        if planned.facts.placement == "local_only":
            private = (
                {finding.where for finding in planned.verdict.findings} if planned.verdict.failed is None else None
            )
            for part in planned.parts:
                if private is None or part.where in private:
                    self._taint.mark(part.text)
            self._taint.mark(text)
        cost = self._cost_usd(conductor)
        if self.ledger is not None:
            self.ledger.record(self._entry(conductor, text, cost))
        if end is not None:
            notices = (*end.notices, *self._ledger_notices())
            answer.end = replace(end, route=self._route(conductor, cost), notices=notices)

    def _route(self, conductor: Conductor, cost: float) -> Mapping[str, Any]:
        attempts = [attempt.to_dict() for attempt in conductor.attempts]
        return conductor.planned.to_dict() | {
            "answered_by": conductor.answer.winner,
            "attempts": attempts,
            "egress_bytes": sum(attempt["sent_bytes"] for attempt in attempts),
            "cost_usd": cost,
        }

    def _entry(self, conductor: Conductor, text: str, cost: float) -> Any:
        from edgeai.routing.entry import Entry

        planned, answer, end = conductor.planned, conductor.answer, conductor.answer.end
        error = answer.error
        return Entry(
            id=secrets.token_hex(8),
            facts=planned.facts,
            state=planned.state,
            decision=planned.decision,
            verdict=planned.verdict,
            attempts=tuple(attempt.to_dict() for attempt in conductor.attempts),
            answered_by=answer.winner,
            finish_reason=None if end is None or error is not None else end.finish_reason,
            error=None if error is None else getattr(error, "message", str(error)),
            usage=None if end is None else end.usage,
            cost_usd=cost,
            config=self.config.sha256,
            prompt=planned.prompt,
            answer=text,
        )

    def _cost_usd(self, conductor: Conductor) -> float:
        """Return what the endpoints take for what was asked of them: what they counted, or the estimate for an answer that broke off."""
        end, clouds = conductor.answer.end, {f"cloud/{cloud.name}": cloud for cloud in self.config.cloud}
        total = 0.0
        for attempt in conductor.attempts:
            cloud = clouds.get(attempt.model)
            if cloud is None or not attempt.received_bytes:
                continue
            usage = end.usage if end is not None and attempt.status in ("ok", "interrupted", "cancelled") else None
            prompt = usage.prompt_tokens if usage is not None else conductor.planned.facts.prompt_tokens
            completion = usage.completion_tokens if usage is not None else 0
            if attempt.status == "failed" and attempt.kind not in ("timeout", "malformed"):
                continue  # an error is not billed
            total += (prompt * cloud.usd_per_million_input + completion * cloud.usd_per_million_output) / 1e6
        return total

    def _ledger_notices(self) -> Sequence[Any]:
        return () if self.ledger is None else self.ledger.take_notices()

    # ---- what only the local model can

    def _engine(self) -> Engine:
        self._check_open()
        if self.local is None:
            raise UsageError("there is no local model", hint="edgeai pull smollm2")
        return self.local.engine(self.config.timeouts.total_s)

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
        """Return what the local model says of TEXTS."""
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
        """End what runs, free the local model, close connections and write what is left for the ledger."""
        if self._closed:
            return
        self._closed = True
        for conductor in list(self._answering):
            conductor.answer.cancel()
        self.timers.close()
        with self._lock:
            endpoints = list(self._endpoints.values())
        for endpoint in endpoints:
            endpoint.close()
        if self.local is not None:
            self.local.close()
        if self.ledger is not None:
            self.ledger.close()


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
