"""An endpoint that speaks OpenAI's chat API: what is known of it, its connections, and attempts to get an answer from it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import edgeai
from edgeai.config import CloudSettings, Timeouts
from edgeai.engines.cloud.address import PORTS, read_address
from edgeai.engines.cloud.attempt import Attempt, Line
from edgeai.engines.cloud.body import encode, limits
from edgeai.engines.cloud.key import Found, Key, find_key
from edgeai.engines.cloud.proxy import find_proxy
from edgeai.engines.cloud.tls import make_context
from edgeai.engines.cloud.watch import HERE, Watch
from edgeai.errors import ClosedError, CloudFailure
from edgeai.fetch import is_offline
from edgeai.types import GenerationConfig, Prompt

if TYPE_CHECKING:
    import ssl

    import httpcore2

__all__ = ["Endpoint", "Listener"]

KEEP_S = 10.0
"""How long a connection is kept that is not used: shorter than servers keep theirs."""
KEPT = 16
JUMP_S = 5.0
"""Where the wall clock gained so much on the monotonic one, the machine was suspended: connections are not what they were."""

Listener = Callable[["Endpoint", CloudFailure | None], None]
"""Hears how an attempt ended: with a failure, or None for an answer."""


class Endpoint:
    """The endpoint of SETTINGS. Safe to use from many threads; nothing is sent before an attempt is iterated.

    KEY goes before what the configuration and ENVIRONMENT (this process's) say. Raises UsageError for a base URL, a key or a ca_file that
    cannot be used.
    """

    def __init__(
        self, settings: CloudSettings, timeouts: Timeouts, *, key: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.timeouts = timeouts
        self._environment = os.environ if environment is None else environment
        self._address = read_address(settings.base_url, http=settings.http)
        self._proxy = find_proxy(self._address, self._environment)
        origin = self._address.origin
        self._found = None if key is None else Found(key=Key(key, origin=origin, source="the argument"))
        self._context: ssl.SSLContext | None = None
        if settings.ca_file is not None:  # a file that is not there shows at once; the system's certificates take 10 ms
            self._context = make_context(settings.ca_file)
        self._lock = threading.Lock()
        self._pool: httpcore2.ConnectionPool | None = None
        self._awake = 0.0
        self._closed = False
        self.listeners: list[Listener] = []
        self._line = Line(
            name=self.name, model=self.model, host=self.host, timeouts=timeouts, send=self._send, note=self._note,
            key_source=self._key_source,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self.settings.name

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return self.settings.model

    @property
    def host(self) -> str:
        """Where it is, with the port where it is not the usual one."""
        return self._address.netloc

    @property
    def url(self) -> str:
        """Where requests go."""
        return self._address.url

    @property
    def proxy(self) -> str | None:
        """The proxy that requests pass through, without its password; None for a direct connection."""
        return None if self._proxy is None else self._proxy.url

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        return self._address.loopback

    @property
    def reaches(self) -> tuple[str, int]:
        """The host and port that a connection is made to: its own, or its proxy's."""
        if self._proxy is None:
            return self._address.host, self._address.port
        host, _, port = self._proxy.url.removeprefix("http://").rpartition(":")
        return host.strip("[]"), int(port) if port.isdigit() else 80

    def problem(self) -> str | None:
        """Return what is known against it before anything is sent: no key, a proxy that cannot be used. May ask the keyring, once."""
        if self._proxy is not None and self._proxy.problem:
            return self._proxy.problem
        return self._key().problem

    def encode(self, prompt: Prompt, config: GenerationConfig) -> bytes:
        """Return the bytes of the body that `attempt` sends. Raises UsageError for what cannot be sent; see body.limits."""
        limits(prompt, config, model=self.model, host=self._address.host)
        return encode(prompt, config, model=self.model, host=self._address.host)

    def attempt(
        self, prompt: Prompt, config: GenerationConfig, *, deadline: float | None = None, first_token_s: float | None = None,
        body: bytes | None = None, repeats: bool = True,
    ) -> Attempt:  # fmt: skip
        """Return an attempt to answer PROMPT, which is made when it is iterated.

        DEADLINE is in time.monotonic; FIRST_TOKEN_S stands for that of the timeouts. BODY is what `encode` gave for it. Where a connection
        was closed while it was not used, the request is written once more to a fresh one if it REPEATS.
        Raises UsageError as `encode` does.
        """
        notices = limits(prompt, config, model=self.model, host=self._address.host)
        if body is None:
            body = encode(prompt, config, model=self.model, host=self._address.host)
        return Attempt(
            self._line, body, config, notices, deadline=deadline, first_token_s=first_token_s, repeats=repeats
        )

    def close(self) -> None:
        """Close the connections; attempts that run fail. Calling it twice is fine."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __repr__(self) -> str:
        return f"<Endpoint {self.name!r} at {self.host}>"

    def _key(self) -> Found:
        with self._lock:
            if self._found is None:
                self._found = find_key(self.settings.api_key, self._address, self._environment)
            return self._found

    def _key_source(self) -> str:
        found = self._key().key
        return "" if found is None else found.source

    def _note(self, failure: CloudFailure | None) -> None:
        for listener in self.listeners:
            listener(self, failure)

    def _send(self, body: bytes, watch: Watch) -> httpcore2.Response:
        """Write BODY and return the head of what is answered; a connection that was closed while it was not used is replaced once."""
        import httpcore2

        self._check_allowed()
        request = self._request(body)
        HERE.watch = watch
        try:
            try:
                return self._ready_pool().handle_request(request)
            except (CloudFailure, httpcore2.RemoteProtocolError) as error:
                broke = not isinstance(error, CloudFailure) or error.reason == "reset"
                if not (broke and watch.stale and watch.repeats) or watch.aborted:
                    raise
            self._drop_idle()
            watch.requests += 1
            watch.again()
            return self._ready_pool().handle_request(self._request(body))
        finally:
            HERE.watch = None

    def _check_allowed(self) -> None:
        if is_offline(self._environment):
            raise CloudFailure(
                f"EDGEAI_OFFLINE is set, and {self.host} is not asked", kind="connection", reason="offline",
                hint="unset EDGEAI_OFFLINE",
            )  # fmt: skip
        if self._proxy is not None and self._proxy.problem:
            raise CloudFailure(
                self._proxy.problem, kind="connection", reason="proxy", hint="change HTTPS_PROXY or NO_PROXY"
            )
        if problem := self._key().problem:
            raise CloudFailure(
                f"{self.host} is not asked: {problem}", kind="credentials", reason="no-key",
                hint='set api_key = "env:NAME" or "keyring:NAME", and what it names',
            )  # fmt: skip

    def _request(self, body: bytes) -> httpcore2.Request:
        import httpcore2

        key = self._key().key
        headers = [
            (b"Host", self._address.netloc.encode("ascii")),
            (b"User-Agent", f"edgeai/{edgeai.__version__}".encode()),
            (b"Accept", b"text/event-stream, application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", str(len(body)).encode()),
        ]
        if key is not None:
            headers.append((b"Authorization", key.header(self._address.origin)))
        at = self._address
        host = at.host.encode("ascii")
        port = None if at.port == PORTS[at.scheme] else at.port
        url = httpcore2.URL(scheme=at.scheme.encode(), host=host, port=port, target=at.path.encode())
        return httpcore2.Request(b"POST", url, headers=headers, content=body)

    def _ready_pool(self) -> httpcore2.ConnectionPool:
        awake = time.time() - time.monotonic()
        with self._lock:
            if self._closed:
                raise ClosedError(f"the endpoint {self.name!r} is closed", hint="open it again")
            if self._pool is None:
                self._pool = self._make_pool()
                self._awake = awake
            jumped, self._awake = abs(awake - self._awake) > JUMP_S, awake
            pool = self._pool
        if jumped:
            self._drop_idle()
        return pool

    def _make_pool(self) -> httpcore2.ConnectionPool:
        import httpcore2

        from edgeai.engines.cloud.wire import Backend

        if self._context is None and self._address.scheme == "https":
            self._context = make_context(self.settings.ca_file)
        return httpcore2.ConnectionPool(
            ssl_context=self._context,
            proxy=None if self._proxy is None else httpcore2.Proxy(self._proxy.url, auth=self._proxy.auth),
            max_connections=None, max_keepalive_connections=KEPT, keepalive_expiry=KEEP_S, network_backend=Backend(),
        )  # fmt: skip

    def _drop_idle(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            pool = self._pool
        for connection in pool.connections if pool is not None else ():
            if connection.is_idle():
                connection.close()
