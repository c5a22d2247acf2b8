"""What is known of the network: from attempts first, from one connection to the endpoint itself where nothing is known."""

from __future__ import annotations

import threading

import pytest

from edgeai.config import CloudSettings
from edgeai.engines.cloud import Endpoint, Network
from edgeai.engines.cloud.online import TTL_S, has_interface, probe
from edgeai.errors import CloudFailure
from tests.engines.cloud.endpoints import SHORT, ask, endpoint, failure_of
from tests.engines.cloud.server import GOOD, answer, serve


class World:
    """Two endpoints, a clock that is set by hand, and hosts that answer or do not."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[tuple[str, int]] = []
        self.up = {"a.example", "b.example"}
        self.interface = True
        self.environment: dict[str, str] = {}
        self.a, self.b = (
            Endpoint(CloudSettings(name=name, base_url=f"https://{name}.example/v1", model="m"), SHORT, environment={})
            for name in "ab"
        )
        self.network = Network(
            [self.a, self.b], clock=lambda: self.now, ask=self.ask, interface=lambda: self.interface,
            environment=self.environment,
        )  # fmt: skip

    def ask(self, where: tuple[str, int]) -> bool:
        self.asked.append(where)
        return where[0] in self.up


@pytest.fixture
def world() -> World:
    return World()


LOST = CloudFailure("x", kind="connection", reason="unreachable")


def lost(world: World, *endpoints: Endpoint) -> None:
    """Let attempts at ENDPOINTS have failed, a while ago."""
    for made in endpoints:
        world.network.hear(made, LOST)
    world.now += TTL_S


def test_hosts_of_which_nothing_is_known_are_asked_by_the_request_itself(world: World) -> None:
    world.up.clear()
    assert world.network.state() == "online"
    assert world.asked == []


def test_hosts_that_were_lost_are_asked_once_in_a_while(world: World) -> None:
    lost(world, world.a, world.b)
    assert world.network.state() == "online"
    assert world.network.state() == "online"
    assert world.asked == [("a.example", 443), ("b.example", 443)]
    lost(world, world.a, world.b)
    world.up.clear()
    assert world.network.state() == "offline"
    assert world.network.state() == "offline"
    assert len(world.asked) == 4


def test_some_hosts_make_it_degraded(world: World) -> None:
    lost(world, world.a, world.b)
    world.up.discard("b.example")
    assert world.network.state() == "degraded"


def test_an_endpoint_that_is_watched_later_is_known_too(world: World) -> None:
    network = Network([], clock=lambda: world.now, ask=world.ask, interface=lambda: True, environment={})
    assert network.state() == "online"
    network.watch(world.a)
    network.hear(world.a, LOST)
    assert network.state() == "offline"


def test_what_attempts_met_is_known_without_asking(world: World) -> None:
    world.network.hear(world.a, LOST)
    world.network.hear(world.b, LOST)
    assert world.network.state() == "offline"
    world.network.hear(world.a, None)
    assert world.network.state() == "degraded"
    assert world.asked == []


@pytest.mark.parametrize(
    ("kind", "reason", "state"),
    [
        ("captive", "page", "offline"), ("connection", "tls-host", "offline"), ("connection", "resolve", "offline"),
        ("server", "status-500", "online"), ("credentials", "status-401", "online"), ("timeout", "first-token", "online"),
        ("rate_limited", "status-429", "online"),
    ],
)  # fmt: skip
def test_a_page_in_place_of_an_answer_is_no_network_and_an_error_of_the_endpoint_is_one(
    kind: str, reason: str, state: str, world: World
) -> None:
    for made in (world.a, world.b):
        world.network.hear(made, CloudFailure("x", kind=kind, reason=reason))  # type: ignore[arg-type]
    assert world.network.state() == state


@pytest.mark.parametrize("reason", ["offline", "no-key", "deadline", "aborted"])
def test_what_was_never_sent_tells_nothing(reason: str, world: World) -> None:
    world.network.hear(world.a, CloudFailure("x", kind="connection", reason=reason))
    assert world.network.known() == "online"
    world.now += TTL_S
    world.network.state()
    assert world.asked == []


def test_without_an_interface_nobody_is_asked(world: World) -> None:
    world.interface = False
    assert world.network.state() == "offline"
    assert world.asked == []


def test_forced_offline_asks_nobody(world: World) -> None:
    world.environment["EDGEAI_OFFLINE"] = "1"
    assert world.network.state() == world.network.known() == "forced_offline"
    assert world.asked == []


def test_what_is_known_can_be_had_without_asking(world: World) -> None:
    assert world.network.known() == "online"
    assert world.asked == []
    world.network.hear(world.a, LOST)
    assert world.network.known() == "degraded"


def test_one_asks_and_others_take_what_was_known(world: World) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(where: tuple[str, int]) -> bool:
        world.asked.append(where)
        begun.set()
        return go.wait(20)

    world.network._ask = slow
    lost(world, world.a, world.b)
    asking = threading.Thread(target=world.network.state)
    asking.start()
    assert begun.wait(20)
    assert world.network.state() == "offline"  # as it was before
    go.set()
    asking.join()
    assert world.asked == [("a.example", 443), ("b.example", 443)]
    assert world.network.state() == "online"


def test_attempts_are_heard() -> None:
    with serve(GOOD, answer("200 OK", b"<html>", kind="text/html")) as server, endpoint(server.url) as made:
        network = Network([made], ask=lambda _: False, environment={})
        ask(made)
        assert network.known() == "online"
        failure_of(made)
        assert network.known() == "offline"


def test_a_probe_connects_to_the_host_and_sends_nothing() -> None:
    with serve(GOOD) as server:
        assert probe(("127.0.0.1", server.port))
        assert server.requests == []
    assert not probe(("127.0.0.1", server.port))


def test_interfaces_are_looked_at_without_a_packet() -> None:
    assert has_interface() in (True, False)


def test_an_endpoint_behind_a_proxy_is_reached_where_the_proxy_is() -> None:
    with endpoint("https://far.example/v1", environment={"HTTPS_PROXY": "http://u:p@proxy:3128"}) as made:
        assert made.reaches == ("proxy", 3128)
