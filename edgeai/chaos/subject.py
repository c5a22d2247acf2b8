"""Who is scored: what a subject can do, how it is set up for a fault, and what came of asking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgeai.chaos.answers import FLOOD, LOCAL_ANSWER, TOOL, cloud_text
from edgeai.chaos.faults import DEADLINE_S, Variant

__all__ = ["KEY", "Asker", "Outcome", "RouterSubject", "Setting", "Subject", "kind_of"]

KEY = "sk-lab-4b1d9c0a7e52f386"
"""The key that subjects are given; it opens nothing, and is looked for in everything that anybody wrote or sent elsewhere."""
MARKS = ("interrupted", "timeout", "error", "cancelled")
"""Reasons for an end that say that an answer is not whole."""
SEAM = 400
"""The most characters between two parts of a continued answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a subject is to be set up for one variant of a fault.

    `base_url` is the endpoint's, with the name "lab" and the key KEY; `ca_file` what to trust. `hook`, None mostly, is what the subject
    does to itself (faults.HOOKS). Timeouts are the constants of edgeai.chaos.faults. `private`: the prompt has a card number in it.
    `patched`: something is done to this process while it is asked. `usual`: the endpoint is where it always is.
    """

    base_url: str
    ca_file: str
    policy: str = "cloud-first"
    hook: str | None = None
    private: bool = False
    patched: bool = False
    usual: bool = True
    key: str = KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one request: the text that was given, how it ended, and how long that took.

    `interrupted`: the text was marked as broken off. `notices`: what was said beside it. `missing`: end marks that did not come.
    """

    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    wall_s: float = 0.0
    interrupted: bool = False
    first_token_s: float | None = None
    tool_calls: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def marked(self) -> bool:
        """Whether whoever got this could know that it is not a whole answer."""
        return self.interrupted or self.error is not None or self.finish_reason in MARKS

    @property
    def said(self) -> str:
        """Everything in it that a log or a person would see."""
        return "\n".join([self.text, self.error or "", *self.notices])


class Asker(Protocol):
    """Asks, and is closed. `leave_after`: go away after so many pieces of text. `tools`: offer the tool `weather`."""

    def ask(
        self, prompt: str, *, stream: bool, deadline_s: float, leave_after: int | None = None, tools: bool = False
    ) -> Outcome:
        """Ask PROMPT and return what came of it; errors are in the outcome, never raised."""

    def close(self) -> None:
        """Free what is held."""


class Subject(Asker, Protocol):
    """Whoever is scored. `fallback`: it has another answer, LOCAL_ANSWER. `inside`: it runs in this process, which may be patched."""

    @property
    def fallback(self) -> bool:
        """Whether there is another answer when the endpoint has none."""

    @property
    def inside(self) -> bool:
        """Whether it runs in this process."""

    def prepare(self, setting: Setting) -> str | None:
        """Be as new and set up as SETTING says; return None, or why that cannot be."""


class RouterSubject:
    """A subject of this process that is made anew for each variant by OPEN; `edgeai.chaos.ours` makes the one of edgeai's router."""

    fallback = True
    inside = True

    def __init__(self, open_: Callable[[Setting], Asker]) -> None:
        self._open = open_
        self._asker: Asker | None = None

    def prepare(self, setting: Setting) -> str | None:
        """Make a new one."""
        self.close()
        self._asker = self._open(setting)
        return None

    def ask(
        self,
        prompt: str,
        *,
        stream: bool,
        deadline_s: float = DEADLINE_S,
        leave_after: int | None = None,
        tools: bool = False,
    ) -> Outcome:
        """Ask the one that was made last."""
        assert self._asker is not None  # noqa: S101 - prepare() comes first
        return self._asker.ask(prompt, stream=stream, deadline_s=deadline_s, leave_after=leave_after, tools=tools)

    def close(self) -> None:
        """Close the one that was made last."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None


def kind_of(outcome: Outcome, prompt: str, variant: Variant | None = None, *, left: bool = False) -> str:
    """Return what OUTCOME is: one of faults.Kind, or what is wrong with it (`partial`, `doubled`, `foreign`, `wrong tools`).

    LEFT: the caller went away, and needs no mark to know that the text is not whole.
    """
    text, cloud = outcome.text, cloud_text(prompt)
    if outcome.tool_calls or (variant is not None and variant.tools and not text and not outcome.error):
        if outcome.marked:
            return "interrupted"
        return "tools" if outcome.tool_calls == (TOOL,) and not text else "wrong tools"
    if not text:
        return "error" if outcome.marked else "empty"
    if text in (cloud, LOCAL_ANSWER):
        if outcome.marked:
            return "interrupted"
        return "answer" if text == cloud else "fallback"
    before = text.partition(FLOOD)[0]  # an answer without an end was given up to a limit
    if cloud.startswith(before) or LOCAL_ANSWER.startswith(text):
        return "interrupted" if outcome.marked or left else "partial"
    if _is_resumed(text, cloud):
        return "resumed"
    return "doubled" if any(text.count(word) > 1 for word in cloud.split()) else "foreign"


def _is_resumed(text: str, cloud: str) -> bool:
    """Whether TEXT is the beginning of CLOUD, a visible seam, and the local answer or what is left of it."""
    kept = next(
        (at for at, (one, other) in enumerate(zip(text, cloud, strict=False)) if one != other),
        min(len(text), len(cloud)),
    )
    rest = text[kept:]
    if not kept or not rest.endswith(LOCAL_ANSWER.split(" ")[-1]):
        return False
    tail = next((LOCAL_ANSWER[at:] for at in range(len(LOCAL_ANSWER)) if rest.endswith(LOCAL_ANSWER[at:])), "")
    seam = rest[: len(rest) - len(tail)]
    return bool(seam.strip()) and len(seam) <= SEAM and not set(seam.split()) & set(cloud.split())
