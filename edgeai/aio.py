"""The Python API for asyncio. Nothing is written twice: what a Model does at once, its AsyncModel does after `await`.

Loading, reading a prompt, embedding and scoring run in a few threads of the model; chunks come from the engine's own thread straight to the
event loop, so a stream needs no thread however long it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar

from edgeai.artifact import Artifact
from edgeai.engines.streaming import ChunkStream
from edgeai.engines.waiting import Patience
from edgeai.errors import ClosedError
from edgeai.model import Methods, Model, load
from edgeai.plan import Plan
from edgeai.transcript import Transcript
from edgeai.types import Chunk, Completion, GenerationConfig, Notice, Prompt

__all__ = ["AsyncModel", "AsyncStream"]

P = ParamSpec("P")
T = TypeVar("T")
Lane = Literal["brief", "long"]

THREADS: dict[Lane, int] = {"brief": 4, "long": 4}
"""Threads for each kind of work, so that beginning an answer never waits for somebody's long text to be embedded."""


def awaited(
    method: Callable[Concatenate[Model, P], T], *, lane: Lane = "brief"
) -> Callable[Concatenate[AsyncModel, P], Coroutine[Any, Any, T]]:
    """Return METHOD of Model as one of AsyncModel: the same, in a thread."""

    @functools.wraps(method)
    async def call(self: AsyncModel, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.in_thread(lane, functools.partial(method, self.model, *args, **kwargs))

    return call


class AsyncModel(Methods):
    """A Model for asyncio, with the same methods. Any number of tasks, of event loops and of threads may use it, beside its `model` too.

        async with await edgeai.AsyncModel.load("smollm2") as m:
            print((await m.chat([{"role": "user", "content": "Hi"}], max_tokens=64)).text)

    A task that is cancelled stops its work in the engine, whatever it is waiting for.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lanes = {lane: ThreadPoolExecutor(count, f"edgeai {lane}") for lane, count in THREADS.items()}

    @classmethod
    async def load(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load MODEL as edgeai.load does. A load that is cancelled runs to its end in its thread, and what it loaded is closed."""
        call = _Call(functools.partial(load, model, **options), unwanted=Model.close)
        pool = ThreadPoolExecutor(1, "edgeai load")
        pool.submit(call.run)
        pool.shutdown(wait=False)
        return cls(await call.future)

    @property
    def artifact(self) -> Artifact:
        """The facts of the model file."""
        return self.model.artifact

    @property
    def plan(self) -> Plan:
        """How the model runs here."""
        return self.model.plan

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The warnings of the plan, and that the file failed its proof if it did."""
        return self.model.notices

    @property
    def closed(self) -> bool:
        """Whether the model has been closed."""
        return self.model.closed

    def config(self, **options: Any) -> GenerationConfig:
        """Return OPTIONS with the model's own sampling for what they leave open, as Model.config does."""
        return self.model.config(**options)

    def stream(self, prompt: Prompt, **options: Any) -> AsyncStream:
        """Answer PROMPT piece by piece, as Model.stream does; what is wrong with the prompt is raised by the first `await`."""
        return self.stream_config(prompt, self.config(**options))

    def stream_config(self, prompt: Prompt, config: GenerationConfig) -> AsyncStream:
        """Answer PROMPT piece by piece with a CONFIG that is already made."""
        return AsyncStream(self, prompt, config)

    tokenize = awaited(Model.tokenize)
    detokenize = awaited(Model.detokenize)
    score = awaited(Model.score, lane="long")
    embed = awaited(Model.embed, lane="long")
    rank = awaited(Model.rank, lane="long")
    classify = awaited(Model.classify, lane="long")
    save_prompt = awaited(Model.save_prompt, lane="long")
    load_prompt = awaited(Model.load_prompt, lane="long")

    async def close(self) -> None:
        """End what runs and free the model, as Model.close does."""
        with contextlib.suppress(ClosedError):  # another task has closed it at the same moment
            await self.in_thread("long", self.model.close)
        for pool in self._lanes.values():
            pool.shutdown(wait=False)

    async def in_thread(self, lane: Lane, function: Callable[[], T]) -> T:
        """Run FUNCTION in a thread of LANE and return what it returns. Raises ClosedError after `close`."""
        return await self.submit(lane, function)

    def submit(self, lane: Lane, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have FUNCTION run in a thread of LANE, and return what to await for it. Raises ClosedError after `close`."""
        call = _Call(function)
        try:
            self._lanes[lane].submit(call.run)
        except RuntimeError as error:  # the threads have been told to end
            raise ClosedError(f"{self.artifact.name!r} has been closed", hint="load it again") from error
        return call.future

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Call(Generic[T]):
    """A function that runs in a thread for a task. Unlike `run_in_executor`, it says nothing when the loop has been closed meanwhile.

    `unwanted` gets a result that nobody waits for any more.
    """

    def __init__(self, function: Callable[[], T], *, unwanted: Callable[[T], None] = lambda _: None) -> None:
        self._function, self._unwanted = function, unwanted
        self._patience = Patience()
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self.future.add_done_callback(self._note)

    def run(self) -> None:
        """Call the function, in a thread."""
        if self.future.cancelled():
            return
        try:
            with self._patience.here():
                value = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the task
            self._tell(self._fail, error)
        else:
            if not self._tell(self._succeed, value):
                self._unwanted(value)

    def _note(self, future: asyncio.Future[T]) -> None:
        if future.cancelled():
            self._patience.give_up()

    def _tell(self, settle: Callable[[Any], None], what: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(settle, what)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _succeed(self, value: T) -> None:
        if self.future.done():  # cancelled meanwhile
            self._unwanted(value)
        else:
            self.future.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # a task that is cancelled at this very moment never asks, and that is no reason for a log


class AsyncStream:
    """The chunks of an answer, for one task at a time. Leaving its `async with` block, or `cancel()`, stops the work at once.

    The work begins with the first `await`. Waiting for a chunk with a time limit loses nothing: the stream goes on, and so may the reader.
    """

    def __init__(self, model: AsyncModel, prompt: Prompt, config: GenerationConfig) -> None:
        model.model.open_engine()
        self._model, self._prompt, self._config = model, prompt, config
        self._transcript = Transcript(model.model, config)
        self._starting: asyncio.Future[None] | None = None
        self._chunks: ChunkStream | None = None
        self._closed = False
        self._told = False
        self._fresh = asyncio.Event()
        # Reentrant, since the collector may close a stream in the middle of any method of another one.
        self._lock = threading.RLock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        chunks = self._chunks or await self._start()
        while not (chunks is None or chunks.ended):
            self._transcript.check_open()
            self._fresh.clear()
            if (chunk := chunks.poll()) is not None:
                return self._transcript.add(chunk)
            await self._fresh.wait()
        self._fresh.set()  # for another task that waits here
        raise StopAsyncIteration

    async def _start(self) -> ChunkStream | None:
        """Have the prompt read in a thread, once; the wait for it may be cancelled and begun again. None: the stream is closed."""
        if self._starting is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._starting = self._model.submit("brief", self._begin)
        if self._starting is not None:
            await asyncio.shield(self._starting)
        return self._chunks

    def _begin(self) -> None:
        if self._closed:
            return
        chunks = self._model.model.open_engine().generate(self._prompt, self._config)
        chunks.channel.listen(_teller(self))
        with self._lock:
            self._chunks = chunks
            cancelled, closed = self._transcript.cancelled, self._closed
        if cancelled:
            chunks.cancel()
        if closed:
            chunks.close()  # type: ignore[unreachable]  # since the first line, another thread may have closed it

    def tell(self) -> None:
        """Wake the reader: a chunk has come. Called in the thread that made it."""
        if self._told:
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._hear)
        except RuntimeError:  # the loop is closed, so nobody will ever read
            self.close()

    def _hear(self) -> None:
        self._told = False
        self._fresh.set()

    def cancel(self) -> None:
        """Ask for the end; the last chunk then says `cancelled`."""
        with self._lock:
            self._transcript.cancelled = True
            chunks = self._chunks
        if chunks is not None:  # not under the lock: the engine has locks of its own
            chunks.cancel()

    def close(self) -> None:
        """Stop the work; nothing more will be read."""
        with self._lock:
            self._closed = True
            chunks = self._chunks
        if chunks is not None and not chunks.ended:
            chunks.close()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._fresh.set)  # for another task that waits for a chunk

    async def aclose(self) -> None:
        """Stop the work, as `close` does; for contextlib.aclosing."""
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            self.close()  # a block that was never entered is never left
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def collect(self) -> Completion:
        """Read the stream to its end and return the whole answer. Raises IncompleteOutput where it is not of the form asked for."""
        async with self:
            async for _ in self:
                pass
        return self._transcript.whole()

    def completion(self) -> Completion:
        """Return the answer, whole or cut, of a stream that has been read to its last chunk."""
        return self._transcript.completion()


def _teller(stream: AsyncStream) -> Callable[[], None]:
    """Return what the engine calls at each chunk. The engine holds it, but not the stream: one that its reader forgets must end."""
    reference = weakref.ref(stream)

    def tell() -> None:
        if (found := reference()) is not None:
            found.tell()

    return tell
