"""Thread counts that were measured to be the best here, remembered for the plans of later runs.

They hold for one processor, one number of usable hardware threads, one build of the native library, and one kind of model: how long the
matrix products are beside the barriers between them depends on the size and the type of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeai import native
from edgeai.artifact import Artifact
from edgeai.childprocess import read_memo, write_memo

__all__ = ["Tuned", "kind_of", "read_tuned", "remember"]

MOST = 512  # threads; GGML_MAX_N_THREADS, ggml.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The best thread counts for decoding and for reading prompts."""

    threads: int
    threads_batch: int


def kind_of(artifact: Artifact) -> str:
    """Return what kind of model ARTIFACT is to a tuner: its quant type, and the power of two that its size stays below."""
    megabytes = max(1, -(-artifact.size_bytes // (1 << 20)))
    return f"{artifact.quant} up to {1 << (megabytes - 1).bit_length()} MiB"


def read_tuned(cache_dir: Path, cpu: str, usable: int) -> Mapping[str, Tuned]:
    """Return what was found on this CPU with USABLE hardware threads and the installed library, by kind of model."""
    known = read_memo(_file(cache_dir))
    if not known:  # most machines: nothing was tuned, and the library need not be read for its fingerprint
        return {}
    entries = known.get(_key(cpu, usable))
    if not isinstance(entries, dict):
        return {}
    return {kind: Tuned(**entry) for kind, entry in entries.items() if _possible(entry)}


def remember(cache_dir: Path, cpu: str, usable: int, kind: str, tuned: Tuned) -> None:
    """Keep TUNED for models of KIND on this machine."""
    path = _file(cache_dir)
    known, key = read_memo(path), _key(cpu, usable)
    entries = known.get(key)
    write_memo(path, {**known, key: {**(entries if isinstance(entries, dict) else {}), kind: asdict(tuned)}})


def _file(cache_dir: Path) -> Path:
    return cache_dir / "threads.json"


def _key(cpu: str, usable: int) -> str:
    return f"{native.fingerprint()} {cpu} {usable}"


def _possible(entry: object) -> bool:
    names = {"threads", "threads_batch"}
    return (
        isinstance(entry, dict)
        and set(entry) == names
        and all(type(entry[name]) is int and 1 <= entry[name] <= MOST for name in names)
    )
