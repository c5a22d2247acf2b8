"""What a command may print: the answer or JSON on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

import click

from edgeai.errors import EdgeAIError, OutputError
from edgeai.types import Notice

__all__ = ["Output", "as_options", "human_bytes", "is_terminal", "output_options"]


class Degraded(EdgeAIError):
    """A warning under --strict."""


@dataclass(slots=True)
class Output:
    """How this invocation talks: `as_json` on stdout, `quiet` or `verbose` on stderr, warnings fatal under `strict`.

    `explain`: all of how an answer was routed, not one line of it.

    `warned` keeps every warning that was given, for the JSON of a command.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    strict: bool = False
    explain: bool = False
    warned: list[Notice] = field(default_factory=list, init=False)
    _bar: ProgressLine | None = field(default=None, init=False)

    def answer(self, text: str) -> None:
        """Print the answer of a command on stdout."""
        self.end_progress()
        check_stdout()
        click.echo(text, color=True)  # without it click takes escape sequences out of piped text

    def json(self, value: Any) -> None:
        """Print VALUE as one JSON document on stdout."""
        self.end_progress()
        check_stdout()
        click.echo(json.dumps(value, ensure_ascii=False, indent=2 if is_terminal(sys.stdout) else None))

    def note(self, text: str) -> None:
        """Print a line for the human on stderr, unless --quiet."""
        if not self.quiet:
            self.end_progress()
            click.echo(text, err=True)

    def warn(self, notices: Iterable[Notice]) -> None:
        """Print each notice on stderr, --quiet or not; under --strict the first one is an error."""
        for notice in notices:
            if self.strict:
                raise Degraded(notice.message, hint=f"this is the warning {notice.code!r}, made an error by --strict")
            self.warned.append(notice)
            self.end_progress()
            click.echo(f"warning: {notice.message}", err=True)

    def progress(self, label: str, done: float, total: float | None, unit: Literal["", "B"] = "") -> None:
        """Show how far LABEL is, on one line of a terminal; without a terminal, one line when it begins."""
        if self.quiet:
            return
        if self._bar is None or self._bar.label != label:
            self.end_progress()
            self._bar = ProgressLine(label, unit)
        self._bar.update(done, total)

    def end_progress(self) -> None:
        """Finish the progress line, so that other text starts on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass(slots=True)
class ProgressLine:
    """One progress bar on stderr, in bytes or in plain counts."""

    label: str
    unit: Literal["", "B"]
    _last: float = field(default=0.0, init=False)
    _bar: Any = field(default=None, init=False)
    _task: Any = field(default=None, init=False)

    def update(self, done: float, total: float | None) -> None:
        """Draw DONE of TOTAL, at most ten times a second."""
        if self._bar is None:
            self._start(total)
        now = time.monotonic()
        if self._task is None or (now - self._last < 0.1 and done != total):
            return
        self._last = now
        self._bar.update(self._task, completed=done, total=total)

    def _start(self, total: float | None) -> None:
        if not is_terminal(sys.stderr):
            click.echo(self.label, err=True)
            self._bar = self.label
            return
        from rich import progress
        from rich.console import Console

        columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}"), progress.BarColumn()]
        if self.unit == "B":
            columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        else:
            columns += [progress.MofNCompleteColumn()]
        columns.append(progress.TimeRemainingColumn())
        self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=False)
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=total)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._task is not None:
            self._bar.refresh()
            self._bar.stop()


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, --quiet, --verbose and --strict, and pass the command one `out: Output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="More on stderr: how it runs, how long it takes.")
    @click.option("--strict", is_flag=True, help="Make every warning an error.")
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: bool, strict: bool, **kwargs: Any) -> Any:
        out = Output(as_json=as_json, quiet=quiet, verbose=verbose, strict=strict)
        try:
            return command(*args, out=out, **kwargs)
        finally:
            out.end_progress()

    return wrapped


def check_stdout() -> None:
    """Raise OutputError where there is no standard output (`>&-`): an answer would be lost without a word."""
    if sys.stdout is None:
        raise OutputError("standard output is closed", hint="send it to a file or a pipe, or to /dev/null")


def as_options(text: str, command: click.Command) -> str:
    """Return TEXT with the options in backticks as COMMAND has them: `kv_type=q8_0` is --kv-type q8_0. Others stay as they are."""
    names = {param.name: param.opts[0] for param in command.params if isinstance(param, click.Option)}

    def shown(match: re.Match[str]) -> str:
        if match[1] not in names:
            return match[0]
        return names[match[1]] + (f" {match[2]}" if match[2] else "")

    return re.sub(r"`(\w+)(?:=([^`]*))?`", shown, text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether STREAM is a terminal; a closed one (`2>&-`) is None in Python."""
    return stream is not None and stream.isatty()


def human_bytes(count: float) -> str:
    """Return COUNT bytes in decimal units, as disks and model hubs do: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
