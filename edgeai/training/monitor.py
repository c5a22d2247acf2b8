"""What a run says while it runs: an event for each step, and one line of metrics.jsonl for each logged step."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeai.training.workspace import disk_errors, write_whole
from edgeai.types import Notice

__all__ = ["Event", "Meter", "Metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to tell: a line of text and the notices before the first step, or the state after a step.

    What is counted are tokens, or rows where there is a `row_s`; `score` is the name and the value of what is
    measured on the held-out part beside its loss.
    """

    text: str | None = None
    notices: tuple[Notice, ...] = ()
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    lr: float = 0.0
    grad_norm: float = 0.0
    tok_s: float = 0.0
    row_s: float | None = None
    eval_loss: float | None = None
    score: tuple[str, float] | None = None
    eta_s: float = 0.0


class Meter:
    """Counts tokens over the time spent in training steps; evaluation and checkpoints are not in it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self._step_began = self._began
        self.tokens = 0
        self.step_s = 0.0
        self.steps = 0

    def start(self) -> None:
        """Begin a step."""
        self._step_began = self._clock()

    def stop(self, tokens: int) -> None:
        """End the step that began last; it took TOKENS tokens."""
        self.step_s += self._clock() - self._step_began
        self.tokens += tokens
        self.steps += 1

    @property
    def tok_s(self) -> float:
        """Trained tokens per second of training steps."""
        return self.tokens / self.step_s if self.step_s > 0 else 0.0

    def eta_s(self, steps_left: int) -> float:
        """Seconds until the end, at the pace so far with everything in it."""
        return (self._clock() - self._began) / self.steps * steps_left if self.steps else 0.0


class Metrics:
    """The file metrics.jsonl: one line for each logged step, and no step twice, however often a run was resumed."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open PATH; lines of steps beyond AFTER_STEP are of work that was lost, and go."""
        kept = [line for line in _lines(path) if _step(line) <= after_step]
        write_whole(path, lambda fresh: fresh.write_bytes("".join(kept).encode()))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Append EVENT."""
        values: dict[str, Any] = asdict(event)
        for key in ("text", "notices", "steps", "eta_s", "score", "row_s" if event.row_s is None else "tok_s"):
            del values[key]
        if event.score is not None:
            values[event.score[0]] = event.score[1]
        with disk_errors(self._path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. What a full disk did not take was told when it was written, and is not to hide that error."""
        with contextlib.suppress(OSError):
            self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """Return the step of a metrics line; one that was cut off by a crash counts as lost."""
    try:
        step = json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
    return float(step)
