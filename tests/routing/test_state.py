"""What a policy may know of this machine: read seldom, and nothing is asked of a network."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from edgeai.config import CloudSettings
from edgeai.engines.fake import FakeEngine
from edgeai.errors import UsageError
from edgeai.routing import state
from edgeai.routing.state import Machine, Sensors, Used, cloud_state, gather, is_metered, load_of_others, local_state


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("busy_s", "own_s", "load"), [(8.0, 0.0, 0.8), (8.0, 5.0, 0.3), (5.0, 6.0, 0.0), (12.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
)
def test_load_is_what_others_used_of_all_time_there_was(busy_s: float, own_s: float, load: float) -> None:
    before = Used(total_s=100.0, busy_s=50.0, own_s=3.0)
    now = Used(total_s=110.0, busy_s=50.0 + busy_s, own_s=3.0 + own_s)
    assert load_of_others(before, now) == pytest.approx(load)


def test_no_time_is_no_load() -> None:
    used = Used(total_s=1.0, busy_s=1.0, own_s=0.0)
    assert load_of_others(used, used) == 0.0


def test_processor_time_grows_with_what_this_process_uses() -> None:
    before = state.processor_time()
    while state.processor_time().own_s < before.own_s + 0.02:
        sum(range(10_000))
    now = state.processor_time()
    assert now.total_s > before.total_s
    assert now.busy_s > before.busy_s - 0.5  # the time that waits for disks may go down (proc_stat(5))


def test_the_machine_is_looked_at_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), []
    monkeypatch.setattr(state, "battery_charge", lambda: looks.append(1) or (0.5, True))
    sensors = Sensors(clock=clock, environment={})
    first = sensors.machine()
    clock.now_s = state.FRESH_S - 0.01
    assert sensors.machine() is first
    assert len(looks) == 1
    clock.now_s = state.FRESH_S
    assert sensors.machine() is not first
    assert len(looks) == 2
    assert (first.battery, first.on_battery) == (0.5, True)
    assert first.free_bytes is not None
    assert first.free_bytes > 0


def test_the_network_is_asked_about_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), []
    monkeypatch.setattr(state, "is_metered", lambda *_: bool(asked.append(1)) or True)
    sensors = Sensors(clock=clock, environment={})
    for clock.now_s in (0.0, 10.0, 59.0):
        assert sensors.machine().metered
    assert len(asked) == 1
    clock.now_s = 62.0
    sensors.machine()
    assert len(asked) == 2


def test_no_socket_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    assert isinstance(Sensors(environment={}).machine(), Machine)


BATTERIES = [
    (None, (None, False)),
    ((9.0, False), (0.09, True)),
    ((50.0, True), (0.5, False)),
    ((100.0, None), (1.0, False)),
]


@pytest.mark.parametrize(("found", "expected"), BATTERIES)
def test_a_battery_is_used_only_when_nothing_is_plugged_in(
    found: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    battery = None if found is None else SimpleNamespace(percent=found[0], power_plugged=found[1])
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert state.battery_charge() == expected


def test_a_system_that_knows_no_batteries_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert state.battery_charge() == (None, False)


def test_the_first_look_knows_of_no_load() -> None:
    assert Sensors(clock=lambda: 0.0, environment={}).machine().load == 0.0


# ---- metered networks


@pytest.mark.parametrize(("said", "expected"), [("1", True), ("true", True), ("0", False), ("", False), ("No", False)])
def test_the_environment_says_whether_bytes_cost(said: str, expected: bool) -> None:
    assert is_metered({"EDGEAI_METERED": said}) is expected


def test_a_wrong_word_is_an_error_with_the_value() -> None:
    with pytest.raises(UsageError, match="EDGEAI_METERED 'maybe' is not possible"):
        is_metered({"EDGEAI_METERED": "maybe"})


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("u 1\n", True), ("u 3\n", True), ("u 2\n", False), ("u 4\n", False), ("u 0\n", False), ("", False)],
)
def test_network_manager_is_asked_where_it_runs(
    printed: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/NetworkManager").mkdir(parents=True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=printed))
    assert is_metered({}, tmp_path) is expected


@pytest.mark.parametrize("error", [FileNotFoundError("busctl"), subprocess.TimeoutExpired("busctl", 0.5)])
def test_a_bus_that_does_not_answer_is_no_hindrance(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    (tmp_path / "run/NetworkManager").mkdir(parents=True)
    monkeypatch.setattr(subprocess, "run", fail)
    assert not is_metered({}, tmp_path)


def test_without_network_manager_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert not is_metered({}, tmp_path)


# ---- states


def test_a_state_holds_what_was_gathered() -> None:
    engine = FakeEngine()
    machine = Machine(load=0.4, free_bytes=10, on_battery=True, battery=0.3, metered=True)
    local = local_state(engine.artifact, machine, model="fake", plan=engine.plan, loaded=True)
    cloud = cloud_state(CloudSettings(name="big", base_url="https://x/v1", model="m", quality=0.8), breaker="open")
    found = gather(machine, local=local, clouds=[cloud], online="degraded", spent_usd=0.2)
    assert (local.model, local.context, local.load, local.battery) == ("fake", 64, 0.4, 0.3)
    assert not local.calibrated
    assert (cloud.name, cloud.quality, cloud.breaker) == ("big", 0.8, "open")
    assert found.metered
    assert (found.online, found.spent_usd, found.clouds) == ("degraded", 0.2, (cloud,))
