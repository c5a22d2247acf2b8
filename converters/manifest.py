"""Where a file came from: hashes of its source, versions of the tools, and the keys and the passport that say so.

Nothing here holds a time or a path, so that the same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converters.checkpoint import Checkpoint, read_json
from converters.families import ModelPlan

__all__ = ["SourceHashes", "chain", "file_keys", "file_sha256", "model_name", "passport", "size_label", "tools"]

TOOLS = (
    "gguf",
    "llama-cpp-python",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
MAX_NAME_CHARS = 96


class SourceHashes:
    """The hashes of a checkpoint's files, computed in a thread while other work goes on; leaving the `with` block stops it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._stopped = threading.Event()
        self._done = (0, 0)
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(checkpoint.hashes, self._progress)

    def _progress(self, done: int, total: int) -> None:
        if self._stopped.is_set():
            raise CancelledError
        self._done = done, total

    def result(self, progress: Callable[[int, int], None]) -> dict[str, str]:
        """Wait for file name → sha256; PROGRESS gets bytes done and in all."""
        while not wait([self._future], timeout=0.1).done:
            progress(*self._done)
        progress(*self._done)
        return self._future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown()


def chain(hashes: Mapping[str, str]) -> str:
    """Return one sha256 for a source: over its lines `sha256  name`, sorted by name, as sha256sum prints them."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of the file PATH."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_label(parameters: int) -> str:
    """Return a parameter count as model names write it: 3.3M, 135M, 1.2B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return str(parameters)


def model_name(checkpoint: Checkpoint, plan: ModelPlan) -> str:
    """Return a name for the model that comes from its files and not from its place on the disk."""
    lineage = read_json(checkpoint.path / "edgeai.json") or {}
    recipe = lineage.get("recipe")
    for value in (lineage.get("name"), recipe.get("name") if isinstance(recipe, dict) else None):
        if isinstance(value, str) and value.strip():
            return value.strip()[:MAX_NAME_CHARS]
    given = checkpoint.config.get("_name_or_path")
    if isinstance(given, str) and given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return given.rpartition("/")[2][:MAX_NAME_CHARS]
    return f"{plan.architecture} {size_label(plan.parameters)}"


def file_keys(checkpoint: Checkpoint, plan: ModelPlan, quant: str, source_sha256: str, version: str) -> dict[str, str]:
    """Return the keys that say what the file is and what it was made from."""
    return {
        "general.type": "model",
        "general.name": model_name(checkpoint, plan),
        "general.size_label": size_label(plan.parameters),
        "edgeai.version": version,
        "edgeai.quant": quant,
        "edgeai.source.sha256": source_sha256,
    }


def tools() -> dict[str, str]:
    """Return the versions of the packages that took part."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def passport(facts: Mapping[str, Any]) -> bytes:
    """Return the passport file: FACTS as JSON that a person can read; bytes of a file name that are no text become escapes of JSON."""
    return (json.dumps(dict(facts), ensure_ascii=False, indent=2) + "\n").encode("utf-8", "backslashreplace")
