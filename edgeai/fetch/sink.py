"""Where downloaded bytes go: counted, hashed while they are written, and kept only when they are the right ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from edgeai.errors import HashMismatch
from edgeai.types import Progress

__all__ = ["Sink", "Wanted", "sha256_of"]

CHUNK = 1 << 20


class Wanted(Protocol):
    """What a file must be."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its hash, in hexadecimal."""


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file PATH in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Sink:
    """Writes TARGET; leaving the block without an error checks size and sha256 and fsyncs.

    With an error the file is deleted, unless `keep` is set: then what was written stays for a later attempt, which
    continues it with `resume`. Wrong bytes are always deleted.
    """

    def __init__(
        self,
        target: Path,
        want: Wanted,
        origin: str,
        progress: Progress,
        *,
        label: str | None = None,
        resume: bool = False,
        keep: bool = False,
    ) -> None:
        self.target, self.want, self.origin, self.progress = target, want, origin, progress
        self.label = label or f"copying {origin}"
        self.keep = keep
        self.hash = hashlib.sha256()
        self.done = 0
        self.resume = resume
        self.file: IO[bytes] | None = None

    def __enter__(self) -> Sink:
        if self.resume:
            with self.target.open("rb") as old:
                while chunk := old.read(CHUNK):
                    self.hash.update(chunk)
                    self.done += len(chunk)
        self.file = self.target.open("ab" if self.resume else "wb")
        self.progress(self.label, self.done, self.want.size_bytes, "B")
        return self

    def write(self, chunk: bytes) -> None:
        """Append CHUNK; more bytes than wanted are an error at once."""
        assert self.file is not None  # noqa: S101 - only inside the block
        self.done += len(chunk)
        if self.done > self.want.size_bytes:
            raise self.mismatch(f"more than {self.want.size_bytes} bytes")
        self.hash.update(chunk)
        self.file.write(chunk)
        self.progress(self.label, self.done, self.want.size_bytes, "B")

    def copy(self, source: IO[bytes] | Any) -> None:
        """Append everything that SOURCE has."""
        while chunk := source.read(CHUNK):
            self.write(chunk)

    def mismatch(self, got: str) -> HashMismatch:
        """Return the error for bytes that are not the wanted ones."""
        return HashMismatch(
            f"{self.origin} gave {got}, and {self.want.size_bytes} bytes with the sha256 {self.want.sha256} are wanted",
            hint="nothing of it was kept; try again, and if it stays so, the source is not the one the catalogue means",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.file is not None  # noqa: S101 - __enter__ has run
        good = False
        try:
            if error is None:
                self.check()
                self.file.flush()
                os.fsync(self.file.fileno())
                good = True
        except HashMismatch:
            self.keep = False
            raise
        finally:
            try:
                self.file.close()
            finally:
                if not good and not (self.keep and not isinstance(error, HashMismatch | OSError)):
                    self.target.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise HashMismatch unless all bytes are here and are the wanted ones."""
        if self.done != self.want.size_bytes:
            raise self.mismatch(f"{self.done} bytes")
        if self.hash.hexdigest() != self.want.sha256:
            raise self.mismatch(f"the sha256 {self.hash.hexdigest()}")
