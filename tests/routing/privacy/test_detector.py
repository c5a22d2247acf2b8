"""Verdicts on whole conversations: what is found where, and that nothing fails to "any"."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeai.config import PrivacySettings
from edgeai.errors import UsageError
from edgeai.routing.privacy import detector as module
from edgeai.routing.privacy.conversation import parts_of
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.taint import Taint
from edgeai.routing.request import Part
from edgeai.types import Message

CARD = "4111 1111 1111 1111"


def text(value: str) -> list[Part]:
    return [Part(text=value, where="prompt")]


def test_text_without_anything_private_may_go_anywhere() -> None:
    verdict = Detector(PrivacySettings()).examine(text("What is the capital of France?"))
    assert (verdict.placement, verdict.findings, verdict.failed, verdict.tier) == ("any", (), None, "structured")


def test_finding_keeps_a_conversation_here_and_says_where_it_is() -> None:
    messages: list[Message] = [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Hello"},
        {"role": "user", "content": f"pay with {CARD}"},
    ]
    verdict = Detector(PrivacySettings()).examine(parts_of(messages))
    (finding,) = verdict.findings
    assert verdict.placement == "local_only"
    assert (finding.where, finding.message, finding.start, finding.end) == ("message 3", 2, 9, 28)
    assert verdict.reason == "card (1) in message 3"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": f"The user's card is {CARD}"}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": f"card {CARD}"}, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "Thanks!"}],
        [{"role": "assistant", "content": f"Your card is {CARD}"}, {"role": "user", "content": "Thanks"}],
        [{"role": "tool", "tool_call_id": "1", "content": json.dumps({"card": CARD})}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "pay", "arguments": json.dumps({"card": CARD})}}]}],
        [{"role": "user", "content": "Hi", "name": "jane@example.com"}],
        [{"role": "user", "content": "Hi", "private": True}],
        [{"role": "user", "content": [{"type": "text", "text": f"card {CARD}"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
    ],
)  # fmt: skip
def test_every_place_of_a_conversation_is_examined(messages: list[Message]) -> None:
    assert Detector(PrivacySettings()).examine(parts_of(messages)).placement == "local_only"


def test_escapes_in_arguments_hide_nothing() -> None:
    arguments = '{"to": "jane\\u0040example.com", "to": "nobody"}'  # the first of two members of one name counts too
    call = {"id": "1", "type": "function", "function": {"name": "send", "arguments": arguments}}
    messages: list[Message] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    verdict = Detector(PrivacySettings()).examine(parts_of(messages))
    assert [(finding.kind, finding.where) for finding in verdict.findings] == [("email", "tool call")]


def test_files_and_definitions_of_tools_are_examined() -> None:
    detector = Detector(PrivacySettings())
    parts = parts_of("Summarise", files={"/home/j/notes.txt": "IBAN DE89370400440532013000"})
    assert detector.examine(parts).reason == "iban (1) in file notes.txt"
    tool = {"type": "function", "function": {"name": "mail", "description": "Mails to jane@example.com"}}
    assert detector.examine(parts_of("Hi", tools=[tool])).reason == "email (1) in tool definition"


def test_detector_that_raises_keeps_the_text_here_and_does_not_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> Iterator[list[Hit]]:
        raise RuntimeError(text)
        yield []

    monkeypatch.setattr(module, "scan", broken)
    verdict = Detector(PrivacySettings()).examine(text("secret words"))
    assert verdict.placement == "local_only"
    assert verdict.failed == "the detector failed: RuntimeError"


def test_examination_that_takes_too_long_keeps_the_text_here_in_time() -> None:
    began = time.monotonic()
    verdict = Detector(PrivacySettings(timeout_s=0.02)).examine(text("word 12345678 " * 200_000))
    assert verdict.placement == "local_only"
    assert verdict.failed == "not examined to its end in 0.02 s"
    assert time.monotonic() - began < 1.0


def test_text_that_is_too_long_stays_here() -> None:
    detector = Detector(PrivacySettings(max_chars=1000))
    assert detector.examine(text("x" * 1000)).placement == "any"
    assert detector.examine([*text("x" * 600), *text("x" * 401)]).placement == "local_only"


def test_tags_still_count_in_a_text_that_is_too_long() -> None:
    parts = [Part(text="x" * 2000, where="prompt", private=True)]
    verdict = Detector(PrivacySettings(max_chars=1000)).examine(parts)
    assert [finding.id for finding in verdict.findings] == ["privacy.tag"]


def test_what_is_no_text_stays_here() -> None:
    assert Detector(PrivacySettings()).examine([Part(text=None, where="prompt")]).placement == "local_only"  # type: ignore[arg-type]


def test_tier_off_leaves_the_rules_of_the_user() -> None:
    detector = Detector(PrivacySettings(tier="off", words=("Nachtigall",)))
    assert detector.examine(text(CARD)).placement == "any"
    assert detector.examine(text("Plan Nachtigall")).placement == "local_only"


def test_taint_keeps_a_text_here_and_no_placeholder_may_stand_for_it(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    detector = Detector(PrivacySettings(), taint=taint)
    secret = "The merger with the company from the north will be announced on the second Tuesday of March."
    assert detector.examine(text(secret)).placement == "any"
    taint.mark(secret)
    (finding,) = detector.examine(text(f"Summary so far: {secret}")).findings
    assert (finding.id, finding.redactable) == ("privacy.taint", False)
    taint.close()


def test_names_without_their_extra_are_refused_when_the_detector_is_made() -> None:
    pytest.importorskip("edgeai")
    try:
        import presidio_analyzer  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError) as caught:
            Detector(PrivacySettings(tier="names"))
        assert "edgeai[names]" in (caught.value.hint or "")
