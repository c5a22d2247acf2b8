"""Run native code in a child process, so that a crash or an abort is an error message and not the end of the program.

The child is a script that imports nothing of this project, run with `-P` so that files in the working folder cannot stand in for
modules. It reads a request and leaves an answer as JSON files in a temporary folder, and prints `i n` lines as its progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converters.errors import EdgeAIError
from converters.scratch import Scratch

__all__ = ["Child", "ChildDied", "ChildFailed", "run_native"]

NATIVE = Path(__file__).with_name("native_child.py")
LOG_LINES = 6
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait do not spin: on cores that others use too, libggml's took 2.5 times as long when they did, and torch's ten times."""


class ChildDied(EdgeAIError):
    """Native code died: killed by a signal, or gone without an answer."""

    exit_code = 7


class ChildFailed(EdgeAIError):
    """The child gave a reason why it could not do its work; `reason` and `log` hold its own words."""

    exit_code = 7

    def __init__(self, message: str, *, reason: str, log: list[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.log = log


class Child:
    """A running child; leaving the `with` block kills it, finished or not, and removes its files."""

    def __init__(
        self,
        script: Path,
        request: Mapping[str, Any],
        *,
        what: str,
        feed: bool = False,
    ) -> None:
        self.what = what
        self.folder = Scratch()
        self.path = Path(self.folder.name)
        self.process: subprocess.Popen[bytes] | None = None
        (self.path / "request.json").write_text(json.dumps(dict(request)))
        settings = {**PATIENT, **os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONIOENCODING": "utf-8"}
        try:
            with (self.path / "stderr").open("wb") as stderr:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", str(script), str(self.path)],
                    stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=settings,
                )
        except BaseException:
            self.close()
            raise

    def send(self, line: str) -> None:
        """Give a child that is fed one line; one that has died meanwhile says why in `line` or `result`."""
        assert self.process is not None  # noqa: S101 - set by the constructor
        assert self.process.stdin is not None  # noqa: S101 - made with feed=True
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()

    def line(self) -> str:
        """Wait for the next line that the child prints. Raises ChildDied or ChildFailed where it ends instead."""
        assert self.process is not None  # noqa: S101 - set by the constructor
        assert self.process.stdout is not None  # noqa: S101 - asked for by the constructor
        text = self.process.stdout.readline()
        if not text:
            self.result()
            raise ChildDied(f"{self.what}: the child process ended too early", hint=self._hint())
        return text.decode("utf-8", "replace").strip()

    def result(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Wait for the end and return the answer. Raises ChildDied or ChildFailed."""
        assert self.process is not None  # noqa: S101 - set by the constructor
        assert self.process.stdout is not None  # noqa: S101 - asked for above
        for line in self.process.stdout:
            done, _, total = line.decode("utf-8", "replace").partition(" ")
            if progress and done.isdigit() and total.strip().isdigit():
                progress(int(done), int(total))
        code = self.process.wait()
        answer = self.path / "answer.json"
        if code or not answer.exists():
            raise ChildDied(f"{self.what}: {self._ending(code)}", hint=self._hint())
        result: dict[str, Any] = json.loads(answer.read_text())
        if "error" in result:
            log = [str(line) for line in result.get("log", [])]
            raise ChildFailed(
                f"{self.what}: {result['error']}",
                reason=str(result["error"]),
                log=log,
                hint="\n      ".join(log) or None,
            )
        return result

    def _ending(self, code: int) -> str:
        if code < 0:
            names = {item.value: item.name for item in signal.Signals}
            return f"the child process died with {names.get(-code, f'signal {-code}')}"
        return f"the child process ended with exit code {code}"

    def _hint(self) -> str | None:
        lines = (self.path / "stderr").read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
        return "its last words were\n      " + "\n      ".join(lines) if lines else None

    def close(self) -> None:
        """Kill the child if it still runs, and remove its files."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
            if self.process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.close()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_native(
    request: Mapping[str, Any], *, what: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Run one request of `native_child.py` and return its answer."""
    with Child(NATIVE, request, what=what) as child:
        return child.result(progress)
