"""Past requests decided again under other settings, from what the ledger kept of them, and what that would have changed.

The decision itself is exact: it is a pure function of facts and state, and both are in the row. What follows from it is not:

- cost is what was paid where the same model answers, nothing on this machine, and otherwise tokens that were counted × prices of the
  endpoint, an estimate: another model counts and writes other tokens;
- quality is the share of such questions that a model gets right (`LocalState.ability` by task, `CloudState.quality`), not a judgement of
  this answer. The interval is a percentile bootstrap over requests (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
  chapter 13): it holds what the draw of requests does, and not how far those shares themselves are off;
- under a cascade the local model answers first, and whether it would have been sure enough is known only where it was asked.

What is private is not judged again: the ledger has no texts. A request that had to stay here stays.
"""

from __future__ import annotations

import importlib
import random
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from edgeai.config import CloudSettings, RoutingSettings
from edgeai.routing.request import CloudState, Decision, Facts, LocalState, State

__all__ = ["Change", "Decide", "Replayed", "replay"]

Decide = Callable[[Facts, State, RoutingSettings], Decision]
RESAMPLES = 1000
SEED = 20240229
Basis = Literal["exact", "estimated", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One request decided again: who answered, who would have been asked first, and why. Costs in USD."""

    seq: int
    was: str | None
    now: str | None
    why: str
    usd_was: float
    usd_now: float | None
    basis: Basis
    quality: float | None
    """What the expected share of right answers would have gained; None where one of the two is not known."""

    @property
    def moved(self) -> bool:
        """Whether another model would have answered."""
        return self.was != self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What would have changed. `skipped`: rows that cannot be decided again; `unsure`: whether a cascade had stayed here is not known."""

    changes: tuple[Change, ...] = ()
    skipped: tuple[tuple[int, str], ...] = ()
    unsure: int = 0

    @property
    def moved(self) -> tuple[Change, ...]:
        """The requests that would have gone elsewhere."""
        return tuple(change for change in self.changes if change.moved)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values; every sum says of how many requests it is."""
        priced = [change for change in self.changes if change.usd_now is not None]
        moves = Counter((change.was, change.now) for change in self.moved)
        return {
            "requests": len(self.changes),
            "moved": len(self.moved),
            "moves": [{"was": was, "now": now, "count": count} for (was, now), count in moves.most_common()],
            "cost_usd": {
                "was": sum(change.usd_was for change in priced),
                "would_be": sum(change.usd_now or 0.0 for change in priced),
                "n": len(priced),
                "estimated": sum(change.basis == "estimated" for change in priced),
                "unknown": len(self.changes) - len(priced),
            },
            "quality": self._quality(),
            "unsure": self.unsure,
            "skipped": [{"seq": seq, "why": why} for seq, why in self.skipped],
            "rows": [
                {"seq": change.seq, "was": change.was, "now": change.now, "why": change.why, "usd_was": change.usd_was,
                 "usd_now": change.usd_now, "basis": change.basis, "quality": change.quality}
                for change in self.moved
            ],
        }  # fmt: skip

    def _quality(self) -> dict[str, Any]:
        gains = [change.quality for change in self.changes if change.quality is not None]
        low, high = _interval(gains)
        mean = sum(gains) / len(gains) if gains else None
        return {"gain": mean, "low": low, "high": high, "n": len(gains), "estimate": True}


def replay(
    rows: Iterable[Mapping[str, Any]],
    settings: RoutingSettings,
    *,
    clouds: Sequence[CloudSettings] | None = None,
    decide: Decide | None = None,
) -> Replayed:
    """Decide ROWS, requests of the ledger, again under SETTINGS. With CLOUDS these endpoints stand in for those of then.

    DECIDE is `policy.decide`.
    """
    if decide is None:
        decide = importlib.import_module("edgeai.routing.policy").decide
    changes, skipped, unsure = list[Change](), list[tuple[int, str]](), 0
    for row in rows:
        if row.get("kind", "request") != "request":
            continue
        seq = row["seq"] if isinstance(row.get("seq"), int) else 0
        try:
            facts, state = _built(Facts, row["facts"]), _built(State, row["state"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            skipped.append((seq, f"its facts cannot be read: {error!r:.100}"))
            continue
        if clouds is not None:
            state = replace(state, clouds=_clouds(clouds, state))
        decision = decide(facts, state, settings)
        now, sure = _answerer(decision, row, settings)
        unsure += not sure
        changes.append(_change(seq, row, facts, state, decision, now))
    return Replayed(changes=tuple(changes), skipped=tuple(skipped), unsure=unsure)


def _answerer(decision: Decision, row: Mapping[str, Any], settings: RoutingSettings) -> tuple[str | None, bool]:
    """Return who would have answered, and whether that is known: the first that may, unless a cascade had asked the next."""
    order = decision.order
    if not decision.cascade or len(order) < 2:
        # Whoever was asked first then and did not answer would not have answered now either.
        if decision.target is not None and decision.target == row["decision"].get("target") and row.get("answered_by"):
            return str(row["answered_by"]), True
        return decision.target, True
    sure = next(
        (
            attempt["confidence"]
            for attempt in row.get("attempts", ())
            if attempt.get("model") == order[0] and attempt.get("confidence") is not None
        ),
        None,
    )
    if sure is None:
        return order[0], False
    return (order[0] if sure >= settings.min_confidence else order[1]), True


def _change(
    seq: int, row: Mapping[str, Any], facts: Facts, state: State, decision: Decision, now: str | None
) -> Change:
    was = row.get("answered_by") or row["decision"].get("target")
    usd_was = float(row.get("cost_usd") or 0.0)
    usd_now, basis = (usd_was, "exact") if was == now else _cost(now, row, state)
    before, after = _quality(was, facts, state), _quality(now, facts, state)
    gain = 0.0 if was == now else None if before is None or after is None else after - before
    return Change(
        seq=seq, was=was, now=now, why=decision.reason, usd_was=usd_was, usd_now=usd_now, basis=typing.cast(Basis, basis),
        quality=gain,
    )  # fmt: skip


def _cost(model: str | None, row: Mapping[str, Any], state: State) -> tuple[float | None, Basis]:
    """Return what MODEL would have cost for the tokens that were counted; another model would have counted others."""
    if model is None or model.startswith("local/"):
        return 0.0, "exact"
    cloud, usage = _cloud(model, state), row.get("usage")
    if cloud is None or not usage:
        return None, "unknown"
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    usd = (prompt * cloud.usd_per_million_input + completion * cloud.usd_per_million_output) / 1e6
    return usd, "estimated"


def _quality(model: str | None, facts: Facts, state: State) -> float | None:
    """Return the share of questions of this task that MODEL gets right, as far as the state knows; of nobody it is 0."""
    if model is None:
        return 0.0
    if model.startswith("local/"):
        return None if state.local is None else state.local.ability.get(facts.task)
    cloud = _cloud(model, state)
    return None if cloud is None else cloud.quality


def _cloud(model: str, state: State) -> CloudState | None:
    name = model.partition("/")[2]
    return next((cloud for cloud in state.clouds if name in (cloud.name, cloud.model)), None)


def _clouds(clouds: Sequence[CloudSettings], then: State) -> tuple[CloudState, ...]:
    """Return CLOUDS as they would have been THEN: what was wrong with an endpoint of the same name was wrong with it."""
    known = {cloud.name: cloud for cloud in then.clouds}
    return tuple(
        CloudState(
            name=cloud.name, model=cloud.model, context=cloud.context, quality=cloud.quality,
            usd_per_million_input=cloud.usd_per_million_input, usd_per_million_output=cloud.usd_per_million_output,
            breaker=known[cloud.name].breaker if cloud.name in known else "closed",
            problem=known[cloud.name].problem if cloud.name in known else None,
        )
        for cloud in clouds
    )  # fmt: skip


def _built(cls: Any, values: Mapping[str, Any]) -> Any:
    """Build the dataclass CLS from a row; what the row has not gets its default, and what CLS has not is passed over."""
    kinds = typing.get_type_hints(cls)
    known = {spec.name for spec in fields(cls)}
    made = {key: _value(kinds[key], value) for key, value in values.items() if key in known}
    return cls(**made)


def _value(kind: Any, value: Any) -> Any:
    inner = next((part for part in (kind, *typing.get_args(kind)) if part in (LocalState, CloudState)), None)
    if isinstance(value, list):
        return tuple(_built(inner, item) if inner else item for item in value)
    return _built(inner, value) if inner and isinstance(value, Mapping) else value


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % interval of the mean of VALUES; of fewer than two nothing is known. The draws are the same every time."""
    if len(values) < 2:
        return None, None
    draw = random.Random(SEED)  # noqa: S311 - a bootstrap, not a secret
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]
