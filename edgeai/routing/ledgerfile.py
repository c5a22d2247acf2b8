"""The ledger on the disk: one SQLite file in WAL mode, its head file, and the key of its digests.

EDGEAI_HOME/routing/          mode 0700
├── ledger.sqlite3            mode 0600: the rows as canonical JSON with their hashes, and bodies where they are kept
├── ledger.sqlite3.head       how long the chain is, see `chain`
├── ledger.sqlite3.key        32 random bytes, made once; without them nobody can tell what a digest stands for
└── ledger.sqlite3.corrupt-…  a file that could not be read any more: it is moved aside with its head, never deleted

Several processes may write: a row is chained and inserted under SQLite's own write lock (BEGIN IMMEDIATE), and so is the head written.
A commit is on the disk before the head says so (synchronous=FULL), so that a power cut never looks like a removed row. Everything here
raises sqlite3.Error or OSError; `ledger.Ledger` makes notices of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeai.routing.chain import ZERO, Head, read_head, row_hash, write_head
from edgeai.routing.entry import Body, canonical, time_text

__all__ = ["BUSY_S", "LedgerFile", "Record", "default_path", "head_path", "read_key"]

BUSY_S = 1.0
"""How long the writer waits for another process that writes."""
SCHEMA = """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, row TEXT NOT NULL, hash TEXT NOT NULL,
    time TEXT AS (json_extract(row, '$.time')) VIRTUAL,
    cost_usd REAL AS (coalesce(json_extract(row, '$.cost_usd'), 0.0)) VIRTUAL,
    egress_bytes INTEGER AS (coalesce(json_extract(row, '$.egress_bytes'), 0)) VIRTUAL
);
CREATE INDEX rows_by_time ON rows (time);
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, prompt TEXT, answer TEXT);
PRAGMA user_version = 1;
"""
"""Times and sums are taken out of the row itself, so that nothing can be edited beside what is hashed."""
VERSION = 1

Record = tuple[dict[str, Any], Body | None]
"""A row without its number, and the texts that belong to it."""


def default_path() -> Path:
    """Return where the ledger of this user is."""
    from edgeai.paths import home

    return home() / "routing" / "ledger.sqlite3"


def head_path(path: Path) -> Path:
    """Return where the head of the ledger PATH is."""
    return path.with_name(f"{path.name}.head")


def read_key(path: Path) -> bytes | None:
    """Return the key of the digests of the ledger PATH, None where there is none."""
    try:
        key = path.with_name(f"{path.name}.key").read_bytes()
    except OSError:
        return None
    return key if len(key) == 32 else None


def make_key(path: Path) -> bytes:
    """Return the key of the ledger PATH, made if there is none; of two processes that make one, both get the same. Raises OSError."""
    target = path.with_name(f"{path.name}.key")
    while (key := read_key(path)) is None:
        fresh = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            _name(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)
    return key


def _name(fresh: Path, target: Path) -> None:
    """Give FRESH the name TARGET, unless that is there and a key."""
    try:
        os.link(fresh, target)
    except FileExistsError:
        if target.stat().st_size != 32:  # cut off by a full disk
            fresh.replace(target)
    except OSError:  # a file system without hard links
        if not target.exists():
            fresh.replace(target)


class LedgerFile:
    """An open ledger, for one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key: bytes | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._begun: str | None = None
        """What the first row of a new ledger must say of the one before it."""

    def prepare(self) -> None:
        """Make the folder and the key, if they are not there. Raises OSError."""
        if self.key is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.key = make_key(self.path)

    def append(self, records: Sequence[Record]) -> int:
        """Chain RECORDS to the ledger, all or none; returns the number of the last. Raises sqlite3.Error or OSError."""
        self.prepare()
        connection = self._open()
        with _writing(connection):
            last = self._insert(connection, records)
        self._begun = None
        return last

    def _insert(self, connection: sqlite3.Connection, records: Sequence[Record]) -> int:
        last, previous = _tail(connection)
        for row, body in [*self._openings(connection, last), *records]:
            last += 1
            text = canonical(row | {"seq": last})
            previous = row_hash(previous, text)
            connection.execute("INSERT INTO rows (seq, row, hash) VALUES (?, ?, ?)", (last, text, previous))
            if body is not None:
                connection.execute("INSERT INTO bodies VALUES (?, ?, ?)", (last, body.prompt, body.answer))
        return last

    def confirm(self) -> None:
        """Write the head for what is committed, by whomever. Raises sqlite3.Error or OSError."""
        connection = self._open()
        with _writing(connection):
            last, previous = _tail(connection)
            write_head(head_path(self.path), Head(last, previous).sealed(self.key))

    def _openings(self, connection: sqlite3.Connection, last: int) -> list[Record]:
        """Return the rows to write before the next: what became of a ledger before this, and that its end is not what it was."""
        now, found = time_text(datetime.now(UTC)), list[Record]()
        if self._begun is not None and last == 0:
            found.append(({"kind": "begun", "time": now, "what": self._begun}, None))
        head = read_head(head_path(self.path))
        if head is None:
            what = "the head file was gone or damaged" if last else None
        elif head.seq > last:
            what = f"the rows from {last + 1} to {head.seq} had been cut off"
        else:
            known = _hash_at(connection, head.seq)  # None where it was pruned or removed: `verify` tells these apart
            what = None if known in (None, head.hash) else f"row {head.seq} was not the one that the head file knew"
        if what is not None:
            found.append(({"kind": "gap", "time": now, "what": what}, None))
        return found

    def prune(self, before: datetime) -> int:
        """Delete the rows from before BEFORE, and chain a row that says up to which; returns how many went. Raises as append does."""
        self.prepare()
        connection = self._open()
        with _writing(connection):
            # The oldest rows only, up to the first that stays: the rest must stay one chain.
            stays = connection.execute("SELECT min(seq) FROM rows WHERE time >= ?", (time_text(before),)).fetchone()[0]
            through = _tail(connection)[0] if stays is None else stays - 1
            count = connection.execute("SELECT count(*) FROM rows WHERE seq <= ?", (through,)).fetchone()[0]
            if not count:
                return 0
            now, hash_ = time_text(datetime.now(UTC)), _hash_at(connection, through)
            self._insert(connection, [({"kind": "pruned", "time": now, "through": through, "hash": hash_}, None)])
            connection.execute("DELETE FROM rows WHERE seq <= ?", (through,))
            connection.execute("DELETE FROM bodies WHERE seq <= ?", (through,))
        self.confirm()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted is not left in the log either
        return int(count)

    def close(self) -> None:
        """Close it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def move_aside(self) -> Path | None:
        """Give a file that cannot be read any more another name, with its head; returns that name, None if it can be read after all.

        Raises OSError.
        """
        from filelock import FileLock

        self.close()
        with FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=BUSY_S):
            if not self._is_damaged():
                return None  # another process was quicker
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
            aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
            self.path.rename(aside)
            for suffix in ("-wal", "-shm", ".head"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
            self._begun = f"the file before it could not be read and is now {aside.name}"
            return aside

    def _is_damaged(self) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_S)) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
        except sqlite3.DatabaseError as error:
            return is_damage(error)

    def _open(self) -> sqlite3.Connection:
        """Return the connection, made anew where the file was deleted or moved under it."""
        if self._connection is not None and self._inode != _inode(self.path):
            self.close()
        if self._connection is None:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._inode = connection, _inode(self.path)
        return self._connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        if _version(connection) == 0:
            with _writing(connection):
                if _version(connection) == 0:
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        connection.execute(statement)
                    if not head_path(self.path).exists():
                        write_head(head_path(self.path), Head().sealed(self.key))
        if (found := _version(connection)) != VERSION:
            raise sqlite3.NotSupportedError(f"it has format {found} and this edgeai knows {VERSION}")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether ERROR says that the file is no database any more."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock; what was written is undone where the block raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


def _tail(connection: sqlite3.Connection) -> tuple[int, str]:
    found = connection.execute("SELECT seq, hash FROM rows ORDER BY seq DESC LIMIT 1").fetchone()
    return (int(found[0]), str(found[1])) if found else (0, ZERO)


def _hash_at(connection: sqlite3.Connection, seq: int) -> str | None:
    if seq == 0:
        return ZERO
    found = connection.execute("SELECT hash FROM rows WHERE seq = ?", (seq,)).fetchone()
    return str(found[0]) if found else None


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
