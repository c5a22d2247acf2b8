"""Work that native code may not survive, done in a child process; and what was learned that way, remembered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["CRASHES", "ending", "environment", "module_command", "read_memo", "run_module", "write_memo"]

CRASHES = {
    getattr(signal, name) for name in ("SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE") if hasattr(signal, name)
}
"""Signals that native code sends itself. Others come from outside and say little about it."""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs MODULE in another process of this Python."""
    # -P: a gguf.py in the current folder must not be taken for the package of that name.
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return the environment of such a process.

    The parent's package may be importable only through sys.path (a frozen or embedded application), so that travels along.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if Path(path).is_absolute())}


def run_module(module: str, *arguments: str, timeout_s: float, gpu: bool = False) -> subprocess.CompletedProcess[str]:
    """Run MODULE in a child process, without a GPU unless GPU is true; one that does not end in time has exit code 1."""
    command, env = module_command(module, *arguments), environment()
    if not gpu:
        env["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {timeout_s:.0f} s")


def ending(child: subprocess.CompletedProcess[str]) -> str:
    """Return in words how CHILD ended."""
    if child.returncode < 0:
        return f"died with {signal.Signals(-child.returncode).name}"
    lines = child.stderr.strip().splitlines()
    return f"ended with exit code {child.returncode}" + (f" ({lines[-1]})" if lines else "")


def read_memo(path: Path) -> dict[str, Any]:
    """Return what was remembered in PATH; nothing when it is missing or damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write_memo(path: Path, known: dict[str, Any]) -> None:
    """Remember KNOWN in PATH; where nothing can be written the next process asks again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known))
        temporary.replace(path)
    except OSError:
        return
