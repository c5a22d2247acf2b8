"""Who answers, and why: a pure function of what is known of a request, of this machine and of the endpoints.

The same facts, state and settings give the same decision: nothing here reads a clock, a file or a network, and nothing is drawn. Where
a request may go comes first: what must stay here excludes every endpoint before anything else is looked at, and no later rule can
bring one back. Rules then exclude who cannot answer; what is left is put in order by the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeai.config import RoutingSettings
from edgeai.routing.request import Candidate, CloudState, Decision, Facts, LocalState, State

__all__ = [
    "ANSWER_TOKENS",
    "HARDNESS",
    "LOW_BATTERY",
    "cloud_name",
    "cost_usd",
    "decide",
    "expected_ability",
    "local_name",
]

ANSWER_TOKENS = 512
"""How long an answer is taken to be where the caller set no limit; only costs are estimated from it."""
CONTEXT = "context:"
"""How an exclusion by length begins. The tokens of a prompt are an estimate where the local model is not loaded."""
BUSY = 0.9
"""Others use more of the processor than this: the local model would be slow, and would slow them down."""
LOW_BATTERY = 0.2
"""The share of charge below which computing here costs more than it is worth; where laptops begin to warn."""
LOAD_S = 0.5
LOAD_BYTES_S = 400e6
"""How long a model takes to load, at a guess: a start, and its bytes at the speed of a plain disk (0.77 s for 98 MB: cold_start.json)."""
HARDNESS = 0.32
"""How far the log-odds of a right answer fall from the middle of the scale of difficulty to its end: half of what they fell, from end to
end, for the weaker model of bench/results/routing.json. Those of the stronger one did not fall; to take the same for all is careful."""


def local_name(state: LocalState) -> str:
    """Return the routed name of the local model."""
    return f"local/{state.model}"


def cloud_name(state: CloudState) -> str:
    """Return the routed name of an endpoint."""
    return f"cloud/{state.name}"


def cost_usd(facts: Facts, cloud: CloudState) -> float:
    """Return what the request would cost at CLOUD: its tokens, and an answer of `max_tokens` (ANSWER_TOKENS), at its prices."""
    answer = ANSWER_TOKENS if facts.max_tokens is None else facts.max_tokens
    return (facts.prompt_tokens * cloud.usd_per_million_input + answer * cloud.usd_per_million_output) / 1e6


def expected_ability(ability: float, difficulty: float) -> float:
    """Return the share of right answers that a model of ABILITY gives to questions of a DIFFICULTY, 0 to 1; up to 0.5 it is its ability.

    The log-odds fall by HARDNESS from the middle to the end of the scale, as in the model of Rasch (1960). A low difficulty raises
    nothing: it was measured on exam questions, and most that people ask is shorter than those, whether it is easy or not.
    """
    sure = min(max(ability, 1e-6), 1 - 1e-6)
    odds = math.log(sure / (1 - sure)) - 2 * HARDNESS * max(0.0, difficulty - 0.5)
    return 1 / (1 + math.exp(-odds))


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate: `ability` is what is known of how well it does this kind of task, `against` why another should go first."""

    model: str
    is_local: bool
    est_usd: float = 0.0
    ability: float | None = None
    excluded_by: str | None = None
    against: str | None = None

    @property
    def candidate(self) -> Candidate:
        """It, as decisions have it."""
        return Candidate(model=self.model, excluded_by=self.excluded_by, est_usd=self.est_usd)


def decide(facts: Facts, state: State, settings: RoutingSettings) -> Decision:
    """Return who may answer a request of which FACTS are known, in the order in which to ask, and why the others may not.

    A request that is "local_only" has no endpoint in its order, whatever else holds; one that also asks for an endpoint has nobody.
    """
    local = None if state.local is None else _judge_local(facts, state.local, settings)
    clouds = tuple(_judge_cloud(facts, cloud, state, settings) for cloud in state.clouds)
    here = local is not None and local.excluded_by is None
    if state.metered and here and facts.scope == "any":
        clouds = tuple(
            cloud if cloud.excluded_by else replace(cloud, excluded_by="metered network") for cloud in clouds
        )
    if local is not None and not any(cloud.excluded_by is None for cloud in clouds):
        local = _last_resort(local)
    judged = ((local,) if local is not None else ()) + clouds
    able = [item for item in judged if item.excluded_by is None]
    order, why = ORDERS[settings.policy](able, facts, settings)
    others = [item for item in judged if item.excluded_by is not None]
    first_here = bool(order) and order[0].is_local
    cascade = settings.policy == "cascade" and first_here and len(order) > 1
    calibrated = state.local is not None and state.local.calibrated
    if cascade and not calibrated:
        cascade = False
        why += "; its confidence is not calibrated for this file, and so not used"
    return Decision(
        placement=facts.placement,
        policy=settings.policy,
        reason=_reason(facts, order, others, why),
        candidates=tuple(item.candidate for item in (*order, *others)),
        cascade=cascade,
        hedge=_may_hedge(order, state, settings),
    )


def _last_resort(local: Judged) -> Judged:
    """Return LOCAL without a doubt about its context: where nobody else may answer it tries, and counts for itself."""
    doubtful = local.excluded_by is not None and local.excluded_by.startswith(CONTEXT)
    return replace(local, excluded_by=None) if doubtful else local


def _may_hedge(order: Sequence[Judged], state: State, settings: RoutingSettings) -> bool:
    """Whether the local model may start beside a slow endpoint; with little charge left, nothing is computed to be thrown away."""
    if settings.policy != "cloud-first" or settings.hedge_s <= 0 or not order or order[0].is_local:
        return False
    low = state.local is not None and _low_battery(state.local)
    return not low and any(item.is_local for item in order)


# ---- who cannot answer


def _judge_local(facts: Facts, local: LocalState, settings: RoutingSettings) -> Judged:
    excluded = None
    if facts.scope not in ("any", "local"):
        excluded = f"{facts.scope!r} was asked for"
    elif local.problem is not None:
        excluded = local.problem
    elif facts.tools:
        excluded = "tools"
    elif local.context is not None and facts.prompt_tokens >= local.context:
        excluded = f"{CONTEXT} {facts.prompt_tokens} tokens, {local.context} fit"
    elif not local.loaded and local.free_bytes is not None and local.needed_bytes > local.free_bytes:
        excluded = f"does not fit: needs {_gigabytes(local.needed_bytes)}, {_gigabytes(local.free_bytes)} free"
    return Judged(
        model=local_name(local),
        is_local=True,
        ability=local.ability.get(facts.task),
        excluded_by=excluded,
        against=_against(facts, local, settings),
    )


def _against(facts: Facts, local: LocalState, settings: RoutingSettings) -> str | None:
    """Return why an endpoint should answer before the local model, where one may; None where nothing speaks for that."""
    ability = local.ability.get(facts.task)
    load_s = 0.0 if local.loaded else LOAD_S + local.needed_bytes / LOAD_BYTES_S
    longest = facts.prompt_tokens + (facts.max_tokens or 0)
    if local.context is not None and longest > local.context:
        return f"{CONTEXT} {longest} tokens with the answer, {local.context} fit"
    if facts.deadline_s is not None and facts.deadline_s < load_s:
        return f"deadline in {facts.deadline_s:.1f} s, loading takes about {load_s:.1f} s"
    if ability is not None and ability < settings.min_ability:
        return f"right in {ability:.0%} of {facts.task}, below {settings.min_ability:.0%}"
    if local.load > BUSY:
        return f"others use {local.load:.0%} of the processor"
    if _low_battery(local):
        return f"battery {local.battery or 0.0:.0%}"
    return None


def _low_battery(local: LocalState) -> bool:
    return local.on_battery and local.battery is not None and local.battery < LOW_BATTERY


def _judge_cloud(facts: Facts, cloud: CloudState, state: State, settings: RoutingSettings) -> Judged:
    usd = cost_usd(facts, cloud)
    forbidden = _forbidden(facts, cloud, state, settings)
    return Judged(
        model=cloud_name(cloud),
        is_local=False,
        est_usd=usd,
        ability=cloud.quality,
        excluded_by=_unable(facts, cloud, usd, state, settings) if forbidden is None else forbidden,
    )


def _forbidden(facts: Facts, cloud: CloudState, state: State, settings: RoutingSettings) -> str | None:
    """Return why nothing of the request may be sent to CLOUD: what is private comes before everything else."""
    if facts.placement != "any":
        return next(filter(None, facts.rules), "privacy")
    if facts.scope == "local":
        return "this machine was asked for"
    if facts.scope not in ("any", cloud.name):
        return f"{facts.scope!r} was asked for"
    if settings.policy in ("local-only", "offline"):
        return f"policy {settings.policy}"
    if state.online in ("offline", "forced_offline"):
        return state.online.replace("_", " ")
    return None


def _unable(facts: Facts, cloud: CloudState, usd: float, state: State, settings: RoutingSettings) -> str | None:
    """Return why CLOUD cannot answer now, or may not for its price."""
    if cloud.problem is not None:
        return cloud.problem
    if cloud.breaker == "open":
        return "breaker open"
    longest = facts.prompt_tokens + (1 if facts.max_tokens is None else facts.max_tokens)
    if longest > cloud.context:
        return f"{CONTEXT} {longest} tokens with the answer, {cloud.context} fit"
    limit = settings.usd_per_day
    if limit is not None and usd > 0 and state.spent_usd + usd > limit:
        more = "" if state.spent_usd >= limit else f", {usd:.4f} more"
        return f"budget: {state.spent_usd:.2f} of {limit:.2f} USD spent{more}"
    return None


# ---- in which order

Ordered = tuple[list[Judged], str]


def _stay(able: Sequence[Judged], facts: Facts, settings: RoutingSettings) -> Ordered:  # noqa: ARG001
    return [item for item in able if item.is_local], "nothing leaves"


def _local_first(able: Sequence[Judged], facts: Facts, settings: RoutingSettings) -> Ordered:  # noqa: ARG001
    """Local, unless something speaks against it and an endpoint may answer; the one of them that is not asked first is the fallback."""
    here, away = _parted(able)
    if here and away and here[0].against is not None and not facts.constrained:
        return away + here, f"{here[0].model} goes last: {here[0].against}"
    return here + away, "it can answer" if here else "the local model cannot answer"


def _cloud_first(able: Sequence[Judged], facts: Facts, settings: RoutingSettings) -> Ordered:  # noqa: ARG001
    here, away = _parted(able)
    if here and away and facts.constrained:
        return here + away, "only a local answer is held to its form"
    if away:
        return away + here, "an endpoint may be asked"
    return here, "no endpoint may be asked"


def _cheapest(able: Sequence[Judged], facts: Facts, settings: RoutingSettings) -> Ordered:
    """Return the cheapest of those that are good enough for a question of this difficulty, then the others, the best first."""

    def expected(item: Judged) -> float:
        return -1.0 if item.ability is None else expected_ability(item.ability, facts.difficulty)

    good = [item for item in able if expected(item) >= settings.min_ability]
    good.sort(key=lambda item: (item.est_usd, not item.is_local, -expected(item)))
    rest = sorted((item for item in able if item not in good), key=lambda item: -expected(item))
    unknown = next((item for item in able if item.ability is None), None)
    note = f"; {unknown.model} is not measured for {facts.task} (`edgeai route calibrate`)" if unknown else ""
    if not good:
        return rest, f"nobody is known to be right in {settings.min_ability:.0%} of such questions, so the best{note}"
    share = f"about {expected(good[0]):.0%} right at difficulty {facts.difficulty:.2f}"
    return good + rest, f"cheapest that is good enough, {share}, {good[0].est_usd:.4f} USD{note}"


def _parted(able: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    return [item for item in able if item.is_local], [item for item in able if not item.is_local]


ORDERS: dict[str, Callable[[Sequence[Judged], Facts, RoutingSettings], Ordered]] = {
    "local-only": _stay,
    "offline": _stay,
    "local-first": _local_first,
    "cascade": _local_first,
    "cloud-first": _cloud_first,
    "cheapest-that-is-good-enough": _cheapest,
}


# ---- in words


def _reason(facts: Facts, order: Sequence[Judged], others: Sequence[Judged], why: str) -> str:
    """Return one line: who is asked first, and what decided that."""
    if not order:
        listed = "; ".join(f"{item.model}: {item.excluded_by}" for item in others)
        return f"nobody may answer: {listed or 'there is no model and no endpoint'}"
    first = order[0]
    if facts.placement != "any":
        found = ", ".join(dict.fromkeys(facts.rules)) or "what was examined is not known to be public"
        return f"{first.model}: the request stays on this machine ({found})"
    if facts.scope != "any":
        return f"{first.model}: it was asked for"
    passed = [item for item in others if item.is_local is not first.is_local]
    said = f" ({passed[0].model}: {passed[0].excluded_by})" if passed else ""
    return f"{first.model}: {why}{said}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
