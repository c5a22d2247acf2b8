"""The ledger as the router sees it: requests are written down by a thread of their own, and no answer ever waits for that.

A row that cannot be written is no error of the request. Each cause becomes one Notice of the code "ledger":

- locked by another process, a full disk, an error of the disk: rows wait in memory and are written when that is over;
- a folder or file that may not be written: rows are dropped, and the next ones tried again;
- a damaged file: it is moved aside with its head, never deleted, and a new ledger begun whose first row says so;
- more than QUEUE rows waiting: they are dropped, and a row says how many as soon as one can be written.
"""

from __future__ import annotations

import atexit
import errno
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edgeai.config import LedgerSettings
from edgeai.routing.entry import Body, Entry, body_text, row_of, time_text
from edgeai.routing.history import History
from edgeai.routing.ledgerfile import LedgerFile, Record, default_path, is_damage
from edgeai.routing.spending import Spending
from edgeai.types import Notice

__all__ = ["QUEUE", "Entry", "Ledger"]

QUEUE = 1000
"""How many requests may wait to be written."""
BATCH = 100
"""How many rows are written in one transaction."""
RETRY_S = (0.5, 30.0)
"""How long the writer waits after a failure that may pass, at first and at most."""

Outcome = Literal["written", "later", "never", "again"]


class Ledger:
    """Writes down routed requests. Safe from many threads; a forked process gets a writer of its own.

    NOTIFY is called once for each cause that keeps rows from being written, from the writer's thread.
    """

    def __init__(
        self,
        path: Path | None = None,
        settings: LedgerSettings | None = None,
        *,
        notify: Callable[[Notice], None] | None = None,
    ) -> None:
        self.path = default_path() if path is None else path
        self.settings = settings or LedgerSettings()
        self._notify = notify
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._spending = Spending(History(self.path))
        self._notices: list[Notice] = []
        self._causes: set[str] = set()
        self._untold = 0
        self._lock = threading.Condition()
        self._writer: Writer | None = None

    def record(self, entry: Entry) -> None:
        """Take ENTRY to be written; returns at once and never raises."""
        if self._pid != os.getpid():
            self._begin()  # the writer is not in a process that was forked
        self._spending.began(entry.cost_usd)
        if not self.settings.on:
            return
        with self._lock:
            if self._writer is None:
                self._writer = Writer(self.path, self.settings, self._say, self._spending)
                atexit.register(self.close)
            writer = self._writer
        if not writer.take(entry):
            self._say(
                "dropped", f"requests are missing in the ledger: {QUEUE} wait to be written to {str(self.path)!r}"
            )

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until everything recorded so far is written, TIMEOUT_S at most; whether it is. Ends at once where writing fails."""
        writer = self._writer if self._pid == os.getpid() else None
        return writer is None or writer.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what waits, and end the writer; whether all is written. What is recorded later starts another one."""
        with self._lock:
            writer, self._writer = (self._writer, None) if self._pid == os.getpid() else (None, None)
        if writer is None:
            return True
        atexit.unregister(self.close)
        done = writer.flush(timeout_s)
        writer.end(timeout_s if done else 0.0)
        if not done:
            self._say("unfinished", f"the last requests are missing in the ledger {str(self.path)!r}")
        return done

    def notices(self) -> tuple[Notice, ...]:
        """Return what was said so far of rows that could not be written."""
        return tuple(self._notices)

    def take_notices(self) -> tuple[Notice, ...]:
        """Return the notices that this has not returned before."""
        with self._lock:
            new = tuple(self._notices[self._untold :])
            self._untold += len(new)
        return new

    def spent_usd(self, since: datetime | None = None) -> float:
        """Return what requests of all processes have cost since SINCE (midnight, local time); cheap, and never raises.

        What other processes spent may be 5 s old. With ledger.on = false, or where nothing can be read, it is what this process spent.
        """
        if self._pid != os.getpid():
            self._begin()
        return self._spending.total(since)

    def history(self) -> History:
        """Return the ledger to read."""
        return History(self.path)

    def _say(self, cause: str, message: str) -> None:
        with self._lock:
            if cause in self._causes:
                return
            self._causes.add(cause)
            notice = Notice(code="ledger", message=message)
            self._notices.append(notice)
        if self._notify is not None:
            with suppress(Exception):  # the notice is kept; no callback may end the writer or reach who records
                self._notify(notice)


class Writer:
    """The thread that writes."""

    def __init__(
        self, path: Path, settings: LedgerSettings, say: Callable[[str, str], None], spending: Spending
    ) -> None:
        self._file, self._bodies, self._say, self._spending = LedgerFile(path), settings.bodies, say, spending
        self._lock = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._hurry = self._closing = False
        self._lost = 0
        """How many requests were dropped without a row that says so."""
        self._taken = self._settled = 0
        """How many requests were taken, and how many of them were written or given up."""
        self._tries = self._failed = 0
        """How often writing was tried, and which of these was the last to fail."""
        self._pending: list[tuple[Record, float]] = []
        self._retry_at, self._wait_s = 0.0, RETRY_S[0]
        self._thread = threading.Thread(target=self._run, name="edgeai-ledger", daemon=True)
        self._thread.start()

    def take(self, entry: Entry) -> bool:
        """Put ENTRY into the queue; whether there was room, and a thread to look at it."""
        with self._lock:
            if self._closing or len(self._queue) >= QUEUE:
                self._lost += 1
                return False
            self._queue.append(entry)
            self._taken += 1
            self._lock.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was taken is settled, TIMEOUT_S at most, or a try that began after this has failed."""
        end = time.monotonic() + timeout_s
        with self._lock:
            wanted, tries = self._taken, self._tries
            self._hurry = True
            self._lock.notify_all()
            while self._settled < wanted:
                left = end - time.monotonic()
                if left <= 0 or self._failed > tries:
                    return False
                self._lock.wait(left)
            return self._lost == 0

    def end(self, timeout_s: float) -> None:
        """Let the thread end when it has nothing left that can be written, and wait for that, TIMEOUT_S at most."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wait()
                entries, closing = list(self._queue), self._closing
                self._queue.clear()
                due = self._hurry or closing or time.monotonic() >= self._retry_at
                self._hurry = False
            self._digest(entries)
            if due:
                self._write()
            if closing:
                break
        self._file.close()

    def _wait(self) -> None:
        """Wait for something to do."""
        while not (self._queue or self._closing or (self._hurry and self._pending)):
            left = self._retry_at - time.monotonic() if self._pending else None
            if left is not None and left <= 0:
                return
            self._lock.wait(left)

    def _digest(self, entries: list[Entry]) -> None:
        """Make rows of ENTRIES, which lets go of their texts: much may have to wait."""
        if entries and self._file.key is None:
            with suppress(OSError):  # `append` meets it again and says so; such a row has no digests
                self._file.prepare()
        for entry in entries:
            body = Body(prompt=body_text(entry.prompt), answer=entry.answer) if self._bodies else None
            try:
                self._pending.append(((row_of(entry, self._file.key), body), entry.cost_usd))
            except Exception as error:  # noqa: BLE001 - whatever a caller has put into an entry, the thread lives on
                self._say("entry", f"a request is missing in the ledger: it cannot be written as JSON: {error!r:.200}")
                self._settle(1, lost=1)
        if (surplus := len(self._pending) - QUEUE) > 0:
            del self._pending[-surplus:]
            self._say("dropped", f"requests are missing in the ledger: more than {QUEUE} wait to be written")
            self._settle(surplus, lost=surplus)

    def _write(self) -> None:
        while self._pending:
            batch = self._pending[:BATCH]
            with self._lock:
                self._tries += 1
                lost = self._lost
            outcome = self._append([record for record, _ in batch], lost)
            if outcome == "again":
                outcome = self._append([record for record, _ in batch], lost)
            if outcome in ("later", "again"):
                self._retry_at = time.monotonic() + self._wait_s
                self._wait_s = min(2 * self._wait_s, RETRY_S[1])
                self._settle(0, failed=True)
                return
            self._wait_s = RETRY_S[0]
            del self._pending[: len(batch)]
            if outcome == "written":
                self._spending.settled(sum(cost for _, cost in batch))
            self._settle(len(batch), lost=-lost if outcome == "written" else len(batch), failed=outcome == "never")

    def _settle(self, count: int, *, lost: int = 0, failed: bool = False) -> None:
        with self._lock:
            self._settled += count
            self._lost += lost
            if failed:
                self._failed = self._tries
            self._lock.notify_all()

    def _append(self, records: list[Record], lost: int) -> Outcome:
        if lost:
            row = {"kind": "lost", "time": time_text(datetime.now(UTC)), "count": lost}
            records = [(row, None), *records]
        try:
            self._file.append(records)
        except (sqlite3.Error, OSError) as error:
            return self._explain(error)
        except Exception as error:  # noqa: BLE001 - a bug here must not end the thread, and is said
            self._say("bug", f"requests are missing in the ledger: {error!r:.200}")
            return "never"
        try:
            self._file.confirm()
        except (sqlite3.Error, OSError) as error:  # the rows are there; the next commit confirms them too
            self._say("head", f"the head of the ledger {str(self._file.path)!r} cannot be written: {error}")
        return "written"

    def _explain(self, error: sqlite3.Error | OSError) -> Outcome:
        path = str(self._file.path)
        if isinstance(error, sqlite3.Error) and is_damage(error):
            return self._move_aside(error)
        cause, passing = _cause(error)
        self._file.close()
        if passing:
            self._say(cause, f"the ledger {path!r} cannot be written now: {error}; requests wait in memory")
            return "later"
        self._say(cause, f"requests are missing in the ledger: {path!r} cannot be written: {error}")
        return "never"

    def _move_aside(self, error: Exception) -> Outcome:
        path = str(self._file.path)
        try:
            aside = self._file.move_aside()
        except (OSError, TimeoutError, sqlite3.Error) as problem:
            self._say("corrupt", f"the ledger {path!r} is damaged ({error}) and cannot be moved aside: {problem}")
            return "never"
        if aside is not None:
            self._say(
                "corrupt",
                f"the ledger {path!r} is damaged ({error}): it is kept as {aside.name!r}, and a new one begun",
            )
        return "again"


def _cause(error: sqlite3.Error | OSError) -> tuple[str, bool]:
    """Return what ERROR is, and whether it may pass while the process lives."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return ("full", True) if full else ("denied", False)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    causes = {
        sqlite3.SQLITE_BUSY: ("locked", True), sqlite3.SQLITE_LOCKED: ("locked", True), sqlite3.SQLITE_FULL: ("full", True),
        sqlite3.SQLITE_IOERR: ("disk", True), sqlite3.SQLITE_NOMEM: ("memory", True),
    }  # fmt: skip
    return causes.get(code, ("denied", False))
