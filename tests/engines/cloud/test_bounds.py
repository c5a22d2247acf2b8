"""No wait is longer than it may be, and every wait can be given up, whatever the other side does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from edgeai.config import Timeouts
from edgeai.engines.cloud import Endpoint
from edgeai.errors import CloudFailure
from edgeai.types import GenerationConfig
from tests.engines.cloud.endpoints import ASK, ask, endpoint, failure_of, text_of
from tests.engines.cloud.server import DONE, END, GOOD, HEAD, Step, answer, chunked, delta, event, serve

LONG = Timeouts(connect_s=30, first_token_s=30, stall_s=30, total_s=30)
HUGE = b'{"x": "' + b"x" * 30_000_000 + b'"}'


def drip(data: bytes, pause: float = 0.02) -> list[Step]:
    """DATA byte by byte."""
    return [step for byte in data for step in (bytes([byte]), pause)]


FAULTS: dict[str, Sequence[Step]] = {
    "never answers": ["hang"],
    "headers byte by byte": drip(HEAD * 9),
    "headers and silence": [HEAD, "hang"],
    "comments for ever": [HEAD, *[step for _ in range(200) for step in (chunked(b": keep-alive\n\n"), 0.02)]],
    "empty deltas for ever": [HEAD, *[step for _ in range(200) for step in (delta(""), 0.02)]],
    "events without choices": [HEAD, *[step for _ in range(200) for step in (event({"choices": []}), 0.02)]],
    "body byte by byte": [HEAD, *drip(delta("a") * 9)],
    "early hints for ever": [step for _ in range(200) for step in (b"HTTP/1.1 100 Continue\r\n\r\n", 0.02)],
    "an error byte by byte": [b"HTTP/1.1 500 x\r\n\r\n", *drip(b"x" * 200)],
    "JSON byte by byte": [b"HTTP/1.1 200 x\r\nContent-Type: application/json\r\n\r\n", *drip(b" " * 200)],
    "text and silence": [HEAD + delta("a"), "hang"],
    "text and comments": [HEAD + delta("a"), *[step for _ in range(200) for step in (chunked(b":\n\n"), 0.02)]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_attempt_ends_with_the_time_of_its_caller(fault: str) -> None:
    with serve(FAULTS[fault]) as server, endpoint(server.url, LONG) as made:
        begun = time.monotonic()
        failure_of(made, deadline=begun + 0.3)
        assert time.monotonic() - begun < 0.55


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"text and silence", "text and comments"}))
def test_the_first_token_has_its_time(fault: str) -> None:
    with serve(FAULTS[fault]) as server, endpoint(server.url, LONG) as made:
        begun = time.monotonic()
        found = failure_of(made, first_token_s=0.3)
        assert time.monotonic() - begun < 0.55
        assert found.kind == ("server" if fault == "an error byte by byte" else "timeout")


@pytest.mark.parametrize("fault", ["text and silence", "text and comments"])
def test_a_pause_has_its_time_which_comments_do_not_lengthen(fault: str) -> None:
    with serve(FAULTS[fault]) as server, endpoint(server.url) as made:
        begun = time.monotonic()
        found = failure_of(made)
        assert (found.reason, found.committed) == ("stall", True)
        assert 0.25 < time.monotonic() - begun < 0.6


def test_the_whole_has_its_time_however_steadily_text_comes() -> None:
    steady = [HEAD, *[step for _ in range(200) for step in (delta("a"), 0.02)]]
    with serve(steady) as server, endpoint(server.url, Timeouts(total_s=0.4)) as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("timeout", "total")


def test_what_comes_too_slowly_has_stalled() -> None:
    slow = [HEAD, *[step for _ in range(200) for step in (delta("a"), 0.05)]]
    timeouts = Timeouts(stall_s=0.2, least_bytes_s=100_000)
    with serve(slow) as server, endpoint(server.url, timeouts) as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("timeout", "slow")


def test_what_thinks_before_it_answers_is_not_silent() -> None:
    think = [step for _ in range(8) for step in (delta(reasoning_content="hm"), 0.1)]
    with serve([HEAD, *think, delta("a") + delta(finish="stop") + DONE + END]) as server, endpoint(server.url) as made:
        assert text_of(ask(made)) == "a"


def test_a_reader_who_takes_time_is_no_stall() -> None:
    two = [HEAD + delta("a"), 0.05, delta("b") + delta(finish="stop") + DONE + END]
    with serve(two) as server, endpoint(server.url, Timeouts(stall_s=0.15, least_bytes_s=2000)) as made:
        text = ""
        for chunk in made.attempt(ASK, GenerationConfig()):
            text += chunk.text
            time.sleep(0.2)
        assert text == "ab"


def test_max_seconds_ends_an_answer_and_is_a_failure_where_there_is_none() -> None:
    steady = [HEAD, *[step for _ in range(200) for step in (delta("a"), 0.02)]]
    config = GenerationConfig(max_seconds=0.3)
    with serve(steady) as server, endpoint(server.url) as made:
        chunks = ask(made, config)
        assert chunks[-1].finish_reason == "timeout"
        assert text_of(chunks).startswith("aa")
    with serve(["hang"]) as server, endpoint(server.url, LONG) as made:
        assert failure_of(made, config).reason == "max_seconds"


def test_a_huge_request_to_one_who_does_not_read_ends_in_time() -> None:
    with serve(GOOD, reads=False) as server, endpoint(server.url, LONG) as made:
        begun = time.monotonic()
        found = failure_of(made, deadline=begun + 0.3, body=HUGE)
        assert found.kind == "timeout"
        assert time.monotonic() - begun < 0.6


@pytest.mark.parametrize(
    "flood",
    [HEAD + b"1\r\nx\r\n" * 500_000, HEAD + delta("a") * 60_000, answer("200 x", b"[" + b"{}," * 5_000_000 + b"0]")],
    ids=["chunks of a byte", "events", "JSON"],
)
def test_a_flood_ends_in_time_too(flood: bytes) -> None:
    with serve([flood, "hang"]) as server, endpoint(server.url, LONG) as made:
        begun = time.monotonic()
        failure_of(made, deadline=begun + 0.2)
        assert time.monotonic() - begun < 0.45


def test_a_deadline_that_is_past_opens_no_socket() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        assert failure_of(made, deadline=time.monotonic() - 1).reason == "deadline"
        assert server.connections == 0


@pytest.fixture
def hung_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A resolver that gives no answer until the test is over."""
    over = threading.Event()
    real = socket.getaddrinfo

    def hang(host: str, *arguments: object, **options: object) -> object:
        over.wait(20)
        return real("127.0.0.1", *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield
    over.set()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port whose queue of connections is full: further ones get no answer, as from a host that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            full = stack.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


@pytest.mark.usefixtures("hung_resolver")
def test_a_name_has_its_time() -> None:
    before = threading.active_count()
    with endpoint("https://name.invalid/v1") as made:
        for _ in range(3):
            begun = time.monotonic()
            found = failure_of(made)
            assert found.kind == "connection"
            assert time.monotonic() - begun < 0.65
    assert threading.active_count() <= before + 1  # one question at a time


def test_a_name_that_is_none_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with endpoint("https://name.invalid/v1") as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", "resolve")


@pytest.mark.parametrize(
    ("host", "address"), [("https://name.example/v1", "169.254.169.254"), ("http://localhost:9/v1", "93.184.215.14")]
)
def test_a_name_that_leads_where_no_endpoint_is_is_not_followed(
    host: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 9))]
    )
    with endpoint(host) as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("refused", "address")


def test_a_host_that_drops_packets_has_its_time(black_hole: int) -> None:
    with endpoint(f"http://127.0.0.1:{black_hole}/v1") as made:
        begun = time.monotonic()
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", "connect-timeout")
        assert time.monotonic() - begun < 0.65


def test_the_second_address_is_tried_while_the_first_is_silent(
    black_hole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(GOOD) as server:
        two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (black_hole, server.port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
        with endpoint("http://localhost:9/v1", LONG) as made:
            begun = time.monotonic()
            assert text_of(ask(made)) == "Hello there"
            assert time.monotonic() - begun < 0.6


def test_an_address_that_cannot_be_used_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(GOOD) as server:
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", server.port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with endpoint(f"http://localhost:{server.port}/v1") as made:
            assert text_of(ask(made)) == "Hello there"


def test_a_handshake_that_does_not_go_on_has_its_time() -> None:
    with serve(GOOD, reads=False) as server, endpoint(f"https://127.0.0.1:{server.port}/v1") as made:
        begun = time.monotonic()
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", "connect-timeout")
        assert time.monotonic() - begun < 0.65


def aborted(made: Endpoint, body: bytes | None = None) -> float:
    """Begin an attempt, give it up from another thread, and return how long it took to notice."""
    attempt = made.attempt(ASK, GenerationConfig(), body=body)
    at: list[float] = []

    def stop() -> None:
        at.append(time.monotonic())
        attempt.abort()

    timer = threading.Timer(0.15, stop)
    timer.start()
    with pytest.raises(CloudFailure) as raised:
        list(attempt)
    took = time.monotonic() - at[0]
    timer.join()
    assert raised.value.kind == "aborted"
    return took


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_wait_for_an_answer_can_be_given_up(fault: str) -> None:
    with serve(FAULTS[fault]) as server, endpoint(server.url, LONG) as made:
        assert aborted(made) < 0.1


def test_writing_can_be_given_up() -> None:
    with serve(GOOD, reads=False) as server, endpoint(server.url, LONG) as made:
        assert aborted(made, HUGE) < 0.1


def test_a_handshake_can_be_given_up() -> None:
    with serve(GOOD, reads=False) as server, endpoint(f"https://127.0.0.1:{server.port}/v1", LONG) as made:
        assert aborted(made) < 0.1


@pytest.mark.usefixtures("hung_resolver")
def test_a_name_can_be_given_up() -> None:
    with endpoint("https://name.invalid/v1", LONG) as made:
        assert aborted(made) < 0.1


def test_a_connection_can_be_given_up(black_hole: int) -> None:
    with endpoint(f"http://127.0.0.1:{black_hole}/v1", LONG) as made:
        assert aborted(made) < 0.1


def test_what_was_given_up_before_it_began_opens_no_socket() -> None:
    with serve(GOOD) as server, endpoint(server.url) as made:
        attempt = made.attempt(ASK, GenerationConfig())
        attempt.abort()
        with pytest.raises(CloudFailure, match="given up"):
            list(attempt)
        assert server.connections == 0


def test_giving_up_an_attempt_that_is_over_does_not_touch_the_next_on_its_connection() -> None:
    with serve(GOOD, [0.2, GOOD]) as server, endpoint(server.url) as made:
        first = made.attempt(ASK, GenerationConfig())
        list(first)
        stop: Callable[[], None] = first.abort
        threading.Timer(0.1, stop).start()
        assert text_of(ask(made)) == "Hello there"
        assert server.connections == 1
