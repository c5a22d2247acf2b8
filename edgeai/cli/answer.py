"""Print an answer as it comes, keep what came when the user stops it, and say how long it took."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from edgeai.cli.output import Output, check_stdout, is_terminal
from edgeai.errors import Interrupted
from edgeai.interrupts import raise_ctrl_c
from edgeai.model import Model, Stream
from edgeai.transcript import check_whole
from edgeai.types import Completion, GenerationConfig, Notice, Prompt

__all__ = ["answer_once", "print_stream", "say_route", "timing_lines"]


DRIVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What would drive a terminal rather than be read on it: control characters but tab and new line, and changes of direction."""


def answer_once(model: Model, prompt: Prompt, config: GenerationConfig, out: Output) -> None:
    """Print one answer, or one JSON object. What came is printed first where this raises Interrupted (Ctrl-C) or IncompleteOutput."""
    with model.stream_config(prompt, config) as stream:
        done = print_stream(stream, out, show=not out.as_json)
    if out.as_json:
        earlier = tuple(notice for notice in out.warned if notice not in done.warnings)
        out.json(replace(done, warnings=(*earlier, *done.warnings)).to_dict())
    report(done, config, out)
    if done.finish_reason == "cancelled":
        raise Interrupted
    check_whole(done, config.constraint)


def print_stream(stream: Stream, out: Output, *, show: bool) -> Completion:
    """Read STREAM to its end, printing each piece at once; Ctrl-C cancels it and keeps what came.

    A warning that comes before the answer (of a prompt that was cut) is given before it; later ones are for `report`.
    """
    last, on_terminal = "", is_terminal(sys.stdout)
    if show:
        check_stdout()
    with ctrl_c_calls(stream.cancel):
        for chunk in stream:
            if not last and chunk.finish_reason is None:
                out.warn(chunk.notices)
            if show and chunk.text:
                last = chunk.text
                shown = DRIVING.sub("", chunk.text) if on_terminal else chunk.text
                click.echo(shown, nl=False, color=True)  # color: else click takes escape sequences out
    if show and not last.endswith("\n"):
        click.echo()
    return stream.completion()


@contextlib.contextmanager
def ctrl_c_calls(action: Callable[[], None]) -> Iterator[None]:
    """Make the first Ctrl-C call ACTION instead of raising in the middle of something; the second one raises."""

    def first(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, raise_ctrl_c)
        action()

    previous = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def report(done: Completion, config: GenerationConfig, out: Output) -> None:
    """Say on stderr what the answer does not show: warnings, that it was cut, and with --verbose the timings."""
    said_otherwise = ("incomplete-output", "stream_interrupted")  # they are errors
    out.warn(notice for notice in done.warnings if notice not in out.warned and notice.code not in said_otherwise)
    if done.tool_calls and not out.as_json:
        names = ", ".join(call.name for call in done.tool_calls)
        out.warn(
            [Notice(code="tool-calls", message=f"{done.model} wants tools to be called, which --json shows: {names}")]
        )
    if done.finish_reason == "length" and done.usage.completion_tokens == config.max_tokens and not out.as_json:
        out.note(f"[cut after {config.max_tokens} tokens: --max-tokens]")
    if done.finish_reason == "timeout" and not out.as_json:
        out.note(f"[cut after {config.max_seconds:g} s: --max-seconds]")
    if done.route is not None and not out.as_json:
        say_route(done.route, out)
    if out.verbose:
        for line in timing_lines(done):
            out.note(line)


def say_route(route: Mapping[str, Any], out: Output) -> None:
    """Say on stderr who answered, why, and what left this machine."""
    from edgeai.cli.routing import route_line, route_lines

    for line in route_lines(route) if out.explain else [route_line(route)]:
        out.note(line if out.explain else f"[{line}]")


def timing_lines(done: Completion) -> list[str]:
    """Return the timings in the shape that `ollama run --verbose` made usual."""
    times, usage = done.timings, done.usage
    parts = {"cached": usage.cached_tokens, "cut off before": usage.truncated_tokens}
    of_prompt = "".join(f", {count} {name}" for name, count in parts.items() if count)
    rows = [
        ("total duration", f"{times.total_s:.3f} s"),
        ("load duration", f"{times.load_s:.3f} s"),
        ("time to first token", "-" if times.ttft_s is None else f"{times.ttft_s:.3f} s"),
        ("prompt eval count", f"{usage.prompt_tokens} tokens{of_prompt}"),
        ("prompt eval rate", "-" if times.prompt_tok_s is None else f"{times.prompt_tok_s:.1f} tok/s"),
        ("eval count", f"{usage.completion_tokens} tokens"),
        ("eval rate", "-" if times.gen_tok_s is None else f"{times.gen_tok_s:.1f} tok/s"),
    ]
    if times.drafted:
        rows.append(("guesses right", f"{times.accepted} of {times.drafted} tokens"))
    return [f"{name + ':':<21}{value}" for name, value in rows]
