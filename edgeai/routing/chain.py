"""The chain of the ledger: each row's hash covers the row and the hash before it, and a second file says how long the chain was.

hash(row) = SHA-256(hash of the row before ‖ canonical JSON of the row), the row's own number being part of it; before the first row the
hash is 32 zero bytes. The head file, `<ledger>.head`, has the number and hash of the last row, written after each commit.

What this finds: a row that was edited, removed, inserted or moved (its hash, or the number in it, does not fit), and rows that were cut
off at the end (the head knows of more). Rows that a killed process had committed without getting to the head are no fault; they alone
could be cut off unseen. What it cannot find: somebody who may write in that folder can compute the whole chain, head and all, anew.
Against that keep the hash that `verify` gives elsewhere, and hold a later ledger against it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeai.routing.entry import canonical, digest, key_name

__all__ = ["ZERO", "Head", "Link", "Problem", "Verified", "check", "read_head", "row_hash", "write_head"]

ZERO = "0" * 64
HEAD_BYTES = 256
"""The head file's size: less than a sector, so that it is written whole or not at all, in place and without a second file."""
SHOWN = 100
"""After so many problems no more are listed."""


@dataclass(frozen=True, slots=True)
class Head:
    """How long the chain was when it was last written: the `seq` of the last row, and its `hash`. `mac` is keyed, None without a key."""

    seq: int = 0
    hash: str = ZERO
    mac: str | None = None

    def sealed(self, key: bytes | None) -> Head:
        """Return it with its code under KEY."""
        if key is None:
            return Head(self.seq, self.hash)
        code = hashlib.blake2b(f"{self.seq} {self.hash}".encode(), digest_size=16, key=key).hexdigest()
        return Head(self.seq, self.hash, f"{key_name(key)}:{code}")

    def is_sealed_by(self, key: bytes | None) -> bool:
        """Whether its code is that of KEY; without a code or under another key it cannot be said, and is believed."""
        if self.mac is None or key is None or not self.mac.startswith(key_name(key)):
            return True
        return hmac.compare_digest(self.mac, self.sealed(key).mac or "")


@dataclass(frozen=True, slots=True)
class Link:
    """A row as it is on the disk: its number, its text, and its hash as written."""

    seq: int
    text: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong at row `seq`."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a look at the whole chain found. `head` is the hash of the last row; `notes` are no faults, but who reads should know them."""

    rows: int
    last: int
    head: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        problems = [{"seq": item.seq, "what": item.what} for item in self.problems]
        return {
            "ok": self.ok, "rows": self.rows, "last": self.last, "head": self.head, "problems": problems, "notes": list(self.notes),
        }  # fmt: skip


def row_hash(previous: str, text: str) -> str:
    """Return the hash of the row whose canonical JSON is TEXT, after the one with the hash PREVIOUS."""
    return hashlib.sha256(bytes.fromhex(previous) + text.encode()).hexdigest()


def read_head(path: Path) -> Head | None:
    """Return what the head file PATH says, None where there is none or it cannot be understood."""
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        head = Head(int(found["seq"]), str(found["hash"]), found.get("mac"))
        bytes.fromhex(head.hash)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return head


def write_head(path: Path, head: Head) -> None:
    """Write HEAD over what PATH had, in one write of less than a sector. Raises OSError."""
    text = canonical({"seq": head.seq, "hash": head.hash, "mac": head.mac}).ljust(HEAD_BYTES - 1) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    try:
        os.write(handle, text.encode("ascii"))
    finally:
        os.close(handle)


def check(
    links: Iterable[Link],
    head: Head | None,
    *,
    key: bytes | None = None,
    bodies: Mapping[int, tuple[str | None, str | None]] | None = None,
    kept: Head | None = None,
) -> Verified:
    """Walk the chain LINKS and hold it against its HEAD; BODIES (by seq) against the digests, and KEPT, which somebody kept elsewhere."""
    walk = _Walk(head=head, key=key, bodies=bodies or {}, kept=kept)
    for link in links:
        walk.step(link)
    walk.end()
    problems = sorted(walk.problems, key=lambda problem: problem.seq)
    return Verified(
        rows=walk.rows, last=walk.last, head=walk.previous, problems=tuple(problems[:SHOWN]), notes=tuple(walk.notes)
    )


class _Walk:
    """One pass over the rows. After a fault it goes on from what is written, so that one fault is named once."""

    def __init__(
        self,
        *,
        head: Head | None,
        key: bytes | None,
        bodies: Mapping[int, tuple[str | None, str | None]],
        kept: Head | None,
    ) -> None:
        self.rows = self.last = 0
        self.previous = ZERO
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._head, self._key, self._bodies, self._kept = head, key, bodies, kept
        self._pruned: dict[int, str] = {}
        self._first: Link | None = None
        """The first row, where that is not row 1: the rows before it must have been pruned."""
        self._watched = {known.seq for known in (head, kept) if known is not None}
        self._hashes: dict[int, str] = {0: ZERO}

    def blame(self, seq: int, what: str) -> None:
        self.problems.append(Problem(seq=seq, what=what))

    def step(self, link: Link) -> None:
        """Take the next row."""
        self.rows += 1
        row = _parsed(link.text)
        if self.rows == 1 and link.seq != 1:
            self._first = link  # judged at the end, by the row that says what was pruned
        elif link.seq != self.last + 1:
            self.blame(self.last + 1, f"row {_span(self.last + 1, link.seq - 1)} was removed")
        elif not _follows(self.previous, link):
            self.blame(link.seq, f"row {link.seq} was edited, or is not the one that followed row {link.seq - 1}")
        if row is None:
            self.blame(link.seq, f"row {link.seq} is not a row of the ledger")
        else:
            if row.get("seq") != link.seq:
                self.blame(link.seq, f"row {link.seq} was written as row {row.get('seq')!r:.20}")
            self._read(link.seq, row)
        self.last, self.previous = link.seq, link.hash
        if link.seq in self._watched:
            self._hashes[link.seq] = link.hash

    def _read(self, seq: int, row: Mapping[str, Any]) -> None:
        kind = row.get("kind")
        if kind == "pruned" and isinstance(row.get("through"), int):
            self._pruned[row["through"]] = str(row.get("hash"))
            self.notes.append(f"rows up to {row['through']} were pruned at {row.get('time')}")
        elif kind == "gap":
            self.blame(seq, f"when row {seq} was written, {row.get('what')}")
        elif kind == "begun":
            self.notes.append(f"the ledger was begun anew at {row.get('time')}: {row.get('what')}")
        elif kind == "lost":
            self.notes.append(f"row {seq}: {row.get('count')} requests could not be recorded")
        self._check_body(seq, row)

    def _check_body(self, seq: int, row: Mapping[str, Any]) -> None:
        digests = row.get("digests")
        if seq not in self._bodies or self._key is None or not isinstance(digests, dict):
            return
        if digests.get("key") != key_name(self._key):
            return
        for name, text in zip(("prompt", "answer"), self._bodies[seq], strict=True):
            if digest(text, self._key) != digests.get(name):
                self.blame(seq, f"the {name} of row {seq} is not the one that was recorded")

    def end(self) -> None:
        """Judge what only the whole chain tells."""
        if self._first is not None:
            seq = self._first.seq
            before = self._pruned.get(seq - 1)
            if before is None:
                self.blame(1, f"row {_span(1, seq - 1)} was removed")
            elif not _follows(before, self._first):
                self.blame(seq, f"row {seq} was edited, or is not the one that followed row {seq - 1}")
        self._check_head()
        if self._kept is not None and self._hashes.get(self._kept.seq) != self._kept.hash:
            self.blame(self._kept.seq, f"row {self._kept.seq} does not have the hash that was kept of it")

    def _check_head(self) -> None:
        head = self._head
        if head is None:
            if self.rows:
                self.blame(self.last, "the head file is gone or damaged, so rows may have been cut off at the end")
        elif not head.is_sealed_by(self._key):
            self.blame(head.seq, "the head file was not written by this machine's ledger")
        elif head.seq > self.last:
            self.blame(self.last + 1, f"row {_span(self.last + 1, head.seq)} was cut off at the end")
        elif head.seq in self._hashes and self._hashes[head.seq] != head.hash:
            self.blame(head.seq, f"row {head.seq} is not the one that the head file knows")
        elif head.seq < self.last:
            rows = _span(head.seq + 1, self.last)
            self.notes.append(
                f"the head file does not know row {rows} yet: its program was killed before it wrote that"
            )


def _follows(previous: str, link: Link) -> bool:
    with contextlib.suppress(ValueError):  # a hash that is none
        return row_hash(previous, link.text) == link.hash
    return False


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def links_of(rows: Iterable[tuple[int, str, str]]) -> Iterator[Link]:
    """Yield the rows (seq, text, hash) of a query as links."""
    return (Link(int(seq), str(text), str(hash_)) for seq, text, hash_ in rows)
