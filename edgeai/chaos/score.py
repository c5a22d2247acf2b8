"""The score card: every variant of every fault against a subject, and what came of each beside what may."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeai.chaos.faults import DEADLINE_S, FAULTS, SLACK_S, Fault, Mode, Variant
from edgeai.chaos.lab import CA_FILE, UPSTREAM, Lab
from edgeai.chaos.spy import Logs, connections, patched
from edgeai.chaos.subject import KEY, Outcome, Setting, Subject, kind_of
from edgeai.chaos.wire import Seen
from edgeai.types import Report, Row, finite

__all__ = ["Card", "Result", "score", "try_variant"]

LEFT_S = 1.0
"""How soon after an answer its connections must be given up: whoever goes away, or has another answer, stops what is paid for."""
EARLY_S = 0.03
"""How much earlier than it was asked a second attempt may come: what one clock rounds and the other does not."""
PRIVATE = " My card is 4111 1111 1111 1111."
"""A number with a right check digit that is nobody's: the card that payment services give for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one variant in one mode. `got`: the kinds of its outcomes; `why`: what is wrong, empty where nothing is."""

    number: int
    fault: str
    variant: str
    mode: Mode
    expected: str
    got: str
    why: tuple[str, ...] = ()
    wall_s: float = 0.0
    attempts: int = 0
    applicable: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; what does not apply is not."""
        return not self.why


@dataclass(frozen=True, slots=True)
class Card:
    """All results of one subject."""

    results: tuple[Result, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether every fault passed, and there is one."""
        return bool(self.results) and all(result.ok for result in self.results)

    @property
    def passed(self) -> int:
        """How many faults passed in all of their variants that apply, one at least."""
        return sum(ok and applies for ok, applies in self._by_fault().values())

    @property
    def applicable(self) -> int:
        """How many faults apply to the subject."""
        return sum(applies for _, applies in self._by_fault().values())

    def _by_fault(self) -> dict[int, tuple[bool, bool]]:
        found: dict[int, tuple[bool, bool]] = {}
        for result in self.results:
            ok, applies = found.get(result.number, (True, False))
            found[result.number] = (ok and result.ok, applies or result.applicable)
        return found

    def report(self) -> Report:
        """Return one row for each variant and mode that applies."""
        return Report(
            rows=tuple(
                Row(
                    name=f"{result.number} {result.variant} ({result.mode})",
                    value="; ".join([result.got, *result.why]),
                    limit=result.expected,
                    ok=result.ok,
                )
                for result in self.results
                if result.applicable
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the score card as JSON-ready values."""
        rows = [finite({**asdict(result), "why": list(result.why), "ok": result.ok}) for result in self.results]
        return {
            "ok": self.ok,
            "passed": self.passed,
            "applicable": self.applicable,
            "faults": len(self._by_fault()),
            "results": rows,
        }


def score(
    subject: Subject,
    lab: Lab,
    faults: Iterable[Fault] = FAULTS,
    *,
    deadline_s: float = DEADLINE_S,
    seed: int = 0,
    each: Callable[[Result], None] = lambda _result: None,
) -> Card:
    """Try SUBJECT with every variant of FAULTS; EACH is told every result as it comes.

    The lab must be the endpoint of SUBJECT. The lab's faults and the prompts follow from SEED.
    """
    found = []
    for fault in faults:
        for variant in fault.variants:
            for mode in variant.modes:
                result = try_variant(subject, lab, fault, variant, mode, deadline_s=deadline_s, seed=seed)
                each(result)
                found.append(result)
    return Card(tuple(found))


def try_variant(
    subject: Subject,
    lab: Lab,
    fault: Fault,
    variant: Variant,
    mode: Mode,
    *,
    deadline_s: float = DEADLINE_S,
    seed: int = 0,
) -> Result:
    """Set SUBJECT and LAB up for VARIANT, ask, and judge what came."""
    allowed = _allowed(variant, subject)
    found = {
        "number": fault.number, "fault": fault.name, "variant": variant.name, "mode": mode, "expected": " or ".join(allowed),
    }  # fmt: skip
    setting = Setting(
        base_url=_place(variant.where, lab), ca_file=str(CA_FILE), policy=variant.policy, hook=variant.hook,
        private=variant.private, patched=variant.patch is not None, usual=variant.where == "http",
    )  # fmt: skip
    lab.set(variant.serve if variant.warm is None else "good", times=variant.times, seed=seed)
    with patched(variant.patch, lab), Logs() as logs, connections() as outside:
        reason = subject.prepare(setting)
        if reason is not None:
            return Result(**found, got=reason, applicable=False)  # type: ignore[arg-type]
        if variant.warm is not None:
            _warm(subject, lab, variant, mode)
        prompts = [_prompt(variant, mode, seed, number) for number in range(variant.asks)]
        stream = mode == "stream"
        outcomes = [
            subject.ask(
                prompt, stream=stream, deadline_s=deadline_s, leave_after=variant.leave_after, tools=variant.tools
            )
            for prompt in prompts
        ]
        closed = lab.wait_closed(LEFT_S)
    seen, attempts = lab.seen, lab.attempts
    left = variant.leave_after is not None
    kinds = [kind_of(outcome, prompt, variant, left=left) for outcome, prompt in zip(outcomes, prompts, strict=True)]
    why = [
        *_wrong_kinds(kinds, outcomes, allowed),
        *_wrong_outcomes(outcomes, variant, subject, deadline_s),
        *_wrong_attempts(attempts, variant),
        *_wrong_places(seen, outside, [*logs.lines, *(outcome.said for outcome in outcomes)]),
    ]
    if not closed:
        still = [each.fault for each in seen if each.open]
        why.append(f"its connection was open {LEFT_S:g} s after the end of the answer ({', '.join(still)})")
    why += [f"the lab itself failed: {problem!r}" for problem in lab.problems]
    got = ", ".join(dict.fromkeys(kinds))
    wall_s = max(outcome.wall_s for outcome in outcomes)
    return Result(**found, got=got, why=tuple(why), wall_s=wall_s, attempts=len(attempts))  # type: ignore[arg-type]


def _allowed(variant: Variant, subject: Subject) -> tuple[str, ...]:
    """Return the kinds that VARIANT expects; without another answer, an error stands for it."""
    if subject.fallback:
        return variant.expect
    return tuple(dict.fromkeys("error" if kind == "fallback" else kind for kind in variant.expect))


def _place(where: str, lab: Lab) -> str:
    if where in lab.urls:
        return lab.urls[where]
    return where.replace("{host}", f"127.0.0.1:{lab.port}")


def _prompt(variant: Variant, mode: Mode, seed: int, number: int) -> str:
    return f"{variant.name} {mode}: say word {number} of {seed}." + (PRIVATE if variant.private else "")


def _warm(subject: Subject, lab: Lab, variant: Variant, mode: Mode) -> None:
    """Get one good answer, then do to its connection what VARIANT says; the lab forgets it."""
    subject.ask("A first question.", stream=mode == "stream", deadline_s=DEADLINE_S)
    lab.wait_closed(LEFT_S)
    lab.script([], seed=0)
    if variant.warm == "reset":
        lab.reset_idle()
    else:
        lab.hold_idle()


def _wrong_kinds(kinds: Sequence[str], outcomes: Sequence[Outcome], allowed: Sequence[str]) -> list[str]:
    found = []
    for kind, outcome in zip(kinds, outcomes, strict=True):
        if kind not in allowed:
            said = f" ({outcome.error:.120})" if outcome.error else ""
            lacks = f", without {' and '.join(outcome.missing)}" if outcome.missing and not outcome.error else ""
            found.append(f"{kind}: {outcome.text!r:.100}{lacks}{said}")
    return list(dict.fromkeys(found))


def _wrong_outcomes(outcomes: Sequence[Outcome], variant: Variant, subject: Subject, deadline_s: float) -> list[str]:
    found = []
    limit = min(deadline_s, variant.within_s or deadline_s) + SLACK_S
    late = max(outcome.wall_s for outcome in outcomes)
    if late > limit:
        found.append(f"took {late:.2f} s of {limit:.2f}")
    if variant.finish and any(outcome.finish_reason != variant.finish for outcome in outcomes):
        found.append(f"ended for {outcomes[0].finish_reason!r}, not {variant.finish!r}")
    if subject.inside:
        for word in variant.says:
            if any(word not in (outcome.error or "") for outcome in outcomes):
                found.append(f"the error does not name {word!r}: {outcomes[0].error!r:.160}")
        if variant.notice and not all(outcome.notices for outcome in outcomes):
            found.append("said nothing of it")
    return found


def _wrong_attempts(attempts: Sequence[Seen], variant: Variant) -> list[str]:
    found = []
    if not variant.least <= len(attempts) <= variant.most:
        found.append(f"{len(attempts)} attempts, not {variant.least} to {variant.most}")
    if variant.gap_s and len(attempts) > 1 and (gap := attempts[1].at - attempts[0].at) < variant.gap_s - EARLY_S:
        found.append(f"came again after {gap:.2f} s, not {variant.gap_s:g}")
    if (most := max((each.sent_bytes for each in attempts), default=0)) > variant.sent_bytes:
        found.append(f"took {most >> 20} MiB of an answer without end")
    if variant.leave_after is not None and any(each.left_at is None for each in attempts):
        found.append("the endpoint was not left when the caller went")
    return found


def _wrong_places(seen: Sequence[Seen], outside: Sequence[str], lines: Iterable[str]) -> list[str]:
    """Return what went where it should not: requests after redirects, keys, connections to other machines."""
    found = []
    for each in seen:
        if each.listener in ("other", "proxy") or "/moved" in each.path:
            found.append(f"asked the {each.listener} listener for {each.path!r}" + (" with a key" if each.key else ""))
        if each.listener not in (*UPSTREAM, "second") and KEY.encode() in each.body:
            found.append(f"sent the key to {each.listener}")
    with contextlib.suppress(StopIteration):
        line = next(line for line in lines if KEY in line)
        found.append(f"wrote the key: {line.replace(KEY, '…')!r:.120}")
    found += [f"connected to {address}, which is not this machine" for address in dict.fromkeys(outside)]
    return list(dict.fromkeys(found))
