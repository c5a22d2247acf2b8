"""An output folder that appears whole or not at all: written under a temporary name beside its place, renamed at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from converters.errors import OutputError
from converters.output import SUFFIX, check_name, lock, prefix, sync_folder

__all__ = ["OutputFolder", "check_output_folder"]

MARK = "edgeai.json"
"""A folder with this file was written here; only such a one is ever replaced."""


def check_output_folder(output: Path, files: Iterable[Path], *, force: bool) -> None:
    """Raise OutputError unless OUTPUT can become a new folder that holds none of the source's FILES."""
    parent = output.parent
    check_name(output)
    if not parent.is_dir():
        what = "is not a folder" if parent.exists() else "does not exist"
        raise OutputError(f"the output folder {str(parent)!r} {what}", hint=f"mkdir -p {parent}")
    if not os.path.lexists(output):
        return
    if not output.is_dir() or output.is_symlink():
        raise OutputError(f"the output {str(output)!r} is there already and no folder", hint="name another with -o")
    real = output.resolve()
    if any(real in file.resolve().parents for file in files):
        raise OutputError(f"the output {str(output)!r} holds the input", hint="name another folder with -o")
    if not any(output.iterdir()):
        return
    if not force:
        raise OutputError(
            f"the output {str(output)!r} is there already", hint="--force replaces it, -o names another folder"
        )
    if not (output / MARK).is_file():
        raise OutputError(
            f"the output {str(output)!r} is there already and was not written by edgeai (it has no {MARK})",
            hint="remove it yourself, or name another folder with -o",
        )


class OutputFolder:
    """A temporary folder beside OUTPUT; leaving the `with` block removes it unless it was committed.

    It is locked while its process lives, so that what a killed process left can be told from work in progress.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._was = _identity(output)
        self.path = output.with_name(f"{prefix(output)}{secrets.token_hex(4)}{SUFFIX}")
        self._handle: int | None = None

    def __enter__(self) -> Self:
        sweep(self.output)
        try:
            self.path.mkdir()
        except OSError as error:
            raise OutputError(
                f"the output folder {str(self.output.parent)!r} cannot be written: {error.strerror or error}",
                hint="check its permissions, or name another with -o",
            ) from error
        if os.name == "posix":
            self._handle = os.open(self.path, os.O_RDONLY)
            lock(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
        if self.path.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def commit(self) -> None:
        """Give the finished folder its name; what was there before goes when the new one has taken its place."""
        if _identity(self.output) != self._was:
            raise OutputError(
                f"the output {str(self.output)!r} has been written by another process meanwhile",
                hint="name another with -o",
            )
        sync_folder(self.path)
        old = self.output.with_name(f"{prefix(self.output)}{secrets.token_hex(4)}{SUFFIX}")
        replaced = self.output.exists()
        try:
            if replaced:
                self.output.rename(old)
            try:
                self.path.rename(self.output)
            except OSError:
                if replaced:
                    old.rename(self.output)
                raise
        except OSError as error:
            raise OutputError(f"{str(self.output)!r} cannot be written: {error.strerror or error}") from error
        sync_folder(self.output.parent)
        if replaced:
            shutil.rmtree(old, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the folder at PATH from another of that name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sweep(output: Path) -> None:
    """Remove the temporary folders of OUTPUT that killed processes have left, and none that is still being written."""
    if os.name != "posix":
        return
    try:
        left = [path for path in output.parent.iterdir() if path.name.startswith(prefix(output))]
    except OSError:
        return  # the folder cannot be listed: writing to it will say why
    for path in left:
        middle = path.name.removeprefix(prefix(output)).removesuffix(SUFFIX)
        named_here = path.name.endswith(SUFFIX) and len(middle) == 8 and set(middle) <= set("0123456789abcdef")
        if not named_here or path.is_symlink() or not path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            if lock(handle):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
