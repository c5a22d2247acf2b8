"""The fault lab: an endpoint on the loopback that fails as it is told, over real sockets, and keeps what it saw.

It speaks as much HTTP/1.1 as a chat client needs: `POST …/chat/completions`, streamed or whole, and `GET …/models`. What goes wrong is in
behaviours.py, under the names that `set` and `script` take. Everything happens on an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

from edgeai.chaos import answers
from edgeai.chaos.behaviours import BEHAVIOURS, CONNECTING, PORTS
from edgeai.chaos.certificates import CA_FILE, KINDS, certificate
from edgeai.chaos.wire import Exchange, Left, Seen, Wire
from edgeai.errors import UsageError

__all__ = ["CA_FILE", "UPSTREAM", "Lab"]

HOST = "127.0.0.1"
UPSTREAM = ("http", *(f"tls-{kind}" for kind in KINDS))
"""The listeners that stand for the endpoint; a request to any other should not have been made."""
RAW = ("plain", "tls-hang", "tls-cut")
"""Where TLS is expected: a port that speaks plain HTTP, one that never answers, one that resets."""
PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\nConnection: close\r\n\r\nplain HTTP is spoken here.\n"
WAIT_S = 10.0
"""For the lab's own thread to do what it is told."""
STEP_S = 0.005

T = TypeVar("T")


class Lab:
    """An endpoint with the fault that was set, on port PORT (0: any) of the loopback, while the `with` block lasts.

    SECOND is the port of a second endpoint that always answers LOCAL_ANSWER, for gateways that fall back to one.
    """

    def __init__(self, port: int = 0, second: int = 0) -> None:
        self.port = port
        self.ports: dict[str, int] = {}
        self.problems: list[BaseException] = []
        self._second = second
        self._seen: list[Seen] = []
        self._script: list[str] = []
        self._rest = "good"
        self._rng = random.Random(0)  # noqa: S311 - no secret
        self._wires: set[Wire] = set()
        self._servers: dict[str, asyncio.Server] = {}
        self._closed: list[socket.socket] = []
        self._mode = "open"
        self._attempt = 0
        self._told: dict[str, Callable[[], None]] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="edgeai-chaos-lab", daemon=True)

    # What a scorer does with it.

    @property
    def url(self) -> str:
        """The base URL of the endpoint."""
        return self.urls["http"]

    @property
    def urls(self) -> dict[str, str]:
        """The base URL of each listener."""
        found = {}
        for name, port in self.ports.items():
            scheme = "https" if name in (*UPSTREAM[1:], *RAW) else "http"
            found[name] = f"{scheme}://{HOST}:{port}" + ("" if name == "proxy" else "/v1")
        return found

    @property
    def seen(self) -> list[Seen]:
        """What was seen since the last `set` or `script`, in the order in which it came."""
        return list(self._seen)

    @property
    def attempts(self) -> list[Seen]:
        """The attempts to get an answer from the endpoint: requests for one, and connections that were not let come to a request."""
        return [seen for seen in self._seen if seen.listener in UPSTREAM and seen.method in ("POST", "")]

    def set(self, fault: str, *, times: int | None = None, seed: int = 0) -> None:
        """Serve FAULT from now on, TIMES requests (None: all) and then good answers; what was seen before is forgotten.

        All connections are ended: a fault of connecting must meet a client that connects. Raises UsageError for a name that is none.
        """
        _check([fault])
        script, rest = ([], fault) if times is None else ([fault] * times, "good")
        self._do(self._change(script, rest, seed, PORTS.get(fault, "open"), drop=True))

    def script(self, faults: Sequence[str], *, seed: int = 0, then: str = "good") -> None:
        """Serve each of FAULTS to one request, in order, and THEN to all others; connections stay open.

        Faults of connecting meet the next request where the client keeps a connection. Those of the whole port cannot be in a script.
        """
        _check([*faults, then])
        if found := next((name for name in (*faults, then) if name in PORTS), None):
            raise UsageError(f"{found!r} cannot be in a script", hint="it closes the whole port: use set()")
        self._do(self._change(list(faults), then, seed, "open", drop=False))

    def reset_idle(self) -> None:
        """End every connection that waits for a request, without a word: what a middle box does to a connection that was idle."""
        self._do(self._drop_idle())

    def hold_idle(self) -> None:
        """Let every open connection take what comes and never answer: what is left of one after a change of networks."""
        self._do(self._hold_idle())

    def tell(self, name: str, act: Callable[[], None]) -> None:
        """Call ACT in the lab's thread when a behaviour signals NAME ("words": some text of an answer is out)."""
        self._told[name] = act

    def wait_closed(self, seconds: float) -> bool:
        """Wait until every exchange has ended, at most SECONDS; return whether they have."""
        until = time.monotonic() + seconds
        while any(seen.open for seen in self._seen):
            if time.monotonic() > until:
                return False
            time.sleep(STEP_S)
        return True

    def __enter__(self) -> Lab:
        self._thread.start()
        self._ready.wait(WAIT_S)
        if self._failed is not None:
            self._thread.join(WAIT_S)
            raise UsageError(
                f"the lab cannot listen on port {self.port}: {self._failed}", hint="use a port that is free"
            ) from self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(WAIT_S)

    # The thread.

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # TLS that a client refuses is what is wanted, no matter for a log.
        self._loop.set_exception_handler(self._take_problem)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failed = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._ready.set()

    def _take_problem(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # ssl.SSLError is one
            self.problems.append(error)

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._listen_all()
            self._ready.set()
            await self._stopping.wait()
        finally:
            await self._drop_all()
            for name in list(self._servers):
                await self._close(name)
            self._free_port()

    async def _listen_all(self) -> None:
        self.port = await self._listen("http", self.port)
        await self._listen("second", self._second)
        for name in ("other", "proxy", *RAW):
            await self._listen(name)
        for kind in KINDS:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate(kind))
            await self._listen(f"tls-{kind}", context=context)

    async def _listen(self, name: str, port: int = 0, context: ssl.SSLContext | None = None) -> int:
        serve = self._answer_raw if name in RAW else self._converse
        server = await self._loop.create_server(
            functools.partial(Wire, serve, name), HOST, port, reuse_address=True, ssl=context, backlog=256
        )
        self._servers[name] = server
        self.ports[name] = int(server.sockets[0].getsockname()[1])
        return self.ports[name]

    async def _close(self, name: str) -> None:
        server = self._servers.pop(name)
        server.close()
        await server.wait_closed()

    async def _change(self, script: list[str], rest: str, seed: int, mode: str, *, drop: bool) -> None:
        self._script, self._rest, self._attempt = script, rest, 0
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        if drop:
            await self._drop_all()
        self._seen.clear()
        self._told.clear()
        if mode != self._mode:
            await self._turn(mode)

    async def _turn(self, mode: str) -> None:
        """Let the endpoint's port be open, refuse connections, or be a black hole for them."""
        self._mode = mode
        if "http" in self._servers:
            await self._close("http")
        self._free_port()
        if mode == "open":
            await self._listen("http", self.port)
            return
        keeper = socket.socket()
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((HOST, self.port))  # bound and not listening: the kernel refuses, and nobody else takes the port
        self._closed.append(keeper)
        if mode == "blackhole":
            # Linux drops a SYN to a listener whose queue is full, and one of length 0 is full with one connection: the second and later
            # callers wait as before a firewall. Others kernels may refuse instead; what the test of this fault finds is the truth.
            keeper.listen(0)
            for _ in range(3):
                filler = socket.socket()
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect((HOST, self.port))
                self._closed.append(filler)
            await asyncio.sleep(STEP_S)

    def _free_port(self) -> None:
        for each in self._closed:
            each.close()
        self._closed.clear()

    async def _drop_all(self) -> None:
        wires = list(self._wires)
        for wire in wires:
            wire.drop()
        await asyncio.gather(*(wire.task for wire in wires), return_exceptions=True)
        for _ in range(3):  # the loop calls connection_lost, and closes the sockets, in the rounds after
            await asyncio.sleep(0)

    async def _drop_idle(self) -> None:
        for wire in list(self._wires):
            if not any(seen.open for seen in self._seen):
                wire.close()
        await asyncio.sleep(STEP_S)

    async def _hold_idle(self) -> None:
        for wire in self._wires:
            wire.held = True

    # A connection.

    async def _answer_raw(self, wire: Wire) -> None:
        """Meet a client that speaks TLS as the listener's name says."""
        self._wires.add(wire)
        seen = Seen(listener=wire.listener, at=time.monotonic(), fault=wire.listener)
        self._seen.append(seen)
        try:
            seen.body = await wire.read_some()
            if wire.listener == "plain":
                await wire.send(PLAIN)
                wire.close()
            elif wire.listener == "tls-cut":
                await wire.reset()
            else:
                await asyncio.Event().wait()
        except Left:
            return
        finally:
            self._end(wire, seen)
            self._wires.discard(wire)

    async def _converse(self, wire: Wire) -> None:
        """Read requests from WIRE and answer them, until one of both ends it."""
        self._wires.add(wire)
        seen: Seen | None = None
        try:
            if wire.listener in UPSTREAM and (name := self._next_connecting()):
                seen = Seen(listener=wire.listener, at=time.monotonic(), fault=name)
                self._seen.append(seen)
                await CONNECTING[name](wire)
                return
            while True:
                seen = None
                seen = await self._read_request(wire)
                if not await self._answer(wire, seen):
                    return
                self._end(wire, seen)
        except (Left, ConnectionError, ssl.SSLError):
            return
        except Exception as error:  # noqa: BLE001 - a bug of the lab: the scorer asks for `problems`
            self.problems.append(error)
        finally:
            if seen is not None:
                self._end(wire, seen)
            self._wires.discard(wire)
            if not wire.closing:
                wire.close()

    def _end(self, wire: Wire, seen: Seen) -> None:
        seen.left_at = wire.left_at
        if seen.left_at is None and seen.ended_at is None:
            seen.ended_at = time.monotonic()
        seen.sent_bytes = max(seen.sent_bytes, wire.taken_bytes)

    async def _read_request(self, wire: Wire) -> Seen:
        head = await wire.read_until(b"\r\n\r\n")
        while wire.held:
            await asyncio.Event().wait()
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ")
        headers = tuple(
            (name.strip().lower(), value.strip())
            for name, mark, value in (line.partition(":") for line in lines)
            if mark
        )
        seen = Seen(listener=wire.listener, at=time.monotonic(), headers=headers, reused=wire.requests > 0)
        wire.requests += 1
        self._seen.append(seen)
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            seen.body = head
            return seen
        seen.method, seen.path = parts[0], parts[1]
        seen.body = await self._read_body(wire, seen)
        return seen

    async def _read_body(self, wire: Wire, seen: Seen) -> bytes:
        if (seen.header("transfer-encoding") or "").lower() == "chunked":
            body = b""
            while size := int((await wire.read_until(b"\r\n")).partition(b";")[0], 16):
                body += (await wire.read_exactly(size + 2))[:-2]
            await wire.read_until(b"\r\n")
            return body
        length = seen.header("content-length") or "0"
        return await wire.read_exactly(int(length) if length.isdecimal() else 0)

    async def _answer(self, wire: Wire, seen: Seen) -> bool:
        """Answer one request; return whether the connection stays open."""
        exchange = Exchange(wire, seen, self.urls, self._rng, signal=self._signal)
        if not seen.method:
            await exchange.reply(400, {"error": {"message": "this is no HTTP"}})
            return False
        if wire.listener in UPSTREAM and seen.method == "POST":
            self._attempt += 1
            exchange.attempt = self._attempt
            seen.fault = self._take_next()
            await BEHAVIOURS[seen.fault](exchange)
        elif seen.method == "GET" and seen.path.endswith("/models"):
            exchange.keep = True
            await exchange.reply(200, {"object": "list", "data": [{"id": "lab", "object": "model"}]})
        elif wire.listener == "second" and seen.method == "POST":
            await self._answer_second(exchange)
        elif wire.listener == "proxy":
            await exchange.reply(502, {"error": {"message": "a proxy was asked that should not have been"}})
        else:  # the target of a redirect: an answer that must never be shown
            await exchange.reply(200, answers.completion(exchange.prompt, content="text of another host"))
        return exchange.keep and not wire.closing and (seen.header("connection") or "").lower() != "close"

    async def _answer_second(self, exchange: Exchange) -> None:
        """Give the answer of the second endpoint, which never fails."""
        exchange.keep = True
        if not exchange.stream:
            await exchange.reply(200, answers.completion(exchange.prompt, content=answers.LOCAL_ANSWER))
            return
        await exchange.head()
        await exchange.put(answers.sse(answers.event(exchange.prompt, {"role": "assistant", "content": ""})))
        for index, word in enumerate(answers.LOCAL_ANSWER.split(" ")):
            await exchange.put(answers.sse(answers.event(exchange.prompt, {"content": f" {word}" if index else word})))
        await exchange.put(*map(answers.sse, answers.done(exchange.prompt)), answers.sse("[DONE]"))
        await exchange.end()

    def _signal(self, name: str) -> None:
        if (act := self._told.get(name)) is not None:
            act()

    def _next_connecting(self) -> str | None:
        """Return the fault that the next request would meet, and take it, where it is one of connecting."""
        name = self._script[0] if self._script else self._rest
        return self._take_next() if name in CONNECTING else None

    def _take_next(self) -> str:
        return self._script.pop(0) if self._script else self._rest


def _check(names: Sequence[str]) -> None:
    for name in names:
        if name not in BEHAVIOURS and name not in PORTS:
            import difflib

            close = difflib.get_close_matches(name, [*BEHAVIOURS, *PORTS], n=1)
            hint = f"did you mean {close[0]!r}?" if close else "edgeai chaos --list shows what there is"
            raise UsageError(f"there is no fault {name!r}", hint=hint)
