"""Output files that appear whole or not at all: checked first, written under a temporary name, renamed at the end."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from converters.errors import OutputError

__all__ = ["OutputFile", "check_apart", "check_name", "check_output"]

SUFFIX = ".edgeai-part"


def check_output(output: Path, source: Path, files: Iterable[Path], *, force: bool) -> None:
    """Raise OutputError unless OUTPUT can become a new file that is none of the source's FILES and not in its folder.

    Hard and symbolic links are seen through.
    """
    folder = output.parent
    check_name(output)
    if output.is_dir():
        raise OutputError(f"the output {str(output)!r} is a folder", hint=f"name a file: -o {output / 'model.gguf'}")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise OutputError(f"the output folder {str(folder)!r} {what}", hint=f"mkdir -p {folder}")
    if any(output.exists() and output.samefile(file) for file in files):
        raise OutputError(f"the output {str(output)!r} is the input", hint="name another file with -o")
    real = folder.resolve()
    if real == source.resolve() or source.resolve() in real.parents:
        raise OutputError(
            f"the output {str(output)!r} is inside the source folder {str(source)!r}, which is never changed",
            hint="name a file elsewhere with -o",
        )
    if output.exists() and not output.is_file():
        raise OutputError(f"the output {str(output)!r} is no regular file", hint="name a file with -o")
    if output.exists() and not force:
        raise OutputError(
            f"the output {str(output)!r} is there already", hint="--force replaces it, -o names another file"
        )


def check_apart(output: Path, others: Mapping[str, Path | None]) -> None:
    """Raise OutputError where OUTPUT is one of OTHERS, option → file, whether or not they are there already."""
    for option, path in others.items():
        if path is None:
            continue
        there = output.exists() and path.exists() and output.samefile(path)
        if there or output.resolve() == path.resolve():
            raise OutputError(
                f"the output {str(output)!r} and {option} are the same file", hint="name another file with -o"
            )


def check_name(path: Path) -> None:
    """Raise OutputError where the file system takes no such name, as one that is too long."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}", hint="name another file with -o") from error


class OutputFile:
    """Temporary files in the folder of an output; leaving the `with` block removes those that were not committed.

    Each is held with a lock while its process lives, so that what a killed process left can be told from work in progress.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.open_files: dict[Path, int] = {}

    def __enter__(self) -> Self:
        sweep(self.output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in list(self.open_files):
            self.discard(path)

    def temporary(self) -> Path:
        """Create an empty file beside the output. Raises OutputError where the folder cannot be written."""
        path = self.output.with_name(f"{prefix(self.output)}{secrets.token_hex(4)}{SUFFIX}")
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            raise OutputError(
                f"the output folder {str(self.output.parent)!r} cannot be written: {error.strerror or error}",
                hint="check its permissions, or name another with -o",
            ) from error
        self.open_files[path] = handle
        lock(handle)
        return path

    def discard(self, path: Path) -> None:
        """Remove the temporary file PATH."""
        os.close(self.open_files.pop(path))
        path.unlink(missing_ok=True)

    def commit(self, path: Path, name: Path | None = None) -> None:
        """Give the finished temporary file PATH the final name, or NAME, with its bytes on the disk."""
        final = name or self.output
        os.fsync(self.open_files[path])
        os.close(self.open_files.pop(path))
        try:
            path.replace(final)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OutputError(f"{str(final)!r} cannot be written: {error.strerror or error}") from error
        sync_folder(final.parent)


def prefix(output: Path) -> str:
    """Return how the temporary names of OUTPUT begin; a long name is cut so that the whole still fits the file system."""
    raw = os.fsencode(output.name)  # a name need not be UTF-8
    return f".{os.fsdecode(raw) if len(raw) <= 120 else raw[:120].decode(errors='ignore')}."


def sweep(output: Path) -> None:
    """Remove what conversions to OUTPUT that were killed have left behind, and nothing that is still being written."""
    try:
        left = [
            path
            for path in output.parent.iterdir()
            if path.name.startswith(prefix(output)) and path.name.endswith(SUFFIX)
        ]
    except OSError:
        return  # the folder cannot be listed: writing to it will say why
    for path in left:
        middle = path.name.removeprefix(prefix(output)).removesuffix(SUFFIX)
        if len(middle) != 8 or not set(middle) <= set("0123456789abcdef") or path.is_symlink() or not path.is_file():
            continue  # not a name that was made here
        handle = os.open(path, os.O_RDWR)
        try:
            if lock(handle):
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def lock(handle: int) -> bool:
    """Take the lock of an open file; whether it was free. It ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: an open file cannot be removed there, so nothing is swept
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.ENOLCK, errno.ENOTSUP)
    return True


def sync_folder(folder: Path) -> None:
    """Put the names in FOLDER on the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
