"""What a text is: an answer, another one, a beginning that is marked or not, or something that no one may be given."""

from __future__ import annotations

import pytest

from edgeai.chaos.answers import LOCAL_ANSWER, TOOL, cloud_text
from edgeai.chaos.faults import FAULTS
from edgeai.chaos.subject import Outcome, kind_of

PROMPT = "what kind?"
TEXT = cloud_text(PROMPT)
BEGIN = " ".join(TEXT.split()[:4])
TOOLS = next(variant for fault in FAULTS for variant in fault.variants if variant.tools)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(text=TEXT, finish_reason="stop"), "answer"),
        (Outcome(text=TEXT, error="cut"), "interrupted"),
        (Outcome(text=LOCAL_ANSWER), "fallback"),
        (Outcome(error="no"), "error"),
        (Outcome(finish_reason="length"), "empty"),
        (Outcome(text=BEGIN, finish_reason="stop"), "partial"),
        (Outcome(text=BEGIN), "partial"),
        (Outcome(text=BEGIN, finish_reason="interrupted"), "interrupted"),
        (Outcome(text=BEGIN, finish_reason="timeout"), "interrupted"),
        (Outcome(text=BEGIN, interrupted=True), "interrupted"),
        (Outcome(text=LOCAL_ANSWER[:20]), "partial"),
        (Outcome(text=f"{BEGIN}\n\n[continued by the local model]\n\n{LOCAL_ANSWER}"), "resumed"),
        (Outcome(text=f"{BEGIN} … nobody sent over any wire"), "resumed"),
        (Outcome(text=f"{BEGIN} {LOCAL_ANSWER}"), "foreign"),
        (Outcome(text=f"{BEGIN}{LOCAL_ANSWER}"), "foreign"),
        (Outcome(text=f"{BEGIN} [again] {BEGIN} {LOCAL_ANSWER}"), "doubled"),
        (Outcome(text=TEXT + TEXT), "doubled"),
        (Outcome(text=f"{BEGIN} {TEXT}"), "doubled"),
        (Outcome(text=TEXT + " and more"), "foreign"),
        (Outcome(text=cloud_text("of somebody else")), "foreign"),
        (
            Outcome(
                text=TEXT.replace("ï", "\ufffd")
                .replace("è", "\ufffd")
                .replace("Ω", "\ufffd")
                .replace("東", "\ufffd")
                .replace("🦊", "?")
            ),
            "foreign",
        ),
    ],
)
def test_a_text_is_what_it_is(outcome: Outcome, kind: str) -> None:
    assert kind_of(outcome, PROMPT) == kind


def test_who_left_needs_no_mark() -> None:
    assert kind_of(Outcome(text=BEGIN), PROMPT, left=True) == "interrupted"


@pytest.mark.parametrize(
    ("calls", "kind"),
    [
        ((TOOL,), "tools"),
        ((), "wrong tools"),
        ((TOOL, TOOL), "wrong tools"),
        (((TOOL[0], TOOL[1] * 2),), "wrong tools"),
        (((TOOL[0] * 2, TOOL[1]),), "wrong tools"),
    ],
)
def test_a_call_of_a_tool_is_exact(calls: tuple[tuple[str, str], ...], kind: str) -> None:
    assert kind_of(Outcome(tool_calls=calls, finish_reason="tool_calls"), PROMPT, TOOLS) == kind
