"""Graphs that onnxruntime has optimised, kept on disk: the next load of the same file on the same machine takes half of the time.

An optimised graph holds operators of this CPU and this version, so both are in its name, with the sha256 of the file that it was made
from. That sum takes as long as optimising; it is remembered for a file whose size, time and inode have not changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeai.childprocess import read_memo, write_memo

__all__ = ["OptimizedModels"]

LEAST_BYTES = 16_000_000
"""Smaller files load in a few milliseconds either way. Measured: 8 kB 0.4 ms and 0.3 from the cache, 2.8 MB 11 and 3, 6.3 MB 8 and 3,
56 MB 71 and 37 (and 36 for its sha256)."""
MOST_BYTES = 1_000_000_000
"""A graph in one file can have 2 GB, the limit of protobuf, and constants that were folded come on top."""
TOTAL_BYTES = 2_000_000_000
"""All of the cache; the files that were not used for the longest time go first."""
MEMO, REMEMBERED = "files.json", 200
STALE_S = 3600.0
"""A temporary file of this age is one of a process that died."""


class OptimizedModels:
    """The optimised graphs in FOLDER, for a CPU with these FEATURES and this VERSION of onnxruntime."""

    def __init__(
        self, folder: Path, *, version: str, features: Sequence[str], least: int = LEAST_BYTES, total: int = TOTAL_BYTES
    ) -> None:
        self._folder, self._least, self._total = folder, least, total
        self._machine = f"{version} {' '.join(sorted(features))}"

    def pays(self, path: Path) -> bool:
        """Return whether PATH is of a size for which loading gets faster, and in one file."""
        return self._least <= path.stat().st_size <= MOST_BYTES

    def find(self, path: Path, providers: Sequence[str]) -> Path | None:
        """Return the optimised graph of PATH for PROVIDERS if it is there, whole by its size, and note that it was used."""
        place = self._place(path, providers)
        try:
            if place.stat().st_size != read_memo(self._folder / MEMO).get(place.name):
                return None
            os.utime(place)
        except OSError:
            return None
        return place

    @contextlib.contextmanager
    def make(self, path: Path, providers: Sequence[str]) -> Iterator[Path | None]:
        """Yield where to write the optimised graph of PATH, which is kept if nothing is raised; None where nothing can be written."""
        place = self._place(path, providers)
        fresh = place.with_name(f"{place.stem}.{os.getpid()}-{time.monotonic_ns()}.tmp.onnx")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh.touch()
        except OSError:  # a cache is a convenience: without one everything works
            yield None
            return
        try:
            yield fresh
            self._keep(fresh, place)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _keep(self, fresh: Path, place: Path) -> None:
        with contextlib.suppress(OSError):
            size = fresh.stat().st_size
            if size:
                fresh.replace(place)
                self._note(place.name, size)
            self._shrink(keep=place)

    def _shrink(self, *, keep: Path) -> None:
        """Remove what is oldest until the rest has at most the size that it may have, and what processes left that died."""
        entries = []
        for entry in self._folder.glob("*.onnx"):
            with contextlib.suppress(OSError):
                entries.append((entry.stat().st_mtime, entry.stat().st_size, entry))
        left = sum(size for _, size, _ in entries)
        for used, size, entry in sorted(entries):
            stale = entry.name.endswith(".tmp.onnx") and time.time() - used > STALE_S
            if stale or (left > self._total and entry != keep):
                entry.unlink(missing_ok=True)
                left -= size

    def _place(self, path: Path, providers: Sequence[str]) -> Path:
        key = f"{self._sum(path)} {self._machine} {' '.join(providers)}"
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx"

    def _sum(self, path: Path) -> str:
        file = path.stat()
        identity = f"{path.absolute()} {file.st_size} {file.st_mtime_ns} {file.st_ino}"
        known = read_memo(self._folder / MEMO).get(identity)
        if isinstance(known, str):
            return known
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        self._note(identity, found)
        return found

    def _note(self, key: str, value: Any) -> None:
        memo = self._folder / MEMO
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = {name: item for name, item in read_memo(memo).items() if name != key}
            write_memo(memo, dict(list({**kept, key: value}.items())[-REMEMBERED:]))
