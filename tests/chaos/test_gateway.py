"""Any gateway is read as the standard says, and set up before it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.chaos.answers import LOCAL_ANSWER, TOOL, cloud_text
from edgeai.chaos.gateway import Gateway, lines_of
from edgeai.chaos.lab import Lab
from edgeai.chaos.opening import Target, opened, serving
from edgeai.errors import NetworkError, UsageError


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


@given(st.text(alphabet="ab\r\né", max_size=30), st.lists(st.integers(0, 40), max_size=5))
def test_lines_are_the_same_wherever_the_bytes_are_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[begin:end] for begin, end in pairwise(places)]
    whole = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert "\n".join(lines_of(iter(parts))).rstrip("\n") == "\n".join(whole).rstrip("\n")


@pytest.mark.parametrize("stream", [True, False])
def test_a_good_answer_is_read(lab: Lab, stream: bool) -> None:
    lab.set("good")
    gateway = Gateway(lab.url, key="k-2")
    found = gateway.ask("hello", stream=stream, deadline_s=1)
    gateway.close()
    assert (found.text, found.finish_reason, found.error, found.missing) == (cloud_text("hello"), "stop", None, ())
    assert found.first_token_s is not None
    assert lab.attempts[0].key == "Bearer k-2"


@pytest.mark.parametrize(
    "fault", ["cr-only", "bom", "many-lines", "crlf-cut", "split-utf8", "no-last-line-end", "comments", "other-fields"]
)
def test_every_form_of_the_standard_is_read(lab: Lab, fault: str) -> None:
    lab.set(fault)
    gateway = Gateway(lab.url)
    found = gateway.ask("hello", stream=True, deadline_s=1)
    gateway.close()
    assert (found.text, found.missing) == (cloud_text("hello"), ())


def test_what_a_stream_lacks_is_noted_and_tools_are_put_together(lab: Lab) -> None:
    gateway = Gateway(lab.url)
    lab.set("eof-before-done")
    assert gateway.ask("hello", stream=True, deadline_s=1).missing == ("finish_reason", "[DONE]")
    lab.set("no-done-mark")
    assert gateway.ask("hello", stream=True, deadline_s=1).missing == ("[DONE]",)
    lab.set("tool-split")
    assert gateway.ask("hello", stream=True, deadline_s=1, tools=True).tool_calls == (TOOL,)
    gateway.close()


@pytest.mark.parametrize("fault", ["informational-forever", "comments-forever"])
def test_nothing_holds_the_scorer_longer_than_its_grace(lab: Lab, fault: str) -> None:
    lab.set(fault)
    gateway = Gateway(lab.url)
    found = gateway.ask("hello", stream=True, deadline_s=0.1)
    gateway.close()
    assert found.error is not None
    assert 0.5 < found.wall_s < 1.5


def test_a_gateway_is_waited_for_and_told_where_its_endpoint_is() -> None:
    """The lab speaks OpenAI's API, so it can stand for a gateway to itself."""
    with Lab() as free:
        port = free.port
    said: list[str] = []
    with opened(Target(url=f"http://127.0.0.1:{port}/v1", listen=port), said.append) as (subject, lab):
        assert lab.url in said[0]
        assert not subject.fallback
    with (
        Lab() as other,
        pytest.raises(NetworkError, match="no answer of the lab came through") as caught,
        opened(Target(url=other.url, listen=port), said.append, wait_s=0.0),
    ):
        pass
    assert f"http://127.0.0.1:{port}/v1" in str(caught.value.hint)


def test_a_second_endpoint_makes_a_fallback() -> None:
    with Lab() as free:
        port, second = free.port, free.ports["second"]
    target = Target(url=f"http://127.0.0.1:{port}/v1", listen=port, second=second)
    with opened(target, lambda _text: None) as (subject, lab):
        assert subject.fallback
        gateway = Gateway(lab.urls["second"])
        assert gateway.ask("hello", stream=True, deadline_s=1).text == LOCAL_ANSWER
        gateway.close()


def test_one_fault_is_served_by_hand() -> None:
    with serving(0, "status-529") as lab:
        gateway = Gateway(lab.url)
        assert (gateway.ask("hello", stream=True, deadline_s=1).error or "").startswith("529")
        gateway.close()
    with pytest.raises(UsageError, match="'status-530'"), serving(0, "status-530"):
        pass
