"""Regular expressions that a user wrote, searched so that none can hang: what may take long runs in a child process that is ended in time.

Python's engine holds its lock while it searches, so no thread can stop it. A pattern without long repetitions is bounded by itself and
searched here; any other goes to the child, which costs its start once and less than a millisecond a text.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeai.errors import UsageError

__all__ = ["PatternSearch", "is_bounded"]

MOST_WAYS = 1024
"""A pattern whose repetitions and choices can be combined in so many ways at most is tried in all of them at any character."""
MOST_SPANS = 1000
REPEAT = re.compile(r"[*+]|\{(\d*)(,?)(\d*)\}")


class PatternSearch:
    """The PATTERNS of a configuration. Raises UsageError for one that is no regular expression."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._quick: list[re.Pattern[str]] = []
        slow: list[str] = []
        for pattern in patterns:
            try:
                compiled = re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise UsageError(
                    f"privacy.patterns {pattern!r} is no regular expression: {error}",
                    hint="write it as Python's re has it",
                ) from error
            if is_bounded(pattern):
                self._quick.append(compiled)
            else:
                slow.append(pattern)
        self._child = _Child(slow) if slow else None

    def close(self) -> None:
        """End the child process, if there is one."""
        if self._child is not None:
            self._child.close()

    def spans(self, text: str, *, timeout_s: float) -> list[tuple[int, int]]:
        """Return where the patterns fit in TEXT, at most a thousand places. Raises TimeoutError, and OSError where the child fails."""
        found: list[tuple[int, int]] = []
        for pattern in self._quick:
            for match in pattern.finditer(text):
                found.append(match.span())
                if len(found) >= MOST_SPANS:
                    return found
        if self._child is not None:
            found += self._child.spans(text, timeout_s=timeout_s)
        return sorted(found)


def is_bounded(pattern: str) -> bool:
    """Whether PATTERN surely takes a bounded time at each character: no long repetition, none of a group, few choices."""
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    if "(?P=" in plain or re.search(r"\\[1-9]", pattern):
        return False
    ways: int = 1 << min(plain.count("|") + plain.count("?"), 64)
    for match in REPEAT.finditer(plain):
        most = match[3] if match[2] else match[1]
        if match[0] in "*+" or not most or plain[: match.start()].endswith(")"):
            return False
        ways *= max(int(most), 1)
        if ways > MOST_WAYS:
            return False
    return ways <= MOST_WAYS


class _Child:
    """A process that searches PATTERNS in the texts that it is given, one at a time; ended when it takes too long, and begun again."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = list(patterns)
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._finish: weakref.finalize[..., _Child] | None = None

    def spans(self, text: str, *, timeout_s: float) -> list[tuple[int, int]]:
        ends = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=max(timeout_s, 0.0)):
            raise TimeoutError("the patterns were busy with another text")
        done = False
        try:
            process = self._started()
            threading.Thread(target=_send, args=(process, text), daemon=True).start()
            answer = self._answers.get(timeout=max(0.0, ends - time.monotonic()))
            spans = [(start, end) for start, end in json.loads(answer)] if answer else _ended()
            done = True
        except queue.Empty:
            raise TimeoutError("the patterns took too long") from None
        finally:
            if not done:
                self._end()
            self._lock.release()
        return spans

    def close(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("pattern_child.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="surrogatepass",
        )  # fmt: skip
        self._process, self._answers = process, queue.SimpleQueue()
        self._finish = weakref.finalize(self, _stop, process)
        _send(process, self._patterns)
        threading.Thread(target=_read, args=(process, self._answers), daemon=True).start()
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._finish is not None:
            self._finish()


def _ended() -> list[tuple[int, int]]:
    raise OSError("the process of the patterns ended")


def _send(process: subprocess.Popen[str], value: Any) -> None:
    try:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.write(json.dumps(value) + "\n")
        process.stdin.flush()
    except (OSError, ValueError):
        return  # it was ended meanwhile; whoever waits for its answer is told by the end of its output


def _read(process: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    try:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            answers.put(line)
    except (OSError, ValueError):
        pass  # closed by _end
    answers.put("")


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        _close(pipe)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except (OSError, ValueError):
        return  # what could not be written any more was for a process that is gone
