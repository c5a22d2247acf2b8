"""The local model of a router: its facts at once, its weights when it is first asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.engines.base import Engine
from edgeai.errors import CloudFailure, EdgeAIError

if TYPE_CHECKING:
    from edgeai.routing.confidence import Head

__all__ = ["LocalModel"]

HEAD_FRESH_S = 5.0
STEP_S = 0.05
"""How often who waits for a load asks whether it is still wanted."""


class LocalModel:
    """The model NAME, found by FIND and loaded by OPEN when an answer of it is first wanted, once for all requests.

    A load that fails is tried again by the next request; one that takes longer than its caller waits goes on for those that come later.
    """

    def __init__(
        self, name: str, find: Callable[[], Path], load: Callable[[Path], Engine], *,
        facts: Callable[[Path], Artifact] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._find, self._load, self._facts = find, load, facts
        self._lock = threading.Lock()
        self._loading: Future[Engine] | None = None
        self._known: tuple[float, Artifact | EdgeAIError] | None = None
        self._head: tuple[float, Head | None] | None = None
        self._closed = False

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> LocalModel:
        """Return the pulled model or file NAME, to be loaded with OPTIONS of options.LoadOptions. Opens nothing yet."""

        def find() -> Path:
            from edgeai.store import Store

            return Store.open().find(name)

        def load(path: Path) -> Engine:
            from edgeai.engines.opening import open_engine

            return open_engine(path, **options)

        from edgeai.store import looks_like_path

        return cls(Path(name).stem if looks_like_path(name) else name, find, load)

    @classmethod
    def loaded_already(cls, name: str, engine: Engine) -> LocalModel:
        """Return the model NAME that ENGINE is."""
        return cls(name, lambda: engine.artifact.path, lambda _: engine, facts=lambda _: engine.artifact)

    @property
    def model(self) -> str:
        """Its name among the candidates."""
        return f"local/{self.name}"

    @property
    def is_loaded(self) -> bool:
        """Whether an answer can begin at once."""
        future = self._loading
        return future is not None and future.done() and future.exception() is None

    def artifact(self) -> Artifact:
        """Return the facts of its file, which loads no weights. Raises ModelNotFound, InvalidModel."""
        known = self._known
        if known is None or (isinstance(known[1], EdgeAIError) and time.monotonic() - known[0] > 1.0):
            known = self._known = (time.monotonic(), self._look())
        if isinstance(known[1], EdgeAIError):
            raise known[1]
        return known[1]

    def _look(self) -> Artifact | EdgeAIError:
        from edgeai.engines.opening import open_model

        try:
            return (self._facts or open_model)(self._find())
        except EdgeAIError as error:
            return error

    def problem(self) -> str | None:
        """Say why it cannot answer, None if it may."""
        try:
            artifact = self.artifact()
        except EdgeAIError as error:
            return f"{error.message}; {error.hint}" if error.hint else error.message
        return (
            None if artifact.task == "generation" else f"{self.name} gives no answers, it is made for {artifact.task}"
        )

    def head(self) -> Head | None:
        """Return the confidence that was calibrated for its file, None where there is none; looked for at most every few seconds."""
        from edgeai.routing.confidence import load_head

        known = self._head
        if known is None or time.monotonic() - known[0] > HEAD_FRESH_S:
            known = self._head = (time.monotonic(), load_head(self.artifact())[0])
        return known[1]

    def engine(self, wait_s: float, *, wanted: Callable[[], bool] = lambda: True) -> Engine:
        """Return the engine, loaded now if it is not yet. Raises what loading raises, CloudFailure "timeout" after WAIT_S seconds.

        Where it is not WANTED any more while it loads, CloudFailure "aborted"; loading goes on for those that come later.
        """
        with self._lock:
            future = self._loading
            if self._closed:
                raise CloudFailure(f"{self.model} has been closed", kind="aborted")
            if future is None or (future.done() and future.exception() is not None):
                future = self._loading = Future()
                threading.Thread(target=self._open, args=(future,), name="edgeai load", daemon=True).start()
        until = time.monotonic() + wait_s
        while True:
            try:
                return future.result(max(0.0, min(STEP_S, until - time.monotonic())))
            except NotYet:
                if not wanted():
                    raise CloudFailure(f"{self.model} was not waited for", kind="aborted") from None
                if time.monotonic() >= until:
                    raise CloudFailure(f"{self.model} was not loaded in {wait_s:.1f} s", kind="timeout") from None

    def _open(self, future: Future[Engine]) -> None:
        try:
            engine = self._load(self._find())
        except BaseException as error:  # noqa: BLE001 - it is raised again in who waits
            future.set_exception(error)
            return
        future.set_result(engine)
        if self._closed:
            engine.close()

    def close(self) -> None:
        """Free the model, also one that is still being loaded."""
        with self._lock:
            self._closed = True
            future = self._loading
        if future is not None and future.done() and future.exception() is None:
            future.result().close()
