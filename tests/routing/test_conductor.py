"""Who is asked, who takes over, and what the reader gets: the conductor with endpoints that play scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeai.config import Config, PrivacySettings, RoutingSettings
from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.errors import CloudFailure, ContextExceeded, EngineCrashed, NoAnswer, UsageError
from edgeai.routing import retrying
from edgeai.routing.local import LocalModel
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.redact import Redactor
from edgeai.types import Chunk, Constraint, GenerationConfig, Prompt, ToolCall
from tests.routing.fakes import OPENED, FakeEndpoint, FakeOrchestra, codes, end, failed, text_of

ANSWER = ("far ", "away ", "answer", end())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retrying, "BASE_S", 0.001)
    yield
    while OPENED:
        OPENED.pop().close()


class SlowEngine(FakeEngine):
    """Answers word by word, each after a while; FAIL is raised after so many words."""

    def __init__(
        self, answer: str = "slow words here", *, each_s: float = 0.02, fail: Exception | None = None, after: int = 0
    ) -> None:
        super().__init__(answer)
        self.each_s, self.fail, self.after = each_s, fail, after
        self.seen: list[GenerationConfig] = []

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        self.seen.append(config)
        made, channel, stopped = list(super().generate(prompt, config)), Channel(), threading.Event()

        def give() -> None:
            for index, chunk in enumerate(made):
                stopped.wait(self.each_s)
                if stopped.is_set():
                    channel.put(replace(made[-1], finish_reason="cancelled", text=""))
                    return
                if self.fail is not None and index >= self.after:
                    channel.put(self.fail)
                    return
                channel.put(chunk)

        threading.Thread(target=give, daemon=True).start()
        return ChunkStream(channel, stopped.set)


def test_an_endpoint_answers_and_its_chunks_arrive_as_they_are() -> None:
    chunks, conductor = FakeOrchestra(FakeEndpoint([ANSWER])).read()
    assert text_of(chunks) == "far away answer"
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].served is not None
    assert chunks[-1].served.model == "cloud/far"
    assert [attempt.status for attempt in conductor.attempts] == ["ok"]


def test_an_endpoint_that_fails_before_its_first_text_is_followed_by_the_local_model_with_a_warning() -> None:
    chunks, conductor = FakeOrchestra(FakeEndpoint([[failed("connection", None)]])).read()
    assert text_of(chunks) == "here it is"
    assert codes(chunks) == ["fallback"]
    assert [(attempt.model, attempt.status) for attempt in conductor.attempts] == [
        ("cloud/far", "failed"),
        ("local/tiny", "ok"),
    ]


def test_a_server_error_is_tried_again_and_a_refusal_is_not() -> None:
    again = FakeEndpoint([[failed("server")], ANSWER])
    assert text_of(FakeOrchestra(again).read()[0]) == "far away answer"
    assert len(again.asked) == 2
    refused = FakeEndpoint([[failed("refused", 400)], ANSWER])
    assert text_of(FakeOrchestra(refused).read()[0]) == "here it is"
    assert len(refused.asked) == 1


def test_attempts_end_at_the_number_that_is_configured() -> None:
    endpoint = FakeEndpoint([[failed("server")]])
    FakeOrchestra(endpoint).read()
    assert len(endpoint.asked) == RoutingSettings().attempts


def test_the_second_endpoint_is_asked_before_this_machine() -> None:
    first, second = FakeEndpoint([[failed("credentials", 401)]]), FakeEndpoint([ANSWER], name="other")
    chunks, conductor = FakeOrchestra(first, second).read()
    assert text_of(chunks) == "far away answer"
    assert [attempt.model for attempt in conductor.attempts] == ["cloud/far", "cloud/other"]


@pytest.mark.parametrize("policy", ["cloud-first", "local-first"])
def test_who_answers_instead_of_another_is_said_whoever_it_is(policy: str) -> None:
    first, second = FakeEndpoint([[failed("credentials", 401)]]), FakeEndpoint([ANSWER], name="other")
    orchestra = FakeOrchestra(first, second, local=SlowEngine(fail=EngineCrashed("gone")))
    chunks, _ = orchestra.read(orchestra.planned(policy=policy))
    assert codes(chunks) == ["fallback"]
    assert "cloud/other answers, because" in chunks[0].notices[0].message
    assert chunks[0].text == ""


def test_a_second_try_that_works_is_no_news() -> None:
    chunks, _ = FakeOrchestra(FakeEndpoint([[failed("server")], ANSWER])).read()
    assert codes(chunks) == []


def test_after_the_first_text_nobody_takes_over() -> None:
    endpoint = FakeEndpoint([["far ", failed("connection", None)], ANSWER])
    chunks, conductor = FakeOrchestra(endpoint).read()
    assert text_of(chunks) == "far "
    assert chunks[-1].finish_reason == "interrupted"
    assert codes(chunks) == ["stream_interrupted"]
    assert len(endpoint.asked) == 1
    assert conductor.attempts[-1].status == "interrupted"


def test_an_answer_that_broke_off_is_continued_here_behind_a_seam() -> None:
    engine = SlowEngine("and on", each_s=0)
    orchestra = FakeOrchestra(FakeEndpoint([["far ", failed("malformed", None)]]), local=engine)
    chunks, _ = orchestra.read(resume=True)
    assert text_of(chunks) == "far \n[cloud/far broke off here; local/tiny goes on]\nand on"
    assert engine.seen[0].prefill == "far "
    assert chunks[-1].finish_reason == "stop"
    assert codes(chunks) == ["resumed"]
    assert chunks[-1].served is not None
    assert chunks[-1].served.model == "local/tiny"


@pytest.mark.parametrize(
    "more",
    [{"constraint": Constraint(kind="regex", source="a+")}, {"tools": ({"type": "function"},)}],
    ids=["form", "tools"],
)
def test_an_answer_with_a_form_or_with_calls_is_not_continued(more: dict[str, Any]) -> None:
    call = Chunk(tool_calls=(ToolCall(id="1", name="f", arguments="{}"),))
    endpoint = FakeEndpoint([["far ", call, failed("connection", None)]])
    orchestra = FakeOrchestra(endpoint)
    chunks, _ = orchestra.read(orchestra.planned(), resume=True, **more)
    assert chunks[-1].finish_reason == "interrupted"


def test_what_stays_here_has_no_endpoint_even_when_the_local_model_fails() -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint, local=SlowEngine(fail=EngineCrashed("gone")))
    with pytest.raises(EngineCrashed, match="gone"):
        orchestra.read(orchestra.planned(placement="local_only"))
    assert endpoint.asked == []


def test_a_decision_that_would_leak_is_a_bug_and_not_a_request() -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint)
    right, wrong = orchestra.planned(placement="local_only"), orchestra.planned()
    with pytest.raises(RuntimeError, match="has to stay on this machine"):
        orchestra.read(replace(wrong, facts=right.facts))
    with pytest.raises(RuntimeError, match="has to stay on this machine"):
        orchestra.read(replace(wrong, sent=None))
    assert endpoint.asked == []


def test_a_local_model_that_crashes_before_its_first_text_is_followed_by_an_endpoint() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([ANSWER]), local=SlowEngine(fail=EngineCrashed("gone")))
    chunks, conductor = orchestra.read(orchestra.planned(policy="local-first"))
    assert text_of(chunks) == "far away answer"
    assert [attempt.kind for attempt in conductor.attempts] == ["EngineCrashed", None]


def test_a_local_model_that_crashes_after_its_first_text_ends_as_interrupted() -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint, local=SlowEngine(fail=EngineCrashed("gone"), after=1))
    chunks, _ = orchestra.read(orchestra.planned(policy="local-first"))
    assert (text_of(chunks), chunks[-1].finish_reason, endpoint.asked) == ("slow", "interrupted", [])


def test_a_mistake_of_the_caller_is_not_sent_to_an_endpoint() -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint, local=SlowEngine(fail=UsageError("no such adapter")))
    with pytest.raises(UsageError, match="no such adapter"):
        orchestra.read(orchestra.planned(policy="local-first"))
    assert endpoint.asked == []
    assert orchestra.done[0].attempts[0].status == "failed"


def test_a_prompt_that_is_too_long_here_goes_to_an_endpoint() -> None:
    long = "word " * 100
    orchestra = FakeOrchestra(FakeEndpoint([ANSWER]))
    assert text_of(orchestra.read(orchestra.planned(policy="local-first", prompt=long))[0]) == "far away answer"
    alone = FakeOrchestra()
    with pytest.raises(ContextExceeded):
        alone.read(alone.planned(policy="local-first", prompt=long))


def test_the_error_of_all_names_every_attempt_and_why() -> None:
    orchestra = FakeOrchestra(
        FakeEndpoint([[failed("quota", 429)]]),
        FakeEndpoint([[failed("captive", 200)]], name="other"),
        local=SlowEngine(fail=EngineCrashed("gone")),
    )
    with pytest.raises(
        NoAnswer, match=r"cloud/far: it failed \(quota\); cloud/other: it failed \(captive\); local/tiny: gone"
    ) as error:
        orchestra.read()
    assert [attempt["kind"] for attempt in error.value.attempts] == ["quota", "captive", "EngineCrashed"]
    assert error.value.exit_code == 8


def test_nobody_who_may_answer_is_an_error_that_says_why_not() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([ANSWER]), local=None)
    with pytest.raises(NoAnswer, match="stays on this machine") as error:
        orchestra.read(orchestra.planned(placement="local_only", rules=("privacy.card",)))
    assert error.value.exit_code == 2


def test_an_endpoint_whose_breaker_is_open_is_not_asked() -> None:
    endpoint = FakeEndpoint([[failed("connection", None)]])
    orchestra = FakeOrchestra(endpoint)
    for _ in range(6):
        orchestra.read()
    before = len(endpoint.asked)
    assert before == 5
    chunks, conductor = orchestra.read()
    assert (len(endpoint.asked), text_of(chunks)) == (before, "here it is")
    assert conductor.attempts[0].kind == "breaker"


def hasty(**routing: Any) -> Config:
    return Config(routing=RoutingSettings(**routing))


def test_a_slow_endpoint_is_overtaken_by_the_local_model_and_aborted() -> None:
    endpoint = FakeEndpoint([[5.0, *ANSWER]])
    orchestra = FakeOrchestra(endpoint)
    began = time.monotonic()
    chunks, conductor = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.05)))
    assert time.monotonic() - began < 1.0
    assert text_of(chunks) == "here it is"
    assert codes(chunks) == ["fallback"]
    assert {attempt.model: attempt.status for attempt in conductor.attempts} == {
        "cloud/far": "late",
        "local/tiny": "ok",
    }


def test_a_hedge_that_is_slower_is_stopped_and_says_nothing() -> None:
    engine = SlowEngine(each_s=0.3)
    orchestra = FakeOrchestra(FakeEndpoint([[0.15, "far ", 0.3, "away ", "answer", end()]]), local=engine)
    chunks, conductor = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.05)))
    assert text_of(chunks) == "far away answer"
    assert codes(chunks) == []
    time.sleep(0.05)
    assert {attempt.model: attempt.status for attempt in conductor.attempts} == {
        "cloud/far": "ok",
        "local/tiny": "late",
    }


def test_a_hedge_takes_over_when_the_endpoint_fails() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[0.1, failed("credentials", 401)]]), local=SlowEngine(each_s=0.1))
    chunks, conductor = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.02)))
    assert text_of(chunks) == "slow words here"
    assert len(conductor.attempts) == 2


def test_a_quick_endpoint_never_starts_the_local_model() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([ANSWER]))
    orchestra.read(orchestra.planned(config=hasty(hedge_s=0.05)))
    time.sleep(0.1)
    assert orchestra.engine is not None
    assert orchestra.engine.prompts == []  # type: ignore[attr-defined]


def test_cancelling_ends_the_endpoint_and_the_answer_says_so() -> None:
    endpoint = FakeEndpoint([["far ", 10.0, "never", end()]])
    orchestra = FakeOrchestra(endpoint)
    conductor = orchestra.conduct()
    assert next(orchestra.stream).text == "far "
    orchestra.stream.cancel()
    rest = list(orchestra.stream)
    assert rest[-1].finish_reason == "cancelled"
    assert conductor.attempts[0].status == "cancelled"


def test_cancelling_ends_the_local_model() -> None:
    orchestra = FakeOrchestra(local=SlowEngine("many words to say", each_s=0.05))
    conductor = orchestra.conduct(orchestra.planned(policy="local-only"))
    next(orchestra.stream)
    orchestra.stream.cancel()
    assert list(orchestra.stream)[-1].finish_reason == "cancelled"
    assert [attempt.status for attempt in conductor.attempts] == ["cancelled"]


def test_a_deadline_without_a_word_is_an_error_and_after_words_a_timeout() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[0.2, failed("timeout", None)]]), local=None)
    with pytest.raises(NoAnswer, match=r"no answer within 0\.1 s"):
        orchestra.read(max_seconds=0.1)
    orchestra = FakeOrchestra(FakeEndpoint([["far ", 0.2, failed("timeout", None)]]), local=None)
    chunks, _ = orchestra.read(max_seconds=0.1)
    assert (text_of(chunks), chunks[-1].finish_reason) == ("far ", "timeout")


def test_a_retry_that_the_deadline_does_not_allow_is_not_made() -> None:
    endpoint = FakeEndpoint([[failed("rate_limited", 429, retry_after_s=3.0)], ANSWER])
    chunks, _ = FakeOrchestra(endpoint).read(max_seconds=1.0)
    assert (text_of(chunks), len(endpoint.asked)) == ("here it is", 1)


class Sure:
    """A confidence that is always the same."""

    samples = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def probability(self, found: Any) -> float:
        return self.value


def sure(orchestra: FakeOrchestra, value: float) -> None:
    assert orchestra.local is not None
    orchestra.local.head = lambda: Sure(value)  # type: ignore[assignment, method-assign, return-value]


@pytest.mark.parametrize(("value", "text"), [(0.9, "here it is"), (0.2, "far away answer")])
def test_the_cascade_asks_the_endpoint_only_where_the_local_answer_is_not_sure(value: float, text: str) -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint)
    sure(orchestra, value)
    chunks, conductor = orchestra.read(orchestra.planned(policy="cascade"))
    assert text_of(chunks) == text
    assert conductor.attempts[0].confidence == value
    assert len(endpoint.asked) == (value < 0.7)


def test_an_answer_that_was_not_sure_is_given_with_a_warning_when_the_endpoint_fails() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[failed("connection", None)]]))
    sure(orchestra, 0.1)
    chunks, _ = orchestra.read(orchestra.planned(policy="cascade"))
    assert text_of(chunks) == "here it is"
    assert codes(chunks) == ["fallback"]


def test_a_confidence_that_is_not_calibrated_is_not_used() -> None:
    endpoint = FakeEndpoint([ANSWER])
    orchestra = FakeOrchestra(endpoint)
    planned = orchestra.planned(policy="cascade")
    sure(orchestra, 0.0)
    assert text_of(orchestra.read(planned)[0]) == "here it is"
    assert "not calibrated" in planned.decision.reason


def test_an_aborted_attempt_says_nothing_about_the_endpoint() -> None:
    endpoint = FakeEndpoint([[CloudFailure("stopped", kind="aborted")]])
    orchestra = FakeOrchestra(endpoint)
    for _ in range(8):
        orchestra.read()
    assert orchestra.breakers["far"].state == "closed"


# ---- moments that are hard to hit


class LoadsSlowly:
    """A local model that takes a while to load, and then answers."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.engine = seconds, FakeEngine("one two three four")

    def local(self) -> LocalModel:
        def load(path: Path) -> FakeEngine:
            time.sleep(self.seconds)
            return self.engine

        return LocalModel("tiny", lambda: Path("m"), load, facts=lambda _: self.engine.artifact)


def test_a_hedge_that_was_stopped_while_it_loaded_does_not_join_the_answer_that_goes_on() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[0.1, "far ", 0.05, failed("connection", None)]]))
    orchestra.local = LoadsSlowly(0.4).local()
    chunks, _ = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.02)), resume=True)
    assert text_of(chunks) == "far \n[cloud/far broke off here; local/tiny goes on]\none two three four"


def test_cancelling_does_not_wait_for_a_model_that_loads() -> None:
    orchestra = FakeOrchestra()
    orchestra.local = LoadsSlowly(3.0).local()
    orchestra.conduct(orchestra.planned(policy="local-only"))
    time.sleep(0.1)
    began = time.monotonic()
    orchestra.stream.cancel()
    assert list(orchestra.stream)[-1].finish_reason == "cancelled"
    assert time.monotonic() - began < 1.0


def test_a_bug_of_a_hedge_that_has_not_won_leaves_the_endpoint_s_answer_alone() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[0.1, *ANSWER]]), local=SlowEngine(fail=OSError("native")))
    chunks, _ = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.01)))
    assert text_of(chunks) == "far away answer"


def test_a_hedge_that_answers_while_a_retry_waits_ends_the_wait() -> None:
    endpoint = FakeEndpoint([[0.05, failed("rate_limited", 429, retry_after_s=3.0)], ANSWER])
    orchestra = FakeOrchestra(endpoint, local=SlowEngine(each_s=0.05))
    began = time.monotonic()
    chunks, _ = orchestra.read(orchestra.planned(config=hasty(hedge_s=0.02)))
    assert (text_of(chunks), time.monotonic() - began < 1.5) == ("slow words here", True)


def test_a_caller_s_own_deadline_is_no_fault_of_the_endpoint() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([["far ", 0.05, failed("timeout", None, reason="deadline")]]))
    for _ in range(8):
        orchestra.read(max_seconds=0.04)
    assert orchestra.breakers["far"].state == "closed"


def test_a_bug_in_an_attempt_keeps_its_bytes_and_frees_the_probe() -> None:
    orchestra = FakeOrchestra(FakeEndpoint([[ZeroDivisionError("bug")]]))  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError):
        orchestra.read()
    assert orchestra.done[0].attempts[0].status == "failed"
    assert orchestra.done[0].attempts[0].sent_bytes > 0


def test_a_redacted_answer_that_breaks_off_keeps_what_might_have_been_a_placeholder() -> None:
    redactor = Redactor(Detector(PrivacySettings()))
    sent = redactor.redact("Write to jane.doe@example.com")
    orchestra = FakeOrchestra(FakeEndpoint([["Dear <EMAIL_1>, it is 3 <", failed("connection", None)]]))
    planned = replace(orchestra.planned(redacted=True), redactor=redactor, sent=(sent, GenerationConfig()))
    chunks, _ = orchestra.read(planned)
    assert text_of(chunks) == "Dear jane.doe@example.com, it is 3 <"
    assert chunks[-1].finish_reason == "interrupted"
