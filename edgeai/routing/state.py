"""What this machine is like just now, for a policy: how busy, how much memory, on battery, behind a metered network. Never a network call.

Everything is read at most every few seconds. What a system does not tell counts as no hindrance: `metered` is known on Linux with
NetworkManager only, and EDGEAI_METERED=1 (or 0) says it anywhere; without a battery there is none to spare.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeai.config import CloudSettings
from edgeai.errors import UsageError
from edgeai.routing.request import Breaker, CloudState, LocalState, Online, State

if TYPE_CHECKING:
    from edgeai.artifact import Artifact
    from edgeai.plan import Plan
    from edgeai.routing.confidence import Head

__all__ = ["Machine", "Sensors", "cloud_state", "gather", "is_metered", "local_state"]

FRESH_S = 3.0
METERED_FRESH_S = 60.0
"""Networks change less often than loads, and asking takes a process of some milliseconds."""
BUS_TIMEOUT_S = 0.5
METERED = ("busctl", "--system", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
           "org.freedesktop.NetworkManager", "Metered")  # fmt: skip
YES = {"u 1", "u 3"}
"""NM_METERED_YES and NM_METERED_GUESS_YES (NetworkManager's D-Bus types), as busctl prints them."""
WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One look at this machine: `load` is the share of all processors that others use, `battery` the share of charge, 0 to 1."""

    load: float = 0.0
    free_bytes: int | None = None
    on_battery: bool = False
    battery: float | None = None
    metered: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds since some start: of all time there was, of what was busy, and of this process."""

    total_s: float
    busy_s: float
    own_s: float


class Sensors:
    """Looks at this machine, at most every FRESH_S by `clock`; one object serves all threads.

    The load is what others used since the look before, children of this process among them; the first look knows of none. A load average
    would count what has ended, and this process: a request would leave the machine for what was before it.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, environment: Mapping[str, str] | None = None,
        root: Path = Path("/"),
    ) -> None:  # fmt: skip
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._root = root
        self._lock = threading.Lock()
        self._seen: tuple[float, Machine] | None = None
        self._metered: tuple[float, bool] | None = None
        self._used: Used | None = None

    def machine(self) -> Machine:
        """Return how the machine is, as of now or a few seconds ago. Raises UsageError for an EDGEAI_METERED that is neither yes nor no."""
        with self._lock:
            now = self._clock()
            if self._seen is None or now - self._seen[0] >= FRESH_S:
                self._seen = now, self._look(now)
            return self._seen[1]

    def _look(self, now: float) -> Machine:
        from edgeai.device import memory_facts

        if self._metered is None or now - self._metered[0] >= METERED_FRESH_S:
            self._metered = now, is_metered(self._environment, self._root)
        before, self._used = self._used, processor_time()
        battery, on_battery = battery_charge()
        return Machine(
            load=0.0 if before is None else load_of_others(before, self._used),
            free_bytes=memory_facts(self._root).available,
            on_battery=on_battery,
            battery=battery,
            metered=self._metered[1],
        )


def processor_time() -> Used:
    """Return the processor time so far."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # Linux counts these in user and nice too
    total = sum(times) - guest
    own = psutil.Process().cpu_times()
    return Used(total_s=total, busy_s=total - idle, own_s=own.user + own.system)


def load_of_others(before: Used, now: Used) -> float:
    """Return the share of all processors that others used between two looks, 0 to 1."""
    total = now.total_s - before.total_s
    if total <= 0:
        return 0.0
    others = (now.busy_s - before.busy_s) - (now.own_s - before.own_s)
    return min(1.0, max(0.0, others / total))


def battery_charge() -> tuple[float | None, bool]:
    """Return (the share of charge, whether it is what this machine runs on); (None, False) without a battery."""
    import psutil

    sensors = getattr(psutil, "sensors_battery", None)
    found = None if sensors is None else sensors()
    if found is None:
        return None, False
    return min(1.0, max(0.0, found.percent / 100)), found.power_plugged is False


def is_metered(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Return whether bytes cost here: what EDGEAI_METERED says, else NetworkManager; False where nobody knows."""
    said = environment.get("EDGEAI_METERED")
    if said is not None:
        if said.lower() not in WORDS:
            raise UsageError(f"EDGEAI_METERED {said!r} is not possible", hint="it must be 1 or 0")
        return WORDS[said.lower()]
    if not (root / "run/NetworkManager").is_dir():
        return False
    try:
        asked = subprocess.run(METERED, capture_output=True, text=True, timeout=BUS_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no busctl, or a bus that hangs: not known
        return False
    return asked.stdout.strip() in YES


# ---- for a policy


def local_state(
    artifact: Artifact, machine: Machine, *, model: str, plan: Plan | None = None, loaded: bool = False,
    head: Head | None = None, problem: str | None = None,
) -> LocalState:  # fmt: skip
    """Return what a policy may know of the local model: its file ARTIFACT, its PLAN if it has one, its confidence HEAD if it has one.

    Without a plan it needs as much memory as its file is large, and has its trained context.
    """
    return LocalState(
        model=model,
        context=artifact.context if plan is None else plan.context,
        ability={} if head is None else dict(head.ability),
        calibrated=head is not None,
        loaded=loaded,
        load=machine.load,
        needed_bytes=artifact.size_bytes if plan is None else plan.needed_bytes,
        free_bytes=machine.free_bytes,
        on_battery=machine.on_battery,
        battery=machine.battery,
        problem=problem,
    )


def cloud_state(settings: CloudSettings, *, breaker: Breaker = "closed", problem: str | None = None) -> CloudState:
    """Return what a policy may know of an endpoint: its SETTINGS, its circuit breaker, and what is known against it."""
    return CloudState(
        name=settings.name,
        model=settings.model,
        context=settings.context,
        quality=settings.quality,
        usd_per_million_input=settings.usd_per_million_input,
        usd_per_million_output=settings.usd_per_million_output,
        breaker=breaker,
        problem=problem,
    )


def gather(
    machine: Machine, *, local: LocalState | None = None, clouds: Iterable[CloudState] = (), online: Online = "online",
    spent_usd: float = 0.0,
) -> State:  # fmt: skip
    """Return everything outside the request that a policy may know."""
    return State(local=local, clouds=tuple(clouds), online=online, metered=machine.metered, spent_usd=spent_usd)
