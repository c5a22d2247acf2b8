"""What was private once stays private: marks of private texts, by which a part of one is known again in a later turn or a memory.

Only salted digests are kept (see fingerprints.py), in `home()/routing/taint.sqlite3`; the salt lies beside them, in a file that its owner
alone may read. Who has both can test whether a text he already has was private here, and nothing else.

What is marked: the parts that something was found in, the parts after them, which may be made from it, and the answer. What is not: a
system prompt without a finding of its own, and what came before the first finding; else a greeting, or the instructions that every
conversation begins with, would keep everything on this machine for good. A verdict that only failed marks nothing: it is made again.

When marks cannot be written they are kept in memory and a warning says so. When they cannot be read, nobody knows what was marked, and
every text that is long enough to have been counts as private.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeai.paths import home
from edgeai.routing.privacy.fingerprints import LEAST_WHOLE, fingerprints, plain
from edgeai.routing.request import Part, Verdict
from edgeai.types import Notice

__all__ = ["MOST_MARKS", "Taint"]

MOST_MARKS = 2_000_000
"""About six million characters of private text, in 40 MB. The oldest marks go first."""
BUSY_S = 0.25
"""How long another process may hold the file; an answer waits no longer."""
SALT_BYTES = 32


class Taint:
    """The marks of this machine, in FOLDER (home()/routing). May be used from several threads and processes."""

    def __init__(self, folder: Path | None = None, *, most: int = MOST_MARKS) -> None:
        self._folder = home() / "routing" if folder is None else folder
        self._file = self._folder / "taint.sqlite3"
        self._most = most
        self._lock = threading.Lock()
        self._recent: set[int] = set()
        self._known: Any = None
        self._last_row = 0
        self._database: sqlite3.Connection | None = None
        self.problem: str | None = None
        """Why the marks cannot be read, None while they can."""
        self._said: set[str] = set()
        self._untold: list[Notice] = []
        self._salt = self._read_salt()

    def take_notices(self) -> tuple[Notice, ...]:
        """Return what was said of marks that could not be kept or read, and that this has not returned before."""
        new, self._untold = tuple(self._untold), []
        return new

    def _say(self, cause: str, message: str) -> None:
        if cause not in self._said:
            self._said.add(cause)
            self._untold.append(Notice(code="taint", message=message))

    def close(self) -> None:
        """Close the file."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                self._database.close()
            self._database = None

    def remember(self, parts: Sequence[Part], verdict: Verdict, answer: str = "") -> None:
        """Mark what VERDICT found private in PARTS, what came after it, and the ANSWER that was made of it."""
        if not verdict.findings:
            return
        hit = {(finding.where, finding.message) for finding in verdict.findings}
        first = min(finding.message for finding in verdict.findings)
        for part in parts:
            if part.where == "tool definition":  # a program's own text, which other requests have, too
                continue
            if (part.where, part.message) in hit or (part.message > first and part.where != "system"):
                self.mark(part.text)
        if answer:
            self.mark(answer)

    def mark(self, text: str) -> None:
        """Keep that TEXT is private. A disk that is full or locked costs a notice, never the answer."""
        with self._lock:
            new = fingerprints(text, self._salt) - self._recent
            if not new:  # a text that is said again costs nothing
                return
            self._recent |= new
            try:
                self._read()
                new -= self._known_of(new)
                if new:
                    self._write(new)
            except (sqlite3.Error, OSError) as error:
                self._say("unwritten", f"marks of private texts are kept in memory only: {error}")

    def touches(self, text: str) -> bool:
        """Whether TEXT has a part that was marked. True for any text that could, while the marks cannot be read."""
        with contextlib.suppress(OSError):  # which is met again below
            if not self._recent and self._database is None and not self._exists():
                return False  # nothing was ever marked on this machine
        found = fingerprints(text, self._salt)
        with self._lock:
            if not found.isdisjoint(self._recent):
                return True
            try:
                self._read()
            except (sqlite3.Error, OSError) as error:
                self._say(
                    "unread",
                    f"marks of private texts cannot be read, so every text of {LEAST_WHOLE} letters or more is private: {error}",
                )
                self.problem = str(error) or type(error).__name__
            if self.problem is not None:
                return len(plain(text)) >= LEAST_WHOLE
            return bool(self._known_of(found))

    def _exists(self) -> bool:
        """Whether there may be marks. Raises OSError where that cannot be known: the folder is none, or may not be looked into."""
        try:
            self._file.stat()
        except FileNotFoundError:
            return False
        return True

    def _known_of(self, found: set[int]) -> set[int]:
        """Return those of FOUND that the file has."""
        if self._known is None or not len(self._known) or not found:
            return set()
        import numpy as np

        wanted = np.fromiter(found, dtype=np.int64, count=len(found))
        places = np.searchsorted(self._known, wanted)
        places[places == len(self._known)] = 0
        return set(wanted[self._known[places] == wanted].tolist())

    # ---- the files

    def _read_salt(self) -> bytes:
        """Return the salt of this machine, made at the first use. Without one that is kept, marks hold for this process only."""
        path = self._folder / "taint.salt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                fresh = path.with_name(f"taint.salt.{secrets.token_hex(8)}")
                fresh.touch(mode=0o600, exist_ok=False)
                try:
                    fresh.write_bytes(secrets.token_bytes(SALT_BYTES))
                    os.link(fresh, path)  # whole or not at all, and the first of two processes wins
                finally:
                    fresh.unlink()
            salt = path.read_bytes()
            if len(salt) == SALT_BYTES:
                return salt
            problem = f"{path.name} has {len(salt)} bytes instead of {SALT_BYTES}"
        except OSError as error:
            problem = str(error)
        self._say("unwritten", f"marks of private texts are kept in memory only: {problem}")
        return secrets.token_bytes(SALT_BYTES)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(
                self._folder / "taint.sqlite3", timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS marks "
                    "(row INTEGER PRIMARY KEY AUTOINCREMENT, count INTEGER NOT NULL, digests BLOB NOT NULL)"
                )
                self._check_salt(database)
            except BaseException:
                database.close()
                raise
            self._database = database
            with contextlib.suppress(OSError):
                (self._folder / "taint.sqlite3").chmod(0o600)
        return self._database

    def _check_salt(self, database: sqlite3.Connection) -> None:
        """Raise sqlite3.Error where the marks were made under another salt, so that nothing would ever fit them."""
        ours = 1 + int.from_bytes(
            hashlib.blake2b(b"edgeai taint", digest_size=8, key=self._salt).digest(), "little"
        ) % (2**31 - 2)
        theirs = database.execute("PRAGMA user_version").fetchone()[0]
        if theirs == 0:
            database.execute(f"PRAGMA user_version = {ours}")
        elif theirs != ours:
            raise sqlite3.DatabaseError(
                "taint.salt is not the one that taint.sqlite3 was written with; remove both to begin anew"
            )

    def _write(self, new: set[int]) -> None:
        database = self._opened()
        database.execute("BEGIN IMMEDIATE")
        try:
            digests = array("q", new).tobytes()
            database.execute("INSERT INTO marks (count, digests) VALUES (?, ?)", (len(new), digests))
            count = database.execute("SELECT SUM(count) FROM marks").fetchone()[0]
            while count > self._most:
                row, gone = database.execute("SELECT row, count FROM marks ORDER BY row LIMIT 1").fetchone()
                database.execute("DELETE FROM marks WHERE row = ?", (row,))
                count -= gone
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _read(self) -> None:
        """Bring what is known up to date with the file, which other processes write too."""
        if self._database is None and not self._exists():
            self.problem = None
            return  # nothing was ever marked
        database = self._opened()
        rows = database.execute("SELECT row, digests FROM marks WHERE row > ?", (self._last_row,)).fetchall()
        if rows:
            import numpy as np

            fresh = np.frombuffer(b"".join(digests[: len(digests) // 8 * 8] for _, digests in rows), dtype=np.int64)
            self._known = np.sort(fresh if self._known is None else np.concatenate([self._known, fresh]))
            self._last_row = rows[-1][0]
        self.problem = None
