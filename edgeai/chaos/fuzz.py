"""Random sequences of faults against a subject, and what must hold after every one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from edgeai.chaos.connections import PORTS
from edgeai.chaos.faults import ATTEMPTS, DEADLINE_S, FAULTS, SLACK_S
from edgeai.chaos.lab import CA_FILE, UPSTREAM, Lab
from edgeai.chaos.score import LEFT_S
from edgeai.chaos.spy import Logs, connections
from edgeai.chaos.subject import KEY, Setting, Subject, kind_of
from edgeai.types import Report, Row

__all__ = ["Broken", "Fuzzed", "fuzz", "sequence"]

SLOW = (
    "accept-silent", "never-answers", "half-close", "late", "head-then-silence", "words-then-silence", "comments-forever",
    "words-then-comments", "informational-forever", "drip-head", "drip-body", "drip-after-words", "slow-words", "half-close-midway",
    "slow-good", "huge-body", "huge-line", "huge-space", "huge-header", "many-headers", "million-chunks", "many-events", "gzip-bomb",
    "after-done", "429-int", "429-date", "429-float", "429-ms", "429-body", "503-retry-after", "status-401", "status-402", "status-403",
    "quota", "429-hour", "429-1e9", "429-far-date", "error-401-in-200",
)  # fmt: skip
"""What takes as long as a timeout, or megabytes, or closes an endpoint for long; met seldom, so that the others are met often."""
SLOW_SHARE = 0.03
GOOD_SHARE = 0.3
LEAVE_SHARE = 0.05
RENEW = 10
"""After so many requests the subject is made anew: a circuit breaker that has opened would otherwise keep it from every later fault."""
SETTLE = 0.1
"""The share of the requests after which the resources are counted for the first time."""

MAX_FDS = 8
MAX_THREADS = 6
MAX_RSS_BYTES = 48 << 20
"""How much more there may be at the end: what a pool keeps, what an allocator does not give back."""


def _expected() -> dict[str, frozenset[str]]:
    """Return what may come of each behaviour, over all variants that serve it; calls of tools and empty answers are not asked for."""
    found: dict[str, set[str]] = {}
    for fault in FAULTS:
        for variant in fault.variants:
            if variant.tools or variant.finish or "empty" in variant.expect or variant.serve in PORTS or variant.hook:
                continue
            found.setdefault(variant.serve, set()).update(variant.expect)
    return {name: frozenset(kinds) for name, kinds in found.items()}


EXPECTED = _expected()
QUICK = tuple(name for name in EXPECTED if name not in SLOW and name != "good")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A request after which something did not hold; `sequence(seed, number)` makes it again."""

    number: int
    faults: tuple[str, ...]
    stream: bool
    got: str
    why: str


@dataclass(slots=True)
class Fuzzed:
    """What came of all requests: how many of each kind, how many attempts they took, what did not hold, and what grew.

    `reached`: requests that came to the endpoint at all. `grew` has open files (sockets among them), threads and bytes of memory.
    """

    seed: int
    requests: int = 0
    reached: int = 0
    attempts: int = 0
    slowest_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    broken: list[Broken] = field(default_factory=list)
    grew: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything held and nothing grew."""
        return self.report().ok

    def report(self) -> Report:
        """Return the counts with their limits."""
        lost = [each for each in self.broken if each.why.startswith("text")]
        limits = (("files", MAX_FDS), ("threads", MAX_THREADS), ("bytes", MAX_RSS_BYTES))
        return Report(
            rows=(
                Row(name="requests", value=str(self.requests), limit="1 or more", ok=self.requests > 0),
                Row(name="that came to the endpoint", value=str(self.reached)),
                Row(name="attempts", value=str(self.attempts)),
                *(Row(name=f"… {kind}", value=str(count)) for kind, count in self.kinds.most_common()),
                Row(name="slowest, s", value=self.slowest_s),
                Row(name="lost, doubled or foreign texts", value=float(len(lost)), limit="0", ok=not lost),
                Row(name="anything that did not hold", value=float(len(self.broken)), limit="0", ok=not self.broken),
                *(
                    Row(name=f"more {name}", value=float(self.grew.get(name, 0)), limit=f"≤ {most}", ok=self.grew.get(name, 0) <= most)
                    for name, most in limits
                ),
            )
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        broken = [
            {"number": each.number, "faults": each.faults, "stream": each.stream, "got": each.got, "why": each.why}
            for each in self.broken
        ]
        return {
            "seed": self.seed,
            **self.report().to_dict(),
            "kinds": dict(self.kinds),
            "grew": self.grew,
            "broken": broken,
        }


def sequence(seed: int, number: int) -> tuple[tuple[str, ...], bool, int | None]:
    """Return what request NUMBER meets: the faults of its attempts, whether it asks for a stream, and when its caller leaves."""
    rng = random.Random(f"{seed} {number}")  # noqa: S311 - no secret; a str is hashed the same in every process
    faults = []
    for _ in range(ATTEMPTS):
        if rng.random() < GOOD_SHARE:
            break
        faults.append(rng.choice(SLOW if rng.random() < SLOW_SHARE else QUICK))
    stream = rng.random() < 0.7
    leave = rng.randrange(1, 8) if stream and rng.random() < LEAVE_SHARE else None
    return tuple(faults), stream, leave


def fuzz(
    subject: Subject,
    lab: Lab,
    requests: int = 2000,
    *,
    seed: int = 0,
    deadline_s: float = DEADLINE_S,
    most: int = ATTEMPTS,
    renew: int = RENEW,
    progress: Callable[[int], None] = lambda _done: None,
) -> Fuzzed:
    """Ask SUBJECT so many REQUESTS, each of which meets a sequence of faults that follows from SEED and its number.

    After each: its text is a whole one of those that may come, or the beginning of one and marked; it took at most MOST attempts and no
    longer than its deadline and SLACK_S; no key went elsewhere or into a log; its connections were given up. In the end: no more files,
    threads or memory than a pool and an allocator keep.
    """
    found = Fuzzed(seed)
    setting = Setting(base_url=lab.url, ca_file=str(CA_FILE))
    before: dict[str, int] = {}
    lab.set("good")
    with Logs() as logs, connections() as outside:
        for number in range(requests):
            if number % renew == 0:
                subject.prepare(setting)
            _ask(subject, lab, number, found, deadline_s, most)
            found.requests += 1
            if any(KEY in line for line in logs.lines):
                _note(found, number, "", "the key is in a log")
            if outside:
                _note(found, number, "", f"connected to {outside[0]}")
            logs.lines.clear()
            outside.clear()
            if number == int(requests * SETTLE):
                before = resources()
            progress(number + 1)
    after = resources()
    found.grew = {name: after[name] - count for name, count in before.items()}
    return found


def _ask(subject: Subject, lab: Lab, number: int, found: Fuzzed, deadline_s: float, most: int) -> None:
    faults, stream, leave = sequence(found.seed, number)
    prompt = f"Question {number} of {found.seed}."
    lab.script(faults, seed=number)
    outcome = subject.ask(prompt, stream=stream, deadline_s=deadline_s, leave_after=leave)
    closed = lab.wait_closed(LEFT_S)
    attempts = lab.attempts
    kind = kind_of(outcome, prompt, left=leave is not None)
    found.kinds[kind] += 1
    found.reached += bool(attempts)
    found.attempts += len(attempts)
    found.slowest_s = max(found.slowest_s, outcome.wall_s)
    met = tuple(each.fault for each in attempts)
    allowed = _allowed(met, subject, left=leave is not None)
    if kind not in allowed:
        _note(
            found,
            number,
            kind,
            f"text: {outcome.text!r:.120} {outcome.error or ''!r:.120}, not {' or '.join(sorted(allowed))}",
        )
    if len(attempts) > most:
        _note(found, number, kind, f"{len(attempts)} attempts")
    if outcome.wall_s > deadline_s + SLACK_S:
        _note(found, number, kind, f"took {outcome.wall_s:.2f} s")
    if not closed:
        _note(found, number, kind, f"a connection was open {LEFT_S:g} s after the answer")
    if any(each.listener not in (*UPSTREAM, "second") for each in lab.seen):
        _note(found, number, kind, "another listener was asked")
    if KEY in outcome.said:
        _note(found, number, kind, "the key is in the outcome")


def _allowed(met: tuple[str, ...], subject: Subject, *, left: bool) -> set[str]:
    """Return the kinds that may come of a request whose attempts MET these faults."""
    kinds = {kind for name in met for kind in EXPECTED.get(name, ())} - {"tools", "empty"}
    kinds |= {"answer", "fallback"} if subject.fallback else {"answer", "error"}
    return kinds | {"interrupted", "error"} if left else kinds


def _note(found: Fuzzed, number: int, kind: str, why: str) -> None:
    faults, stream, _ = sequence(found.seed, number)
    found.broken.append(Broken(number=number, faults=faults, stream=stream, got=kind, why=why))


def resources() -> dict[str, int]:
    """Return how many files and threads this process has open, and how many bytes of memory it takes."""
    import gc

    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return {"files": files, "threads": process.num_threads(), "bytes": process.memory_info().rss}
