"""The command line: one group, one error boundary; each verb is a file of its own, imported when it is used."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from edgeai import __version__
from edgeai.errors import EdgeAIError, Interrupted, OutputError, UsageError
from edgeai.interrupts import take_ctrl_c

__all__ = ["cli", "main"]

VERBS = (
    "run", "route", "logs", "config", "pull", "list", "show", "rm", "verify", "convert", "prove", "train", "fit", "bench",
    "chaos", "doctor",
)  # fmt: skip
"""In the order of `--help`; the module is `edgeai.cli.<verb>` and holds a command of the same name."""


class Verbs(click.Group):
    """Imports a verb's module when the verb is asked for, and turns errors into text and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"edgeai.cli.{cmd_name}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)  # noqa: S101 - a wrong name is a bug here, not input
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "edgeai"
            show_error(UsageError(error.format_message().rstrip("."), hint=f"{verb} --help"))
            ctx.exit(error.exit_code)
        except EdgeAIError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            show_error(error, self.get_command(ctx, ctx.invoked_subcommand or ""))
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):  # click makes an Abort of a Ctrl-C at a question
            show_error(Interrupted())
            ctx.exit(Interrupted.exit_code)
        except BrokenPipeError:
            # The reader has gone (`edgeai list | head -1`): nothing is wrong, and nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


def show_error(error: EdgeAIError, command: click.Command | None = None) -> None:
    """Print ERROR and its hint, in the words of COMMAND, on stderr; where even that cannot be written, the exit code must do."""
    with contextlib.suppress(OSError):
        _show_error(error, command)


def _show_error(error: EdgeAIError, command: click.Command | None) -> None:
    # Ctrl-C is no error to the one who pressed it.
    click.echo(error.message if isinstance(error, Interrupted) else f"error: {error.message}", err=True)
    if error.hint:
        from edgeai.cli.output import as_options

        hint = error.hint if command is None else as_options(error.hint, command)
        click.echo(f"\nhint: {hint}", err=True)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeai")
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
def cli(debug: bool) -> None:
    """Run small models on this machine; train, convert and prove them.

    \b
    edgeai run smollm2 "Why is the sky blue?"
    edgeai train models/recipes/tiny.toml -o out/tiny
    edgeai convert out/tiny --quant q8_0 -o out/tiny.gguf
    """


def leave(number: int, _frame: object) -> NoReturn:
    """End the program in order on a signal, so that what is half done is removed; the exit code is what a shell expects."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; the entry point of the `edgeai` program."""
    take_ctrl_c()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows \\u…, and no traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(prog_name="edgeai")
    except OSError as error:  # what the system refuses in the middle of printing: a full disk behind stdout
        failed = OutputError(
            f"standard output cannot be written: {error.strerror or error}", hint="free space where it goes"
        )
        show_error(failed)
        sys.stdout = None  # or Python would try to write what is left, and say so
        sys.exit(failed.exit_code)
