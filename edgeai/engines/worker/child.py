"""The child: an engine at the other end of two pipes. Run as `python -P -m edgeai.engines.worker.child IN OUT PARENT`.

The thread that reads the pipe does nothing that may wait, so that it answers a ping whatever the model does. Calls run in threads of a
pool; the chunks of an answer go from the thread that decodes to the one that writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeai.engines.base import Engine
from edgeai.engines.streaming import ChunkStream
from edgeai.engines.waiting import Abandoned, Patience
from edgeai.engines.worker.frames import BrokenStream, Frame, FrameReader, pack
from edgeai.engines.worker.outbox import Outbox
from edgeai.errors import EdgeAIError, UsageError
from edgeai.options import LoadOptions
from edgeai.types import Chunk, GenerationConfig

__all__ = ["METHODS", "Server"]

METHODS = frozenset(
    {
        "tokenize",
        "detokenize",
        "prompt_ids",
        "score",
        "embed",
        "rank",
        "save_prompt",
        "load_prompt",
        "stats",
        "ports",
        "infer",
    }
)
"""The methods of an engine that take values and return one; not every engine has all of them."""

CALLERS, SUBMITTERS = 32, 8
"""Threads: calls may wait long for their turn, submitting a request never does, so each kind has its own."""
READ_SIZE = 1 << 16
OOM_SCORE = 500
"""How much sooner than others the kernel should take this process when memory runs out, of 1000: sooner than the application."""
PARENT_CHECK_S = 2.0
WORDS = "Hello, world 1"


@dataclass(slots=True)
class _Answer:
    """A running generation; left in the outbox whenever it has chunks."""

    id: int
    stream: ChunkStream | None = None
    cancelled: bool = False
    told_begun: bool = False


_Outgoing = bytes | _Answer


class Server:
    """Answers the frames of a parent with an engine that it loads for it. `send` writes a frame or the chunks of an answer."""

    def __init__(self, write_fd: int) -> None:
        self._engine: Any = None
        self._outbox: Outbox[_Outgoing] = Outbox(write_fd, self._pack, name="edgeai worker out")
        self._answers: dict[int, _Answer] = {}
        self._calls: dict[int, Patience] = {}
        self._callers = ThreadPoolExecutor(CALLERS, thread_name_prefix="edgeai call")
        self._submitters = ThreadPoolExecutor(SUBMITTERS, thread_name_prefix="edgeai submit")
        self._done = 0  # grows whenever a piece of work is finished

    def serve(self, read_fd: int) -> None:
        """Answer frames until the parent is gone or asks for the end."""
        frames = FrameReader()
        while data := os.read(read_fd, READ_SIZE):
            for frame in frames.feed(data):
                if frame.kind == "close":
                    self._close()
                    return
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind == "ping":
            self._outbox.put(pack("pong", frame.id, self._progress()))
        elif frame.kind == "cancel":
            self._cancel(frame.id)
        elif frame.kind == "generate":
            answer = self._answers[frame.id] = _Answer(frame.id)
            self._submitters.submit(self._guarded, frame.id, self._generate, answer, *frame.value)
        elif frame.kind == "call":
            patience = self._calls[frame.id] = Patience()
            self._callers.submit(self._guarded, frame.id, self._call, patience, frame.id, *frame.value)
        elif frame.kind == "load":
            self._callers.submit(self._guarded, frame.id, self._load, *frame.value)
        else:
            raise BrokenStream(f"{frame.kind!r} is no message of this version")

    def _progress(self) -> int:
        """Return a number that grows while work goes on. On a CPU computing is progress; waiting for a GPU burns time as well."""
        engine = self._engine
        computing = engine is None or engine.backend == "cpu"
        return self._done + (int(time.process_time()) if computing else 0) + (0 if engine is None else engine.batches)

    def _guarded(self, request: int, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
            self._answers.pop(request, None)
            self._outbox.put(pack("error", request, error))
        self._done += 1

    def _load(self, path: Path, options: LoadOptions) -> None:
        from edgeai import native
        from edgeai.engines.opening import load_engine

        native.echo_log(_say)
        engine = load_engine(path, options, vetted=True)
        if engine.artifact.format == "gguf":
            _try_out(engine, path.absolute())
        self._engine = engine
        self._outbox.put(pack("loaded", 0, {"plan": engine.plan, "backend": engine.backend}))

    def _call(
        self, patience: Patience, request: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        try:
            if not patience.given_up:
                with patience.here(), contextlib.suppress(Abandoned):  # the parent has forgotten it and expects nothing
                    self._answer_call(request, method, arguments, named)
        finally:
            del self._calls[request]

    def _answer_call(self, request: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if method not in METHODS:
            raise TypeError(f"{method!r} is not to be called from another process")
        function = getattr(self._engine, method, None)
        if function is None:
            raise UsageError(f"{self._engine.artifact.name} has no {method}", hint="it is not that kind of model")
        self._outbox.put(pack("begun", request))
        found = function(*arguments, **named)
        self._outbox.put(pack("answer", request, asdict(found) if method == "stats" else found))

    def _generate(self, answer: _Answer, prompt: Any, config: Any) -> None:
        answer.stream = stream = self._engine.generate(prompt, config)
        self._outbox.put(pack("answer", answer.id))
        if answer.cancelled:
            stream.cancel()
        stream.channel.listen(lambda: self._outbox.put(answer))
        self._outbox.put(answer)  # for what came before anybody listened

    def _cancel(self, request: int) -> None:
        call, answer = self._calls.get(request), self._answers.get(request)
        if call is not None:
            call.give_up()
        if answer is not None:
            answer.cancelled = True
            if answer.stream is not None:
                answer.stream.cancel()

    def _pack(self, items: Sequence[_Outgoing]) -> bytes:
        """Return what goes out for ITEMS; the chunks that are there by now go in one frame."""
        frames: list[bytes] = []
        chunks: list[tuple[int, Any]] = []
        for item in items:
            if isinstance(item, _Answer):
                chunks += self._ready(item)
                continue
            if chunks:
                frames.append(pack("chunks", 0, chunks))
                chunks = []
            frames.append(item)
        if chunks:
            frames.append(pack("chunks", 0, chunks))
        return b"".join(frames)

    def _ready(self, answer: _Answer) -> Iterator[tuple[int, Any]]:
        """Yield (id, chunk) for each chunk that is there, a plain text as itself; before them None when the work has begun.

        What ended the answer is its error.
        """
        assert answer.stream is not None  # noqa: S101 - it is put into the outbox after that
        if answer.stream.channel.begun and not answer.told_begun:
            answer.told_begun = True
            self._done += 1
            yield answer.id, None
        while not answer.stream.ended:
            item: Chunk | Exception | None
            try:
                item = answer.stream.poll()
            except Exception as error:  # noqa: BLE001 - it is raised again in the parent
                item = error
            if item is None:
                return
            self._done += 1
            yield answer.id, item.text if isinstance(item, Chunk) and item == Chunk(text=item.text) else item
        self._answers.pop(answer.id, None)

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        for pool in (self._submitters, self._callers):
            pool.shutdown()
        self._outbox.close()


def _try_out(engine: Engine, path: Path) -> None:
    """Decode a little unless it is known that the library survives this file: here a crash means that it does not (see vetting)."""
    from edgeai.paths import home
    from edgeai.vetting import is_vetted, remember

    bufts, cache = engine.plan.extra_bufts, home() / "cache"
    if is_vetted(path, cache, extra_bufts=bufts):
        return
    config = GenerationConfig(max_tokens=1, temperature=0, prefix_cache=False)
    for attempt in (
        lambda: list(engine.generate(WORDS, config)),
        lambda: engine.embed([WORDS]),
        lambda: engine.rank(WORDS, [WORDS]),
    ):
        with contextlib.suppress(EdgeAIError):  # each kind of model refuses the others in order, which is no crash
            attempt()
            if engine.backend == "cpu":  # of a GPU nothing is known for the CPU
                remember(path, cache, extra_bufts=bufts)


def _say(line: str) -> None:
    """Leave a line of the native log where the parent finds it if this process dies."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "replace"))


def _stay_below(parent: int) -> None:
    """End with the parent, leave Ctrl-C and the polite end to it, and be the first to go when memory runs out."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    if sys.platform != "win32":
        if os.getppid() != parent:  # it died before the lines above
            os._exit(0)
        if sys.platform != "linux":
            threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End with PARENT even if a fork of it holds the pipes open."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)


def _descriptors(read: int, write: int) -> tuple[int, int]:
    """Return READ and WRITE, which are handles on Windows, as file descriptors that no grandchild inherits."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(read, os.O_RDONLY), msvcrt.open_osfhandle(write, 0)
    for fd in (read, write):
        os.set_inheritable(fd, False)
    return read, write


def main(arguments: Sequence[str]) -> None:
    """Serve the parent until the end. The process then ends without cleaning up: the system frees faster, and native code cannot crash."""
    read, write, parent = map(int, arguments)
    _stay_below(parent)
    try:
        read, write = _descriptors(read, write)
        Server(write).serve(read)
    except BaseException:  # noqa: BLE001 - the parent finds it among the last lines
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
