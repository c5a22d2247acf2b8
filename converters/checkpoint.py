"""Open a Hugging Face folder lazily: its configuration, its tokenizer and its tensors by name, with no tensor read.

A checkpoint is untrusted input. The safetensors library checks each header (sizes, offsets, no overlap, no hole); the index is
checked against the shards, names of files must stay inside the folder, and of .bin files only tensors are unpickled
(`converters.pickled`). Data is read in slabs of rows with
plain file reads: memory stays bounded, and a file that shrinks meanwhile is an error instead of a SIGBUS.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from converters.errors import BrokenCheckpoint, UnsupportedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["Checkpoint", "Source", "SourceTensor", "open_checkpoint"]

MAX_JSON_BYTES = 256 << 20
"""The largest tokenizer.json in use is about 35 MB."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BIN_INDEX, BIN_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "modules.json",
    INDEX,
    BIN_INDEX,
)
"""Files beside the weights that decide what the converted model is; their hashes are part of the lineage."""


class Source(Protocol):
    """Where the values of one tensor come from, wherever they lie. `shape` is torch's order, (rows, columns)."""

    @property
    def name(self) -> str:
        """The name in the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Torch's order."""

    @property
    def dtype(self) -> str:
        """How it is stored: a key of ITEM_BYTES where it can be read."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it."""

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) as float32, shape (last - first, *shape[1:])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """One tensor in a safetensors file: where its bytes lie. `shape` is torch's order, (rows, columns)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that holds it."""
        return (self.file,)

    @property
    def row_bytes(self) -> int:
        """Bytes of one step of the first dimension."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) as float32, shape (last - first, *shape[1:]).

        Raises BrokenCheckpoint when the file has become shorter, UnsupportedModel when a float64 does not fit float32.
        """
        import numpy as np

        size = (last - first) * self.row_bytes
        raw = read_at(self.file, self.start + first * self.row_bytes, size)
        if len(raw) != size:
            raise BrokenCheckpoint(
                f"{str(self.file)!r} ends inside the tensor {self.name!r}", hint="copy or download the model again"
            )
        shape = (last - first, *self.shape[1:])
        if self.dtype == "BF16":  # numpy has no bfloat16: its 16 bits are the upper half of a float32
            return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[self.dtype]
        return np.frombuffer(raw, kind).astype(np.float32).reshape(shape)


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Return up to SIZE bytes of PATH from OFFSET."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise BrokenCheckpoint(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A Hugging Face folder: what its small files say, and where its tensors are. `adapter` is a LoRA folder that they are merged with."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Source]
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_json: str | None = None
    chat_template_file: str | None = None
    adapter: Path | None = None

    @property
    def architecture(self) -> str:
        """The first name in config.architectures, or the empty string."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def model_type(self) -> str:
        """The value of config.model_type, or the empty string."""
        return str(self.config.get("model_type") or "")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the conversion depends on, in the order of their names."""
        side = [self.path / name for name in SIDE_FILES if (self.path / name).is_file()]
        if self.path / "modules.json" in side:  # of sentence-transformers, with a folder for each module
            side += self.path.glob("[0-9]*_*/config.json")
        side += self.path.glob("additional_chat_templates/*.jinja")
        return tuple(sorted({*side, *(file for tensor in self.tensors.values() for file in tensor.files)}))

    def hashes(self, progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """Return file name → sha256 of every source file; PROGRESS gets bytes done and in all."""
        total = sum(path.stat().st_size for path in self.files)
        done, result = 0, {}
        for path in self.files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, total)
            inside = path.is_relative_to(self.path)
            result[path.relative_to(self.path).as_posix() if inside else path.name] = digest.hexdigest()
        return result


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the Hugging Face folder PATH, reading headers only.

    Raises BrokenCheckpoint when something is missing or damaged, UnsupportedModel when the weights are in a format not read here.
    """
    if not path.is_dir():
        hint = "name the folder that holds config.json and the .safetensors files"
        if path.exists():
            raise UnsupportedModel(f"{str(path)!r} is a file, and a model folder is needed", hint=hint)
        raise BrokenCheckpoint(f"there is no folder {str(path)!r}", hint=hint)
    config = read_json(path / "config.json")
    if config is None:
        raise BrokenCheckpoint(
            f"{str(path)!r} has no config.json", hint="a Hugging Face model folder has one beside its weights"
        )
    template = path / "chat_template.jinja"
    return Checkpoint(
        path=path,
        config=config,
        tensors=find_tensors(path),
        generation_config=read_json(path / "generation_config.json") or {},
        tokenizer_config=read_json(path / "tokenizer_config.json") or {},
        special_tokens=read_json(path / "special_tokens_map.json") or {},
        tokenizer_json=read_text(path / "tokenizer.json") if (path / "tokenizer.json").exists() else None,
        chat_template_file=read_text(template) if template.exists() else None,
    )


def read_text(path: Path) -> str:
    """Return the text of PATH, which must be UTF-8 and not absurdly large."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BrokenCheckpoint(f"{str(path)!r} has {path.stat().st_size} bytes, which cannot be right")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenCheckpoint(f"{str(path)!r} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise BrokenCheckpoint(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in PATH, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        value = json.loads(read_text(path))
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text, and no file can hold it
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{str(path)!r} is not valid JSON: {error}", hint="copy or download it again") from error
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{str(path)!r} holds {type(value).__name__}, and a JSON object is needed")
    return value


def find_tensors(path: Path) -> Mapping[str, Source]:
    """Return every tensor of the folder; the single file comes before the index and safetensors before .bin, as in transformers."""
    from converters.pickled import pickled_tensors

    if (path / SINGLE).exists():
        return shard_tensors(path / SINGLE)
    if (path / INDEX).exists():
        return indexed_tensors(path, INDEX, shard_tensors)
    if (path / BIN_SINGLE).exists():
        return pickled_tensors(path / BIN_SINGLE)
    if (path / BIN_INDEX).exists():
        return indexed_tensors(path, BIN_INDEX, pickled_tensors)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        raise BrokenCheckpoint(
            f"{str(path)!r} has its weights in {found[0].name!r}, and transformers reads no other name than {SINGLE}",
            hint=f"rename it: mv {shlex.quote(str(found[0]))} {shlex.quote(str(path / SINGLE))}",
        )
    if found:
        raise BrokenCheckpoint(
            f"{str(path)!r} has {len(found)} .safetensors files and no {INDEX}", hint="copy the index of the shards too"
        )
    other = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.h5")])
    if other:
        raise UnsupportedModel(
            f"{str(path)!r} has no {SINGLE}, no {BIN_SINGLE} and no index of either; {other[0].name!r} is not read",
            hint="load it with transformers and call save_pretrained(folder): that writes .safetensors",
        )
    raise BrokenCheckpoint(f"{str(path)!r} has no weights: no {SINGLE} and no {INDEX}")


def indexed_tensors(path: Path, index: str, read: Callable[[Path], Mapping[str, Source]]) -> dict[str, Source]:
    """Return the tensors of all shards, after checking the file INDEX and the shards against each other; READ opens a shard."""
    weight_map = (read_json(path / index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenCheckpoint(f"{str(path / index)!r} has no weight_map")
    shards: dict[str, Mapping[str, Source]] = {}
    for name in sorted({str(value) for value in weight_map.values()}):
        if os.path.basename(name) != name or name in {"", ".", ".."} or "\\" in name:  # noqa: PTH119 - on any system
            raise BrokenCheckpoint(f"{index} names the shard {name!r}, which is not a plain file name")
        if not os.path.isfile(path / name):  # noqa: PTH113 - Path.is_file() fails for a name that is too long
            raise BrokenCheckpoint(
                f"{index} names the shard {name[:200]!r}, and it is not in {str(path)!r}",
                hint="copy or download it again",
            )
        shards[name] = read(path / name)
    listed = {(str(tensor), str(shard)) for tensor, shard in weight_map.items()}
    present = {(tensor, shard) for shard, tensors in shards.items() for tensor in tensors}
    if missing := sorted(listed - present):
        raise BrokenCheckpoint(f"tensors of {index} are not in their shards: {some(missing)}")
    if extra := sorted(present - listed):
        raise BrokenCheckpoint(f"shards hold tensors that {index} does not list there: {some(extra)}")
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


def some(items: list[tuple[str, str]]) -> str:
    """Return the first few (tensor, shard) pairs as text."""
    shown = ", ".join(f"{name!r} in {shard!r}" for name, shard in items[:4])
    return shown + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def check_download(path: Path) -> None:
    """Raise BrokenCheckpoint for what is often found in place of weights: a pointer of git-lfs, or a web page."""
    head = read_at(path, 0, 64).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise BrokenCheckpoint(
            f"{str(path)!r} is a git-lfs pointer, not the weights",
            hint="run `git lfs pull` in the repository it came from",
        )
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BrokenCheckpoint(
            f"{str(path)!r} is a web page, saved in place of the weights", hint="use the link of the file itself"
        )


def shard_tensors(path: Path) -> dict[str, SourceTensor]:
    """Return the tensors in one safetensors file, whose header the safetensors library has checked."""
    from safetensors import SafetensorError, safe_open

    hint = "copy or download it again"
    if not path.is_file():
        raise BrokenCheckpoint(f"{str(path)!r} is not a file", hint=hint)
    check_download(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
        size = int.from_bytes(read_at(path, 0, 8), "little")
        header = json.loads(read_at(path, 8, size))
    except (SafetensorError, OSError, ValueError) as error:
        raise BrokenCheckpoint(f"{str(path)!r} is not a whole safetensors file: {error}", hint=hint) from error
    header.pop("__metadata__", None)
    return {
        name: SourceTensor(
            name=name,
            shape=tuple(int(dim) for dim in facts["shape"]),
            dtype=str(facts["dtype"]),
            file=path,
            start=8 + size + int(facts["data_offsets"][0]),
        )
        for name, facts in header.items()
    }
