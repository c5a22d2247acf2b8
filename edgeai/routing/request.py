"""What is known of a request, of this machine and of the endpoints, and the decision that is made from nothing else.

These values hold no text of the request, so that the ledger can keep them and a decision can be made again under another policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "Candidate",
    "CloudState",
    "Decision",
    "Facts",
    "Finding",
    "LocalState",
    "Online",
    "Part",
    "Placement",
    "State",
    "Task",
    "Verdict",
]

Placement = Literal["local_only", "any"]
Online = Literal["online", "degraded", "offline", "forced_offline"]
Task = Literal["code", "maths", "extraction", "chat"]
Breaker = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of what a request would send: `where` names it for people ("message 3", "system", "file notes.txt", "tool call"),

    `message` is its index among the messages, `path` the file it came from, `private` the tag that it stays here.
    """

    text: str
    where: str
    message: int = 0
    path: str | None = None
    private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something private: the rule `id` ("privacy.card"), its `kind` ("card"), and the characters START to END of the text of a part.

    `masked` is a form of it that may be shown and logged, with most characters gone. `redactable`: a placeholder may stand for it;
    what a user's rule or tag marks is not.
    """

    id: str
    kind: str
    start: int
    end: int
    masked: str
    where: str = "text"
    message: int = 0
    redactable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Where a conversation may go, and why. `tier` is what was looked for; `failed` says what kept the detectors from being sure."""

    placement: Placement
    findings: tuple[Finding, ...] = ()
    tier: str = "structured"
    failed: str | None = None
    took_ms: float = 0.0

    @property
    def reason(self) -> str:
        """One line for people, like `card (1) and email (2) in message 3`."""
        if self.failed is not None:
            return self.failed
        if not self.findings:
            return "nothing private found"
        places: dict[str, dict[str, int]] = {}
        for finding in self.findings:
            kinds = places.setdefault(finding.where, {})
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
        return "; ".join(
            f"{', '.join(f'{kind} ({count})' for kind, count in kinds.items())} in {where}"
            for where, kinds in places.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a policy may know of a request. `prompt_tokens` is an estimate where the local model is not loaded.

    `difficulty`: 0 (easy) to 1, a guess from the text alone; see tasks.difficulty. `scope`: "any", "local", or the name of the only
    endpoint that was asked for. `deadline_s`: how long the caller waits, from now. `rules` are the ids of what was found.
    """

    placement: Placement
    prompt_tokens: int
    max_tokens: int | None = None
    task: Task = "chat"
    difficulty: float = 0.5
    tools: bool = False
    constrained: bool = False
    scope: str = "any"
    deadline_s: float | None = None
    rules: tuple[str, ...] = ()
    redacted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """The local model and the machine. `ability`: task → the measured share of right answers; `calibrated`: whether its confidence is.

    `load`: the share of processor time that others use, 0 to 1. `battery`: the share of charge that is left, 0 to 1, None without one.
    `problem`: why it cannot answer at all, None if it can.
    """

    model: str
    context: int | None = None
    ability: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False
    loaded: bool = False
    load: float = 0.0
    needed_bytes: int = 0
    free_bytes: int | None = None
    on_battery: bool = False
    battery: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudState:
    """An endpoint as it is now: its facts, its circuit breaker, and what is known against it (`problem`: no key, a proxy that fails …)."""

    name: str
    model: str
    context: int = 128_000
    quality: float = 0.9
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    breaker: Breaker = "closed"
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything outside the request that a policy may know."""

    local: LocalState | None = None
    clouds: tuple[CloudState, ...] = ()
    online: Online = "online"
    metered: bool = False
    spent_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that was considered, like `local/smollm2`; `excluded_by` says why it cannot answer, None for those that may, in order."""

    model: str
    excluded_by: str | None = None
    est_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Who may answer, in the order in which they are tried, and why.

    `placement` "local_only" has no candidate of a cloud that is not excluded. `cascade`: the local answer is judged by its confidence
    before it is given, and the next candidate asked below `min_confidence`. `hedge`: the local model starts when the cloud is slow.
    """

    placement: Placement
    policy: str
    reason: str
    candidates: tuple[Candidate, ...]
    cascade: bool = False
    hedge: bool = False

    @property
    def order(self) -> tuple[str, ...]:
        """The models that may answer."""
        return tuple(candidate.model for candidate in self.candidates if candidate.excluded_by is None)

    @property
    def target(self) -> str | None:
        """The model that is asked first; None where nobody may answer."""
        return self.order[0] if self.order else None

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-ready values."""
        return asdict(self) | {"target": self.target}
