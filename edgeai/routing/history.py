"""The ledger read: rows, sums, and whether the chain is whole. Nothing here writes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from edgeai.errors import EdgeAIError, LedgerBroken
from edgeai.routing.chain import Head, Problem, Verified, check, links_of, read_head
from edgeai.routing.entry import time_text
from edgeai.routing.ledgerfile import BUSY_S, head_path, is_damage, read_key

__all__ = ["History", "Row"]

Row = dict[str, Any]
"""A row of the ledger as `entry.row_of` makes it, with its `seq` and `hash`."""


class History:
    """The ledger at PATH. A ledger that is not there has no rows.

    Raises LedgerBroken for a file that is no ledger, EdgeAIError for one that cannot be read now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(
        self, *, since: datetime | None = None, limit: int | None = None, requests: bool = True, egress: bool = False
    ) -> list[Row]:
        """Return the rows, oldest first: those from SINCE on, the last LIMIT of them; only requests, or also what the ledger says of

        itself; with EGRESS only requests of which bytes were sent to an endpoint.
        """
        where, values = ["1"], list[Any]()
        if since is not None:
            where.append("time >= ?")
            values.append(time_text(since))
        if requests:
            where.append("json_extract(row, '$.kind') = 'request'")
        if egress:
            where.append("egress_bytes > 0")
        query = f"SELECT row, hash FROM rows WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"  # noqa: S608 - constants
        with self._open() as connection:
            found = (
                connection.execute(query, (*values, -1 if limit is None else limit)).fetchall() if connection else []
            )
            return [_row(text, hash_) for text, hash_ in reversed(found)]

    def row(self, seq: int) -> Row | None:
        """Return the row SEQ, with `bodies` where texts were kept; None where there is none."""
        with self._open() as connection:
            if connection is None:
                return None
            found = connection.execute("SELECT row, hash FROM rows WHERE seq = ?", (seq,)).fetchone()
            texts = connection.execute("SELECT prompt, answer FROM bodies WHERE seq = ?", (seq,)).fetchone()
            if found is None:
                return None
            return _row(*found) | ({"bodies": {"prompt": texts[0], "answer": texts[1]}} if texts else {})

    def cost_usd(self, since: datetime) -> float:
        """Return what the requests since SINCE have cost."""
        with self._open() as connection:
            if connection is None:
                return 0.0
            query = "SELECT coalesce(sum(cost_usd), 0.0) FROM rows WHERE time >= ?"
            return float(connection.execute(query, (time_text(since),)).fetchone()[0])

    def verify(self, kept: Head | None = None) -> Verified:
        """Walk the whole chain; KEPT: number and hash of a row, kept elsewhere. A damaged file is a problem, no error."""
        head = read_head(head_path(self.path))
        try:
            with self._open() as connection:
                if connection is None:
                    return check((), head, kept=kept)
                bodies = {
                    int(seq): (prompt, answer)
                    for seq, prompt, answer in connection.execute("SELECT seq, prompt, answer FROM bodies")
                }
                rows = connection.execute("SELECT seq, row, hash FROM rows NOT INDEXED ORDER BY seq")
                return check(links_of(rows), head, key=read_key(self.path), bodies=bodies, kept=kept)
        except LedgerBroken as error:
            return Verified(rows=0, last=0, head="", problems=(Problem(seq=0, what=error.message),))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """Give a connection that cannot write, None where there is no ledger; errors of SQLite become ours."""
        if not self.path.exists():
            yield None
            return
        connection = None
        try:
            connection = self._connect()
            yield connection
        except sqlite3.Error as error:
            if is_damage(error) or "no such" in str(error):
                raise LedgerBroken(
                    f"{str(self.path)!r} is no ledger: {error}",
                    hint="the next routed request moves a damaged file aside and begins a new one",
                ) from error
            raise EdgeAIError(
                f"the ledger {str(self.path)!r} cannot be read: {error}", hint="another program may hold it; try again"
            ) from error
        finally:
            if connection is not None:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        name = self.path.absolute().as_uri()
        try:
            connection = sqlite3.connect(f"{name}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
            connection.execute("BEGIN")  # what follows sees one moment
            connection.execute("SELECT 1 FROM rows LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            # In a folder that cannot be written, WAL needs its side files there or the promise that nobody writes.
            if self.path.with_name(f"{self.path.name}-wal").exists():
                raise
            connection = sqlite3.connect(f"{name}?immutable=1", uri=True, timeout=BUSY_S, isolation_level=None)
        return connection


def _row(text: str, hash_: str) -> Row:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LedgerBroken(f"a row of the ledger is not JSON: {error}", hint="edgeai logs verify says which") from error
    if not isinstance(found, dict):
        raise LedgerBroken(f"a row of the ledger is {found!r:.40}", hint="edgeai logs verify says which")
    return found | {"hash": hash_}
