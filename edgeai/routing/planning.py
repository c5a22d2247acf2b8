"""From a prompt to who may answer it: what is private in it, what else is known, and the decision."""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeai.config import POLICIES, CloudSettings, Config
from edgeai.errors import UsageError
from edgeai.routing.explanation import explain, explain_lines
from edgeai.routing.policy import decide
from edgeai.routing.request import CloudState, Decision, Facts, Part, State, Verdict
from edgeai.routing.tasks import difficulty, task_of
from edgeai.types import GenerationConfig, Message, Prompt, RouteOptions

if TYPE_CHECKING:
    from edgeai.routing.privacy.detector import Detector
    from edgeai.routing.privacy.redact import Redactor

__all__ = ["Planned", "Scope", "plan_request", "scope_of"]

QUALITIES = {"auto": None, "auto:private": "local-only", "auto:quality": "cloud-first"}
"""Names of a route → the policy they stand for; None is that of the configuration."""
WEIGHING = ("cheapest-that-is-good-enough",)
"""Policies that look at the difficulty; the kind of task matters where an ability was measured."""
BYTES_PER_TOKEN = 3.5
"""How many bytes of text a token is, where there is no tokenizer to ask: about what small vocabularies give for English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the name of a route means: the policy it asks for, who alone may answer ("any", "local" or an endpoint), the local model."""

    policy: str | None = None
    only: str = "any"
    local_model: str | None = None
    cloud_model: str | None = None


def scope_of(name: str, clouds: Sequence[CloudSettings]) -> Scope:
    """Return what NAME means: auto, auto:private, auto:quality, local, local/MODEL, cloud, cloud/NAME, or a policy.

    `cloud/NAME` is an endpoint by its name or its model; with one endpoint whose model is open ("default") any model of it.
    Raises UsageError for anything else, with what is close.
    """
    if name in QUALITIES:
        return Scope(policy=QUALITIES[name])
    if name in POLICIES:
        return Scope(policy=name)
    kind, _, model = name.partition("/")
    if kind == "local" and (model or name == "local"):
        return Scope(only="local", local_model=model or None)
    if kind == "cloud" and clouds and (model or name == "cloud"):
        return _cloud_scope(model, clouds)
    if kind == "cloud":
        raise UsageError(f"{name!r} needs an endpoint", hint="edgeai config init, or set OPENAI_BASE_URL")
    known = [*QUALITIES, *POLICIES, "local", *(f"cloud/{cloud.name}" for cloud in clouds)]
    close = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"{name!r} is no route", hint=f"did you mean {close[0]!r}?" if close else f"routes are {', '.join(known)}"
    )


def _cloud_scope(model: str, clouds: Sequence[CloudSettings]) -> Scope:
    found = next((cloud for cloud in clouds if not model or model in (cloud.name, cloud.model)), None)
    if found is not None:
        return Scope(only=found.name)
    if len(clouds) == 1 and clouds[0].model == "default":
        return Scope(only=clouds[0].name, cloud_model=model)
    known = [name for cloud in clouds for name in (cloud.name, cloud.model)]
    close = difflib.get_close_matches(model, known, n=1)
    hint = f"did you mean 'cloud/{close[0]}'?" if close else f"endpoints are {', '.join(known)}"
    raise UsageError(f"there is no endpoint {model!r}", hint=hint)


class Surroundings(Protocol):
    """What a decision looks at beside the request (router.Router)."""

    config: Config

    detector: Detector

    def state(self, *, look: bool) -> State:
        """Return this machine and the endpoints as they are now; only with LOOK may a socket be opened, to see if there is a network."""

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens TEXT is, None where the local model is not loaded."""

    def problem_with(self, name: str, prompt: Prompt, config: GenerationConfig) -> str | None:
        """Say why the endpoint NAME cannot be asked this, None where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A request that has been decided: what was found in it, what the decision was made from, and what would be sent.

    `sent` is what an endpoint would get: the prompt and what is asked of it, or what the redactor made of them; None where nothing may
    leave.
    """

    prompt: Prompt
    sent: tuple[Prompt, GenerationConfig] | None
    verdict: Verdict
    facts: Facts
    state: State
    decision: Decision
    config: Config
    parts: tuple[Part, ...] = field(default=(), repr=False)
    redactor: Redactor | None = field(default=None, repr=False)
    took_ms: float = 0.0

    def described(self) -> Planned:
        """Return it with the kind and the difficulty of the question, which a decision that does not weigh them is made without."""
        return replace(self, facts=described(self.facts, self.prompt))

    def to_dict(self) -> dict[str, Any]:
        """Return the decision with its reasons, as `edgeai route --json` prints it."""
        found = explain(
            self.decision,
            self.facts,
            self.verdict,
            self.state,
            router_ms=self.took_ms,
            config_hash=self.config.sha256[:16],
        )
        return found | {"why": self.why}

    def lines(self) -> list[str]:
        """Return the same for people."""
        return explain_lines(self.to_dict())

    @property
    def why(self) -> str:
        """What decided it, without who answers."""
        if self.verdict.placement == "local_only":
            return f"{'redacted' if self.facts.redacted else 'stays here'}: {self.verdict.reason}"
        reason, target = self.decision.reason, self.decision.target
        return reason if target is None else reason.removeprefix(f"{target}: ")

    def line(self) -> str:
        """Return the decision in one line."""
        return f"{self.decision.target or 'nobody'} · {self.why}"


def plan_request(
    around: Surroundings, prompt: Prompt, config: GenerationConfig, options: RouteOptions, *, look: bool = False
) -> Planned:
    """Decide who may answer PROMPT; nothing is computed with the model.

    Everything that would be sent is examined, whoever wrote it; only a verdict that nothing is private lets an endpoint be a candidate.
    With LOOK a socket may be opened to see whether there is a network, but never for what stays here.
    """
    from edgeai.routing.privacy.conversation import parts_of

    began = time.perf_counter()
    if not prompt:
        raise UsageError("there are no messages to answer", hint="give at least one message with the role 'user'")
    # What is examined is what is sent, whatever the caller does to it meanwhile.
    prompt, config = copy.deepcopy(prompt), config.with_(tools=copy.deepcopy(tuple(config.tools)))
    scope = scope_of(options.scope, around.config.cloud)
    parts = _tagged(parts_of(prompt, files=dict(options.files), tools=config.tools), options)
    parts += [Part(text=text, where=where, message=len(parts)) for where, text in _asked_beside(config, scope)]
    verdict = around.detector.examine(parts)
    redactor, sent = None, None if verdict.placement == "local_only" else (prompt, config)
    wants = around.config.privacy.redact if options.redact is None else options.redact
    if verdict.placement == "local_only" and wants:
        redactor, sent = _redacted(around.detector, verdict, prompt, config)
    routing = around.config.routing
    name = options.policy or scope.policy or routing.policy
    if name not in POLICIES:
        raise UsageError(f"policy {name!r} is not possible", hint=f"policies are {', '.join(POLICIES)}")
    facts = _facts(around, prompt, config, scope, verdict, redacted=redactor is not None)
    state = _with_problems(around, sent, _of_scope(around.state(look=look and sent is not None), scope))
    if name in WEIGHING or (state.local is not None and state.local.ability):
        facts = described(facts, prompt)
    decision = decide(facts, state, replace(routing, policy=name))
    return Planned(
        prompt=prompt, sent=sent, verdict=verdict, facts=facts, state=state, decision=decision, config=around.config,
        parts=tuple(parts), redactor=redactor, took_ms=1000 * (time.perf_counter() - began),
    )  # fmt: skip


def _tagged(parts: list[Part], options: RouteOptions) -> list[Part]:
    """Return PARTS with the request's own tag. A system message has it only where nothing else could: other requests have it, too."""
    if not options.private:
        return parts
    alone = all(part.where == "system" for part in parts)
    return [replace(part, private=part.private or alone or part.where != "system") for part in parts]


BESIDE = ("stop text", "form of the answer", "beginning of the answer", "name of the model")


def _asked_beside(config: GenerationConfig, scope: Scope) -> list[tuple[str, str]]:
    """Return the texts that would be sent beside the prompt, those of JSON as their reader will understand them."""
    from edgeai.routing.privacy.conversation import strings_in

    found = [("stop text", text) for text in config.stop]
    if scope.cloud_model is not None:
        found.append(("name of the model", scope.cloud_model))
    if config.constraint is not None:
        source = config.constraint.source
        found += [("form of the answer", text) for text in dict.fromkeys((source, *strings_in(source)))]
    return found + ([("beginning of the answer", config.prefill)] if config.prefill else [])


def _redacted(
    detector: Detector, verdict: Verdict, prompt: Prompt, config: GenerationConfig
) -> tuple[Redactor | None, tuple[Prompt, GenerationConfig] | None]:
    """Return who puts things back, and what may leave: nothing where placeholders cannot stand for all that was found."""
    from edgeai.routing.privacy.redact import NotRedactable, Redactor, is_redactable

    if not is_redactable(verdict) or any(finding.where in BESIDE for finding in verdict.findings):
        return None, None  # what is asked beside the prompt has no placeholders
    redactor = Redactor(detector)
    try:
        tools = tuple(redactor.redact_json(tool) for tool in config.tools)
        return redactor, (redactor.redact(prompt), config.with_(tools=tools))
    except NotRedactable:
        return None, None


def _facts(
    around: Surroundings, prompt: Prompt, config: GenerationConfig, scope: Scope, verdict: Verdict, *, redacted: bool
) -> Facts:
    whole = prompt if isinstance(prompt, str) else "\n".join(str(message.get("content") or "") for message in prompt)
    tokens = around.count_tokens(whole)
    uses_tools = bool(config.tools) or (
        not isinstance(prompt, str) and any(turn.get("role") == "tool" or turn.get("tool_calls") for turn in prompt)
    )
    return Facts(
        placement="any" if redacted else verdict.placement,
        prompt_tokens=round(len(whole.encode(errors="replace")) / BYTES_PER_TOKEN) + 1 if tokens is None else tokens,
        max_tokens=config.max_tokens,
        tools=uses_tools,
        constrained=config.constraint is not None,
        scope=scope.only,
        deadline_s=config.max_seconds,
        rules=tuple(dict.fromkeys(item.id for item in verdict.findings))
        or (("privacy.unsure",) if verdict.failed else ()),
        redacted=redacted,
    )


def described(facts: Facts, prompt: Prompt) -> Facts:
    """Return FACTS with the kind and the difficulty of the last question in PROMPT."""
    question = prompt if isinstance(prompt, str) else _last_question(prompt)
    return replace(facts, task=task_of(question), difficulty=difficulty(question))


def _last_question(messages: Sequence[Message]) -> str:
    return next((str(turn.get("content") or "") for turn in reversed(messages) if turn.get("role") == "user"), "")


def _of_scope(state: State, scope: Scope) -> State:
    """Return STATE with the model that SCOPE names at its endpoint."""
    if scope.cloud_model is None:
        return state
    model = scope.cloud_model
    return replace(
        state,
        clouds=tuple(replace(cloud, model=model) if cloud.name == scope.only else cloud for cloud in state.clouds),
    )


def _with_problems(around: Surroundings, sent: tuple[Prompt, GenerationConfig] | None, state: State) -> State:
    """Return STATE where endpoints that cannot be asked for what would be SENT have that as their problem."""
    if sent is None:
        return state

    def asked(cloud: CloudState) -> CloudState:
        problem = cloud.problem or around.problem_with(cloud.name, *sent)
        return cloud if problem is None else replace(cloud, problem=problem)

    return replace(state, clouds=tuple(asked(cloud) for cloud in state.clouds))


def texts_of_files(paths: Sequence[Path]) -> Mapping[str, str]:
    """Return the text of each of PATHS. Raises UsageError for a file that cannot be read as text."""
    found = {}
    for path in paths:
        try:
            found[str(path)] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"{str(path)!r} cannot be read: {why}", hint="name a text file") from error
    return found
