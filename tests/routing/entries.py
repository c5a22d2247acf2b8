"""Routed requests as the router records them, for the tests of the ledger and of its verbs."""

from __future__ import annotations

from typing import Any

from edgeai.routing.entry import Entry
from edgeai.routing.request import Candidate, CloudState, Decision, Facts, Finding, LocalState, State, Verdict
from edgeai.types import Usage

SECRET = "my card is 4111 1111 1111 1111"
ANSWER = "the card number looks valid"


def entry(name: str = "r1", *, sent: int = 0, cost: float = 0.0, task: Any = "chat", **changes: Any) -> Entry:
    """A request that stayed here; with SENT bytes one that a cloud answered."""
    model = "cloud/gpt" if sent else "local/smollm2"
    attempt = {
        "model": model, "status": "ok", "kind": None, "error": None, "ttft_s": 0.1, "wall_s": 0.5, "sent_bytes": sent,
        "received_bytes": 3 * sent, "remote": "api.example.com:443" if sent else None, "confidence": None,
    }  # fmt: skip
    found = (
        ()
        if sent
        else (Finding(id="privacy.card", kind="card", start=11, end=30, masked="4111 **** 1111", where="message 1"),)
    )
    local = Candidate(model="local/smollm2")
    cloud = Candidate(model="cloud/gpt", excluded_by=None if sent else "privacy.card", est_usd=0.01)
    values: dict[str, Any] = {
        "id": name,
        "facts": Facts(placement="any" if sent else "local_only", prompt_tokens=100, task=task),
        "state": State(
            local=LocalState(model="smollm2", ability={"chat": 0.6, "code": 0.2}),
            clouds=(CloudState(name="gpt", model="gpt-x", quality=0.9, usd_per_million_input=10.0, usd_per_million_output=30.0),),
        ),
        "decision": Decision(
            placement="any" if sent else "local_only", policy="local-first", reason="a reason",
            candidates=(cloud, local) if sent else (local, cloud),
        ),
        "verdict": Verdict(placement="any" if sent else "local_only", findings=found),
        "attempts": (attempt,),
        "answered_by": model,
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=100, completion_tokens=50),
        "cost_usd": cost,
        "config": "c0ffee" * 10,
        "prompt": [{"role": "user", "content": SECRET}],
        "answer": ANSWER,
    }  # fmt: skip
    return Entry(**(values | changes))
