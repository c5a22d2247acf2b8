"""Does the native library survive this model file? Asked of a child process, once for each file and library.

The header is checked in Python before native code sees it, and yet libllama answers some values that only it understands
with an abort: no layers, an unknown rope type, two tokens with one text. An application must not die of a file.

Run as `python -m edgeai.vetting PATH 1|0` the module is the child: it loads the file with (1) or without (0) extra buffer
types, tokenizes a few words and decodes them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from edgeai import native
from edgeai.childprocess import CRASHES, ending, read_memo, run_module, write_memo
from edgeai.errors import EngineCrashed, InvalidModel

__all__ = ["is_vetted", "remember", "vet"]

MEMO = "vetted.json"
REMEMBERED = 500
"""Files of which it is known that they are harmless; the oldest are forgotten first."""
BASE_TIMEOUT_S = 120.0
SLOWEST_READ = 20_000_000  # bytes per second: a slow disk, so that a large file is given its time


def vet(path: Path, cache_dir: Path, *, extra_bufts: bool) -> None:
    """Raise InvalidModel when loading PATH kills the native library, EngineCrashed when its child ends in another odd way."""
    if is_vetted(path, cache_dir, extra_bufts=extra_bufts):
        return
    timeout_s = BASE_TIMEOUT_S + path.stat().st_size / SLOWEST_READ
    child = run_module("edgeai.vetting", os.fspath(path.absolute()), "1" if extra_bufts else "0", timeout_s=timeout_s)
    if child.returncode == 0:
        remember(path, cache_dir, extra_bufts=extra_bufts)
        return
    said = [line.strip() for line in child.stderr.splitlines() if "ASSERT" in line or "error" in line]
    reason = f": {said[0]}" if said else ""
    if -child.returncode in CRASHES:
        raise InvalidModel(
            f"{str(path)!r} kills the native library: it {ending(child)} in a child process{reason}",
            hint="the file is damaged, or made to do so; pull or convert it again",
        )
    raise EngineCrashed(
        f"trying {str(path)!r} in a child process failed: it {ending(child)}{reason}", hint="edgeai doctor"
    )


def is_vetted(path: Path, cache_dir: Path, *, extra_bufts: bool) -> bool:
    """Return whether it is known that the native library survives PATH."""
    return _key(path, extra_bufts) in read_memo(cache_dir / MEMO)


def remember(path: Path, cache_dir: Path, *, extra_bufts: bool) -> None:
    """Note that the native library has loaded PATH and decoded with it, and lives."""
    memo = cache_dir / MEMO
    kept = dict(list(read_memo(memo).items())[-REMEMBERED + 1 :])
    write_memo(memo, {**kept, _key(path, extra_bufts): True})


def _key(path: Path, extra_bufts: bool) -> str:
    file = path.stat()
    library = max(entry.stat().st_mtime_ns for entry in native.library_dir().iterdir())
    return f"{path.absolute()} {file.st_size} {file.st_mtime_ns} {file.st_ino} {library} {extra_bufts:d}"


def _child(path: str, extra_bufts: bool) -> None:
    """Load PATH and decode a few tokens. What the library refuses in order is not a crash: the parent will say it better."""
    lib = native.library()
    params = lib.llama_model_default_params()
    params.use_extra_bufts, params.n_gpu_layers = extra_bufts, 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return
    vocab = lib.llama_model_get_vocab(model)
    ids = (ctypes.c_int32 * 32)()
    text = b"Hello, world 1"
    count = lib.llama_tokenize(vocab, text, len(text), ids, 32, True, True)
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = 64
    context = lib.llama_init_from_model(model, options)
    if context:
        lib.llama_decode(context, lib.llama_batch_get_one(ids, max(1, count)))
        lib.llama_synchronize(context)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2] == "1")
