"""What routed requests share and decisions look at: detectors, marks, the local model, endpoints with their breakers, the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeai.config import CloudSettings, Config
from edgeai.errors import EdgeAIError, UsageError
from edgeai.fetch import is_offline
from edgeai.routing.attempts import Upstream
from edgeai.routing.breaker import Breaker
from edgeai.routing.local import LocalModel
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.taint import Taint
from edgeai.routing.request import LocalState, Online, State
from edgeai.routing.retrying import RetryBudget
from edgeai.routing.state import Sensors, cloud_state, gather, local_state
from edgeai.routing.timers import Timers
from edgeai.types import GenerationConfig, Prompt

if TYPE_CHECKING:
    from edgeai.engines.cloud import Network
    from edgeai.routing.ledger import Ledger

__all__ = ["MakeEndpoint", "Surroundings"]

MakeEndpoint = Callable[[CloudSettings], Upstream]


class Surroundings:
    """Everything about CONFIG, the LOCAL model and the endpoints that is not of one request. Safe to use from many threads.

    MAKE makes an endpoint of its settings; LEDGER keeps what was decided (None: nothing is kept). KEYS: name of an endpoint → its key,
    before what the configuration and the environment say.
    """

    def __init__(
        self, config: Config, local: LocalModel | None, *, make: MakeEndpoint | None = None, ledger: Ledger | None = None,
        detector: Detector | None = None, taint: Taint | None = None, keys: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.local, self.ledger = config, local, ledger
        self.timers, self.budget = Timers(), RetryBudget(config.routing.retry_budget)
        self.taint = taint or Taint()
        self.detector = detector or Detector(config.privacy, taint=self.taint)
        self._sensors = Sensors()
        self._make = make or self._endpoint
        self._keys = dict(keys or {})
        self._lock = threading.RLock()
        self._settings = {cloud.name: cloud for cloud in config.cloud}
        self._breakers = {cloud.name: Breaker() for cloud in config.cloud}
        self._endpoints: dict[tuple[str, str], Upstream] = {}
        self._network: Network | None = None

    # ---- how things are

    def state(self, *, look: bool) -> State:
        """Return this machine and the endpoints as they are now; with LOOK one may be connected to, to see if there is a network."""
        limited = self.config.routing.usd_per_day is not None
        return gather(
            self._sensors.machine(),
            local=self._local_state(),
            clouds=[
                cloud_state(cloud, breaker=self._breakers[cloud.name].state, problem=self._problem(cloud))
                for cloud in self.config.cloud
            ],
            online=self._online(look=look),
            spent_usd=self.ledger.spent_usd() if limited and self.ledger is not None else 0.0,
        )

    def _local_state(self) -> LocalState | None:
        local = self.local
        if local is None:
            return None
        if (problem := local.problem()) is not None:
            return LocalState(model=local.name, problem=problem)
        plan = local.engine(0.0).plan if local.is_loaded else None
        machine = self._sensors.machine()
        return local_state(
            local.artifact(), machine, model=local.name, plan=plan, loaded=plan is not None, head=local.head()
        )

    def _problem(self, cloud: CloudSettings) -> str | None:
        try:
            return self.endpoint(cloud.name, cloud.model)[0].problem()
        except EdgeAIError as error:
            return error.message

    def _online(self, *, look: bool) -> Online:
        if is_offline():
            return "forced_offline"
        network = self._network
        if network is None:
            return "online"
        return network.state() if look else network.known()

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens TEXT is for the local model, None while that is not loaded."""
        if self.local is None or not self.local.is_loaded:
            return None
        return len(self.local.engine(0.0).tokenize(text))

    # ---- endpoints

    def endpoint(self, name: str, model: str) -> tuple[Upstream, Breaker]:
        """Return the endpoint NAME, to be asked for MODEL, and its breaker. Raises UsageError for an address that cannot be one."""
        with self._lock:
            found = self._endpoints.get((name, model))
            if found is None:
                found = self._endpoints[name, model] = self._make(replace(self._settings[name], model=model))
            return found, self._breakers[name]

    def problem_with(self, name: str, prompt: Prompt, config: GenerationConfig) -> str | None:
        """Say why the endpoint NAME cannot be asked this, None where it can."""
        try:
            self.endpoint(name, self._settings[name].model)[0].encode(prompt, config)
        except UsageError as error:
            return error.message
        return None

    def _endpoint(self, settings: CloudSettings) -> Upstream:
        from edgeai.engines.cloud import Endpoint, Network

        endpoint = Endpoint(settings, self.config.timeouts, key=self._keys.get(settings.name))
        if self._network is None:
            self._network = Network([])
        self._network.watch(endpoint)
        return endpoint

    def price_usd(self, model: str, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what MODEL, like `cloud/NAME`, takes for so many tokens; nothing for the local one."""
        cloud = self._settings.get(model.removeprefix("cloud/")) if model.startswith("cloud/") else None
        if cloud is None:
            return 0.0
        return (prompt_tokens * cloud.usd_per_million_input + completion_tokens * cloud.usd_per_million_output) / 1e6

    def close(self) -> None:
        """Free the local model, close connections, write what is left for the ledger."""
        self.timers.close()
        with self._lock:
            endpoints: list[Any] = list(self._endpoints.values())
        for endpoint in endpoints:
            endpoint.close()
        if self.local is not None:
            self.local.close()
        if self.ledger is not None:
            self.ledger.close()
        self.detector.close()
        self.taint.close()
