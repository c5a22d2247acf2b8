"""edgeai's own router as a subject of the fault lab, with a local engine that says what the lab expects of it, and hooks that break it."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from edgeai.chaos.answers import TOOL
from edgeai.chaos.faults import ATTEMPTS, CONNECT_S, FIRST_TOKEN_S, LEAST_BYTES_S, MAX_BYTES, STALL_S
from edgeai.chaos.lab import Lab
from edgeai.chaos.stand_in import open_stand_in
from edgeai.chaos.subject import Outcome, RouterSubject, Setting
from edgeai.config import CloudSettings, Config, PrivacySettings, RoutingSettings, Timeouts
from edgeai.errors import EdgeAIError
from edgeai.model import Model, Stream
from edgeai.routing.ledger import Ledger
from edgeai.routing.ledgerfile import LedgerFile
from edgeai.routing.local import LocalModel
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.taint import Taint
from edgeai.routing.request import Finding, Part
from edgeai.routing.router import Router
from edgeai.routing.surroundings import Surroundings
from edgeai.types import Chunk, Message

__all__ = ["subject"]

TOTAL_S = 10.0
EXAMINE_S = 0.1
"""How long the detectors may take where they are made slow."""
WEATHER = {
    "type": "function",
    "function": {
        "name": TOOL[0],
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def subject(lab: Lab) -> RouterSubject:
    """Return the router, with the lab as its endpoint and a local engine that answers LOCAL_ANSWER."""
    del lab  # its address is in the setting of each fault
    return RouterSubject(Ours)


class BrokenDetector(Detector):
    """Raises, or takes its time, as HOOK says."""

    def __init__(self, settings: PrivacySettings, hook: str | None, taint: Taint) -> None:
        super().__init__(settings, taint=taint)
        self._hook = hook

    def _part(self, part: Part, clock: Any) -> Iterator[list[Finding]]:
        if self._hook == "detector-crash":
            raise ZeroDivisionError("a detector with a bug")
        if self._hook == "detector-slow":
            for _ in range(10):
                time.sleep(EXAMINE_S / 2)
                yield []
        yield from super()._part(part, clock)


class Ours:
    """The router as SETTING says, asked through the Python API. Its ledger and marks are in a folder of its own."""

    def __init__(self, setting: Setting) -> None:
        self._left = contextlib.ExitStack()
        try:
            self._open(setting)
        except BaseException:
            self._left.close()
            raise

    def _open(self, setting: Setting) -> None:
        hook, left = setting.hook, self._left
        home = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="edgeai-chaos-", ignore_cleanup_errors=True)))
        config = _config(setting)
        ledger = Ledger(home / "ledger.sqlite3", config.ledger)
        taint = Taint(home)
        if hook == "ledger-full":
            full = OSError(errno.ENOSPC, "No space left on device")
            left.enter_context(mock.patch.object(LedgerFile, "append", side_effect=full))
        if hook == "ledger-locked":
            left.enter_context(_locked(home / "ledger.sqlite3"))
        around = Surroundings(
            config, _local(hook), ledger=ledger, taint=taint, detector=BrokenDetector(config.privacy, hook, taint),
            keys={"lab": setting.key},
        )  # fmt: skip
        self._ledger = ledger
        self._model = left.enter_context(Model(Router(around)))

    def ask(
        self, prompt: str, *, stream: bool, deadline_s: float, leave_after: int | None = None, tools: bool = False
    ) -> Outcome:
        """Ask, and say what came of it. An answer that is not streamed is one that is read whole."""
        del stream
        options: dict[str, Any] = {"tools": (WEATHER,)} if tools else {}
        began, first, chunks = time.monotonic(), None, []
        messages = [Message(role="user", content=prompt)]
        error: str | None = None
        running: Stream | None = None
        try:
            with self._model.stream(messages, max_seconds=deadline_s, **options) as running:
                for chunk in running:
                    chunks.append(chunk)
                    if chunk.text or chunk.tool_calls:
                        first = time.monotonic() - began if first is None else first
                    if leave_after is not None and sum(bool(item.text) for item in chunks) >= leave_after:
                        break
        except EdgeAIError as failure:
            error = failure.message
        wall_s = time.monotonic() - began
        self._ledger.flush(3.0)
        said = [notice for chunk in chunks for notice in chunk.notices] + list(self._ledger.take_notices())
        last = chunks[-1] if chunks else Chunk()
        return Outcome(
            text="".join(chunk.text for chunk in chunks),
            finish_reason=last.finish_reason,
            error=error,
            wall_s=wall_s,
            interrupted=last.finish_reason == "interrupted",
            first_token_s=first,
            tool_calls=tuple((call.name, call.arguments) for chunk in chunks for call in chunk.tool_calls),
            notices=tuple(notice.message for notice in said),
        )

    def close(self) -> None:
        """Close the router and remove its folder."""
        self._left.close()


def _config(setting: Setting) -> Config:
    hook = setting.hook
    cloud = CloudSettings(name="lab", base_url=setting.base_url, model="lab", ca_file=setting.ca_file)
    timeouts = Timeouts(
        connect_s=CONNECT_S, first_token_s=FIRST_TOKEN_S, stall_s=STALL_S, total_s=TOTAL_S, least_bytes_s=LEAST_BYTES_S, max_bytes=MAX_BYTES
    )  # fmt: skip
    privacy = PrivacySettings(
        timeout_s=EXAMINE_S if hook == "detector-slow" else 5.0, max_chars=10 if hook == "text-too-long" else 4_000_000
    )
    routing = RoutingSettings(policy=setting.policy, attempts=ATTEMPTS, resume_local=hook == "resume")
    return Config(routing=routing, privacy=privacy, cloud=(cloud,), timeouts=timeouts)


def _local(hook: str | None) -> LocalModel:
    def find() -> Path:
        if hook in ("local-missing", "local-down"):
            open_stand_in(hook)  # raises ModelNotFound
        return Path("local.gguf")

    return LocalModel("tiny", find, lambda _: open_stand_in(hook), facts=lambda _: open_stand_in().artifact)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the database at PATH, as another process would that hangs in the middle of writing."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()
