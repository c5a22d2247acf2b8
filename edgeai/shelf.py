"""The store's folder on disk: what is where, who may change it, and how a model appears and goes as a whole.

EDGEAI_HOME (default: the user's data folder)
├── blobs/sha256-<hex>         the bytes, once, however many names share them
├── manifests/<name>.json      what a pulled model is made of; a model is pulled when this file is there
├── models/<name>/<file>       hard links to blobs (symbolic links or copies where those are not possible)
├── tmp/<name>/                a download under way; belongs to whoever holds the lock of that name
└── locks/                     <name>.lock for a download, .store.lock for changes of manifests, models and blobs
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from edgeai.errors import DoesNotFit, InvalidModel, OutputError
from edgeai.types import Progress, no_progress

__all__ = ["Manifest", "Shelf", "StoredFile", "size_of"]

SPARE_BYTES = 16_000_000
"""What must stay free beside a download: manifests, pip's log, the file system's own blocks."""
STALE_S = 7 * 86400
"""How long a download that nobody goes on with is kept to be resumed."""
OTHER_DISK = "free some space, or set EDGEAI_HOME to a folder on another disk"
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Named(Protocol):
    """A file of a model, as the catalogue or a manifest describes it."""

    @property
    def path(self) -> str:
        """Its path in the model's folder."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its hash, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a pulled model, and the source that it came from."""

    path: str
    size_bytes: int
    sha256: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A pulled model. `pulled_at` is a UTC time in ISO 8601."""

    name: str
    description: str
    licence: str
    quant: str
    pulled_at: str
    files: tuple[StoredFile, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The folder `home`."""

    home: Path

    def blob(self, file: Named) -> Path:
        """Return where the bytes of FILE are kept."""
        return self.home / "blobs" / f"sha256-{file.sha256}"

    def link(self, name: str, file: Named) -> Path:
        """Return the path under which FILE of the model NAME is used."""
        return self.home / "models" / name / file.path

    def scratch(self, name: str) -> Path:
        """Return the folder for a download of the model NAME."""
        return self.home / "tmp" / name

    def has(self, file: Named) -> bool:
        """Return whether the blob of FILE is there with the right size."""
        return size_of(self.blob(file)) == file.size_bytes

    def is_whole(self, manifest: Manifest) -> bool:
        """Return whether every file of MANIFEST and its blob are there with the right size."""
        links = {self.link(manifest.name, file): file.size_bytes for file in manifest.files}
        return all(map(self.has, manifest.files)) and all(size_of(path) == size for path, size in links.items())

    def main_path(self, manifest: Manifest) -> Path:
        """Return the path that stands for the model: its one .gguf file, else its folder."""
        ggufs = [file for file in manifest.files if file.path.endswith(".gguf")]
        return self.link(manifest.name, ggufs[0]) if len(ggufs) == 1 else self.home / "models" / manifest.name

    def names(self) -> list[str]:
        """Return the names of the pulled models, sorted."""
        return sorted(path.stem for path in (self.home / "manifests").glob("*.json"))

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of the model NAME, None when it is not pulled; raises InvalidModel when it is damaged."""
        path = self.home / "manifests" / f"{name}.json"
        try:
            value = json.loads(path.read_bytes())
            files = tuple(StoredFile(**file) for file in value.pop("files"))
            found = Manifest(**value, files=files)
            is_right = found.name == name and all(map(is_sound, files))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_right = False
        if not is_right:
            hint = f"delete that file and run `edgeai pull {name}`"
            raise InvalidModel(f"the manifest {str(path)!r} is damaged", hint=hint)
        return found

    def manifests(self) -> tuple[list[Manifest], dict[str, InvalidModel]]:
        """Return the manifests that can be read, by name, and an error for each of the others: one harms no other."""
        found: list[Manifest] = []
        damaged: dict[str, InvalidModel] = {}
        for name in self.names():
            try:
                manifest = self.manifest(name)
            except InvalidModel as error:
                damaged[name] = error
            else:
                found += [manifest] if manifest else []  # another process can have deleted it just now
        return found, damaged

    @contextlib.contextmanager
    def lock(self, name: str = "", progress: Progress = no_progress) -> Iterator[None]:
        """Hold the lock of the model NAME, or without a name of the store; tell when another process has it."""
        from filelock import FileLock, Timeout

        guard = FileLock(self.lock_path(name))
        try:
            guard.acquire(timeout=0)
        except Timeout:
            if name:
                progress(f"waiting for another edgeai that is pulling {name}", 0, None)
            guard.acquire()
        try:
            yield
        finally:
            guard.release()

    def lock_path(self, name: str) -> Path:
        """Return the lock file of the model NAME, or without a name of the store, in a folder that is there."""
        folder = self.home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name or '.store'}.lock"

    def publish(self, manifest: Manifest) -> None:
        """Make the model appear: blobs from its download folder, links, then the manifest; the store lock is held."""
        folder = self.scratch(manifest.name)
        for file in manifest.files:
            if not self.has(file):
                self.blob(file).parent.mkdir(exist_ok=True)
                (folder / f"{file.sha256}.done").replace(self.blob(file))
            place(self.blob(file), self.link(manifest.name, file))
        text = json.dumps(asdict(manifest), ensure_ascii=False, indent=1)
        write_whole(self.home / "manifests" / f"{manifest.name}.json", text)
        shutil.rmtree(folder, ignore_errors=True)
        self.collect()

    def remove(self, name: str) -> int:
        """Make the model NAME go and return the bytes that this frees; the store lock is held."""
        (self.home / "manifests" / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(self.home / "models" / name, ignore_errors=True)
        shutil.rmtree(self.scratch(name), ignore_errors=True)
        return self.collect()

    def collect(self) -> int:
        """Delete the blobs that no manifest names and return their bytes; the store lock is held."""
        manifests, damaged = self.manifests()
        used = {self.blob(file) for manifest in manifests for file in manifest.files}
        # What a damaged manifest named is not known, but its links still lead there.
        linked = {inode(path) for name in damaged for path in (self.home / "models" / name).rglob("*")}
        used |= {path for path in (self.home / "blobs").glob("sha256-*") if linked and inode(path) in linked}
        freed = 0
        for path in set((self.home / "blobs").glob("sha256-*")) - used:
            freed += size_of(path) or 0
            path.unlink(missing_ok=True)
        return freed

    def sweep(self, held: str) -> None:
        """Delete what killed downloads left: wheels at once, what can be resumed after a week.

        The lock of the model HELD is held by the caller; a folder whose lock somebody else holds is left alone.
        """
        from filelock import FileLock, Timeout

        for folder in (self.home / "tmp").glob("*"):
            if folder.name == held:
                drop_stale(folder)
                continue
            guard = FileLock(self.lock_path(folder.name))
            try:
                guard.acquire(timeout=0)
            except Timeout:
                continue
            try:
                drop_stale(folder)
            finally:
                guard.release()

    def check_space(self, what: str, need: int) -> None:
        """Raise DoesNotFit unless NEED bytes are free for WHAT, with some to spare."""
        self.home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.home).free
        if need + SPARE_BYTES > free:
            message = f"{what} needs {megabytes(need)} of disk, and {str(self.home)!r} has {megabytes(free)} free"
            raise DoesNotFit(message, hint=OTHER_DISK)

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn a full disk, or a folder that cannot be changed, into an error with a hint."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise DoesNotFit(f"the disk of {str(self.home)!r} is full", hint=OTHER_DISK) from error
            message = f"the store {str(self.home)!r} cannot be changed: {error.strerror or error}"
            raise OutputError(message, hint="check permissions, or set EDGEAI_HOME to another folder") from error


def size_of(path: Path) -> int | None:
    """Return the size of the file PATH; None when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def inode(path: Path) -> tuple[int, int] | None:
    """Return what tells the file PATH from every other one; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_sound(file: StoredFile) -> bool:
    """Return whether FILE, which a manifest names, has values of the right kinds."""
    texts = (file.path, file.sha256, file.source)
    return type(file.size_bytes) is int and all(isinstance(text, str) for text in texts)


def drop_stale(folder: Path) -> None:
    """Delete the wheels in the download folder FOLDER, and all of it when nothing in it is recent."""
    for path in folder.glob("wheel-*"):
        shutil.rmtree(path, ignore_errors=True)
    if time.time() - newest(folder) > STALE_S:
        shutil.rmtree(folder, ignore_errors=True)


def newest(folder: Path) -> float:
    """Return the time of the last change in FOLDER, in seconds since the epoch."""
    return max((path.stat().st_mtime for path in folder.rglob("*")), default=folder.stat().st_mtime)


def megabytes(count: int) -> str:
    """Return COUNT bytes in MB, the unit of every message about disks here, so that two numbers can be compared."""
    return f"{count / 1e6:.1f} MB"


def place(blob: Path, path: Path) -> None:
    """Give BLOB the name PATH: by a hard link, a symbolic link, or a copy, whichever the file system can do first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.samefile(blob):
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        for way in (os.link, os.symlink, shutil.copyfile):
            try:
                way(blob, fresh)
            except OSError as error:
                if way is shutil.copyfile or error.errno in FULL:
                    raise
            else:
                break
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write TEXT to PATH so that it is there in whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
