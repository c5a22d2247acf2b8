"""The folder of a run: the model's files in it, the working state in `run/`, and nothing of the user's ever touched.

DIR/            what `edgeai convert DIR` reads; complete or not a model at all (config.json is put there last)
DIR/run/        step-*.pt (the last two checkpoints), tokens, metrics.jsonl; git ignores it, and it may be deleted
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from edgeai.errors import DoesNotFit, OutputError, UsageError

__all__ = ["EXPORT_FILES", "Workspace", "disk_errors", "open_workspace", "publish", "write_whole"]

EXPORT_FILES = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "edgeai.json",
    "config.json",
)
"""In the order in which they get their names: without config.json no reader takes the folder for a model."""

RUN = "run"
LOCK = ".lock"
MARK = ".gitignore"
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Workspace:
    """The folder of one run, locked as long as this process works in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / RUN

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.run.glob("step-*.pt"))


@contextlib.contextmanager
def open_workspace(folder: Path, *, resume: bool) -> Iterator[Workspace]:
    """Check that FOLDER can take a run, make it, lock it, and give back an empty one untouched on failure.

    Raises OutputError for a folder that holds anything which this run would not be the continuation of, and
    UsageError where RESUME has nothing to go on from.
    """
    space = Workspace(folder)
    _check(space, resume=resume)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder, "choose another folder with -o"):
        space.run.mkdir(parents=True, exist_ok=True)
        (space.run / MARK).write_text("*\n", encoding="utf-8")  # a checkpoint is not to be committed by accident
    lock = FileLock(space.run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another process is training in {str(folder)!r}", hint="wait, or choose another folder with -o"
        ) from error
    try:
        _check(space, resume=resume)  # again, now that nobody else can change it
        for leftover in space.run.glob(".*.tmp"):  # of a process that was killed
            leftover.unlink()
        yield space
    finally:
        keep = bool(space.checkpoints)
        lock.release()
        if not keep:
            shutil.rmtree(space.run, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):  # not empty any more: somebody else's files
                    path.rmdir()


def _check(space: Workspace, *, resume: bool) -> None:
    folder = space.folder
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is a file", hint="choose another folder with -o")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    finished = {"config.json", "edgeai.json"} <= names
    if resume and not space.checkpoints:
        raise UsageError(
            f"{str(folder)!r} has no checkpoint to resume from",
            hint="leave --resume out to start a run" if not names else "name the folder of the run with -o",
        )
    if resume:
        return
    if space.checkpoints:
        state = "a finished run" if finished else f"an unfinished run ({space.checkpoints[-1].stem})"
        raise OutputError(
            f"{str(folder)!r} holds {state}",
            hint="--resume --steps N trains it further, -o starts elsewhere"
            if finished
            else "--resume goes on with it, -o starts elsewhere",
        )
    foreign = sorted(names - ({RUN} if (space.run / MARK).exists() else set()))
    if foreign:
        what = "a trained model" if finished else f"{foreign[0]!r}, which is not of a training run"
        raise OutputError(f"{str(folder)!r} already holds {what}", hint="choose another folder with -o")


def check_space(folder: Path, need_bytes: int) -> None:
    """Raise DoesNotFit unless the disk of FOLDER has NEED_BYTES free."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise DoesNotFit(
            f"the run needs {need_bytes / 1e6:.1f} MB of disk in {str(folder)!r}, and {free / 1e6:.1f} MB are free",
            hint="free some space, or choose a folder on another disk with -o",
        )


@contextlib.contextmanager
def disk_errors(path: Path, hint: str = "free some disk space, then --resume") -> Iterator[None]:
    """Turn a full disk into DoesNotFit, and whatever else keeps PATH from being written into OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DoesNotFit(
                f"no space is left to write {str(path)!r}: {error.strerror or error}", hint=hint
            ) from error
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}", hint=hint) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let WRITE fill a temporary file beside PATH, and give it its name when it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors(path):
            write(temporary)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish(space: Workspace, write: Callable[[Path], object], files: Sequence[str] = EXPORT_FILES) -> None:
    """Let WRITE fill a temporary folder with FILES, then move them into the run's folder; the last is config.json.

    An older config.json goes first and the new one comes last, so a crash in between leaves no folder that could be
    taken for a model, and `--resume` finishes the job.
    """
    temporary = space.run / ".export.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(space.folder):
            temporary.mkdir()
            write(temporary)
            for name in files:
                _sync(temporary / name)
            (space.folder / "config.json").unlink(missing_ok=True)
            for name in files:
                (temporary / name).replace(space.folder / name)
            _sync(space.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until PATH is on the disk. Windows can open no folder, and its file names are durable without."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
