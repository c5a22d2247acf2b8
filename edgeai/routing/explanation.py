"""A decision in words: as JSON for programs and the ledger, and as lines for people. No text of the request is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeai.routing.policy import cost_usd
from edgeai.routing.request import Decision, Facts, State, Verdict

__all__ = ["explain", "explain_lines", "would_have_cost_usd"]


def would_have_cost_usd(facts: Facts, state: State) -> float:
    """Return what the request would cost at the first endpoint, whether it may be asked or not; 0 without one."""
    return cost_usd(facts, state.clouds[0]) if state.clouds else 0.0


def explain(
    decision: Decision, facts: Facts, verdict: Verdict, state: State, *, router_ms: float = 0.0, config_hash: str = "",
    egress_bytes: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return everything that made DECISION, JSON-ready: the `route` of an answer, and what `edgeai route --explain --json` prints."""
    first = next((item for item in decision.candidates if item.excluded_by is None), None)
    return {
        "placement": decision.placement,
        "target": decision.target,
        "policy": decision.policy,
        "reason": decision.reason,
        "rules": [
            {
                "id": finding.id,
                "kind": finding.kind,
                "start": finding.start,
                "end": finding.end,
                "message": finding.message,
                "masked": finding.masked,
                "where": finding.where,
            }
            for finding in verdict.findings
        ],
        "examined": {"tier": verdict.tier, "failed": verdict.failed, "redacted": facts.redacted},
        "candidates": [
            {"model": item.model, "excluded_by": item.excluded_by, "est_usd": item.est_usd}
            for item in decision.candidates
        ],
        "cascade": decision.cascade,
        "hedge": decision.hedge,
        "task": facts.task,
        "difficulty": round(facts.difficulty, 3),
        "prompt_tokens": facts.prompt_tokens,
        "online": state.online,
        "egress_bytes": egress_bytes,
        "est_cost_usd": 0.0 if first is None else first.est_usd,
        "would_have_cost_usd": would_have_cost_usd(facts, state),
        "router_ms": round(router_ms, 3),
        "config_hash": config_hash[:16],
    }


def explain_lines(explained: Mapping[str, Any]) -> list[str]:
    """Return what `explain` returned as lines for people: who answers, what was found, and what became of each candidate."""
    target = explained["target"] or "nobody"
    stays = "stays on this machine" if explained["placement"] != "any" else "may leave this machine"
    lines = [f"{target}  ({explained['policy']})", f"  {explained['reason']}", f"  the request {stays}"]
    examined = explained["examined"]
    if examined["failed"]:
        lines.append(f"  it could not be examined: {examined['failed']}")
    lines += [
        f"  found {rule['kind']} {rule['masked']} in {rule['where']}  ({rule['id']})" for rule in explained["rules"]
    ]
    if examined["redacted"]:
        lines.append("  placeholders stand for it in what leaves")
    if not explained["rules"] and not examined["failed"]:
        lines.append(f"  nothing private found  (tier {examined['tier']})")
    lines.append(
        f"  {explained['task']}, difficulty {explained['difficulty']:.2f}, {explained['prompt_tokens']} tokens, {explained['online']}"
    )
    width = max((len(item["model"]) for item in explained["candidates"]), default=0)
    for rank, item in enumerate(explained["candidates"], start=1):
        fate = f"no {rank}" if item["excluded_by"] is None else f"not asked: {item['excluded_by']}"
        price = f", about {item['est_usd']:.4f} USD" if item["est_usd"] else ""
        lines.append(f"  {item['model'].ljust(width)}  {fate}{price}")
    if explained["cascade"]:
        lines.append("  the local answer is given if its confidence is high enough, else the next one is asked")
    if explained["hedge"]:
        lines.append("  the local model starts when the endpoint's first token is late")
    lines.append(
        f"  costs about {explained['est_cost_usd']:.4f} USD; in the cloud {explained['would_have_cost_usd']:.4f} USD"
    )
    return lines
