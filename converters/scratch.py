"""Folders for temporary files that do not outlive their process for long, even one that was killed.

Each is locked while its process lives. The next process that needs one removes those whose lock is free.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType

from converters.output import lock

__all__ = ["Scratch"]

PREFIX = "edgeai-scratch-"
SWEPT: set[str] = set()
"""The folders for temporary files that this process has looked through."""


class Scratch:
    """A new folder `path`, removed by `cleanup` or at the end of the `with` block, which gives its name."""

    def __init__(self) -> None:
        place = tempfile.gettempdir()
        if place not in SWEPT:
            SWEPT.add(place)
            sweep(Path(place))
        self.path, self._handle = claim()
        self.name = str(self.path)

    def cleanup(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> str:
        return self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()


def claim() -> tuple[Path, int | None]:
    """Make a folder and lock it; return it with the open handle that holds the lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if os.name != "posix":
            return path, None
        # Until it is locked, another process may take it for one that was left, and remove it.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            if not lock(handle):  # by one that is removing it, or the file system has no locks
                time.sleep(0.05)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return path, handle
            os.close(handle)


def sweep(place: Path) -> None:
    """Remove the folders in PLACE that a killed process of this user has left, and none that is in use."""
    if os.name != "posix":
        return
    for folder in place.glob(f"{PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, another user's, or none of ours
        try:
            if os.fstat(handle).st_uid == os.getuid() and lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
