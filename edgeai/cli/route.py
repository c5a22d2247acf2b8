"""`edgeai route`: who would answer a text, and why; nothing is asked, loaded or written down."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgeai.cli.output import Output, is_terminal, output_options
from edgeai.cli.replaying import replay_options, show_replay
from edgeai.cli.run import check_text
from edgeai.cli.show import printable
from edgeai.config import POLICIES
from edgeai.errors import UsageError

__all__ = ["route_command"]

READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
ROLES = ("system", "user", "assistant", "tool")


class TextOrVerb(click.Group):
    """A command with a text, whose first word may be a subcommand instead; `--` before it makes it a text again."""

    allow_interspersed_args = True

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "calibrate"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "calibrate":
            return super().get_command(ctx, cmd_name)
        command = importlib.import_module("edgeai.cli.calibrate").calibrate_command
        assert isinstance(command, click.Command)  # noqa: S101 - a wrong name is a bug here, not input
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.list_commands(ctx):
            ctx.invoked_subcommand, ctx.args = args[0], list(args[1:])
            return ctx.args
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.invoked_subcommand is None:
            return click.Command.invoke(self, ctx)
        command = self.get_command(ctx, ctx.invoked_subcommand)
        assert command is not None  # noqa: S101 - it is in the list of commands
        name = f"{ctx.info_name} {ctx.invoked_subcommand}"  # with this as its parent its usage would have a [TEXT]
        with command.make_context(name, ctx.args, parent=ctx.parent) as inner:
            return inner.command.invoke(inner)


@click.group("route", cls=TextOrVerb, no_args_is_help=False, short_help="Say who would answer, and why.")
@click.argument("texts", metavar="[TEXT]", nargs=-1)
@click.option("--explain", is_flag=True, help="Say what was found, who may answer, and who may not and why.")
@click.option("--policy", type=click.Choice(POLICIES), help="Decide by this policy.")
@click.option(
    "--file", "file", type=READABLE, help='Decide for each line of a JSONL file: {"text": …} or {"messages": […]}.'
)
@click.option("--private", is_flag=True, help="Mark the text as private: it stays on this machine.")
@click.option("--redact/--no-redact", default=None, help="Let placeholders stand for what is private in what leaves.")
@click.option(
    "-m",
    "--model",
    "scope",
    default="auto",
    metavar="ROUTE",
    help="auto, auto:private, auto:quality, local/MODEL, cloud/NAME.",
)
@click.option("-s", "--system", help="System message.")
@click.option("--attach", "files", multiple=True, type=READABLE, help="A text file that goes along; may be repeated.")
@output_options
def route_command(
    texts: tuple[str, ...],
    explain: bool,
    policy: str | None,
    file: Path | None,
    private: bool,
    redact: bool | None,
    scope: str,
    system: str | None,
    files: tuple[Path, ...],
    out: Output,
) -> None:
    """Say who would answer TEXT, and why. No model is loaded, no connection opened, nothing written down.

    Piped text is taken where there is no TEXT. A TEXT that is the name of a subcommand goes after --.
    """
    from edgeai.config import read_config
    from edgeai.routing.router import plan

    if len(texts) > 1:
        raise UsageError(
            f"there are {len(texts)} texts, {texts[0]!r:.40} and {texts[1]!r:.40}",
            hint="put a text of several words in quotes",
        )
    if file is not None and texts:
        raise UsageError("a text and --file exclude each other", hint="leave one of them out")
    prompts = list(prompts_in(file)) if file is not None else [messages_of(given_text(texts))]
    options: dict[str, Any] = {
        "config": read_config(), "scope": scope, "policy": policy, "private": private, "redact": redact, "files": files,
    }  # fmt: skip
    for prompt in prompts:
        planned = plan(with_system(prompt, system), **options)
        if file is not None:
            out.answer(json.dumps(planned.to_dict(), ensure_ascii=False))  # a line each, on a terminal too
        elif out.as_json:
            out.json(planned.to_dict())
        else:
            for line in planned.lines() if explain else [planned.line()]:
                out.answer(printable(line))


def given_text(texts: tuple[str, ...]) -> str:
    """Return the text of the command line, else what is piped in. Raises UsageError where there is none."""
    text = texts[0] if texts else ""
    if not texts and sys.stdin is not None and not is_terminal(sys.stdin):
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UsageError(
                "what is piped in is not UTF-8 text", hint=f"byte {error.start}: {error.reason}"
            ) from error
    if not text.strip():
        raise UsageError("there is no text", hint='edgeai route "TEXT"')
    return check_text(text, "the text")


def messages_of(text: str) -> list[dict[str, Any]]:
    """Return TEXT as a conversation of one turn."""
    return [{"role": "user", "content": text}]


def with_system(prompt: Any, system: str | None) -> Any:
    """Return the messages PROMPT with a system message before them."""
    if system is None:
        return prompt
    return [{"role": "system", "content": check_text(system, "the system message")}, *prompt]


def prompts_in(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the conversation of each line of FILE. Raises UsageError for the first line that has none, with its number."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"{str(file)!r} cannot be read: {why}", hint="name a file with a JSON object on each line"
        ) from error
    if not text.strip():
        raise UsageError(f"{str(file)!r} is empty", hint="name a file with a JSON object on each line")
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may have U+2028 in a text
        if line.strip():
            yield prompt_of(line, f"line {number} of {str(file)!r}")


def prompt_of(line: str, where: str) -> list[dict[str, Any]]:
    """Return the conversation in a LINE of JSON. Raises UsageError."""
    hint = 'write {"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", hint=hint) from error
    if not isinstance(found, dict) or ("text" in found) == ("messages" in found):
        raise UsageError(f"{where} has neither a text nor messages, or both", hint=hint)
    if "text" in found:
        if not isinstance(found["text"], str):
            raise UsageError(f"{where}: the text {found['text']!r:.40} is none", hint=hint)
        return messages_of(check_text(found["text"], where))
    messages = found["messages"]
    if not isinstance(messages, list) or not messages or not all(is_message(item) for item in messages):
        raise UsageError(f"{where}: the messages are not a list of roles with contents", hint=hint)
    return messages


def is_message(item: Any) -> bool:
    """Whether ITEM is a turn of a conversation: a role, and a text unless it calls tools."""
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        return False
    return isinstance(item.get("content"), str) or (item.get("content") is None and bool(item.get("tool_calls")))


@route_command.command("replay", short_help="Decide logged requests again under other settings.")
@click.argument("file", type=READABLE)
@replay_options
@output_options
def replay_command(file: Path, policy: str | None, config: Path | None, out: Output) -> None:
    """Say what another policy or configuration would have changed for the requests in FILE, made by `edgeai logs --json`.

    FILE is a JSON array, or has one request on each line.
    """
    show_replay(logged(file), policy, config, out)


def logged(file: Path) -> list[dict[str, Any]]:
    """Return the requests in FILE. Raises UsageError for what is none."""
    hint = "edgeai logs --json > FILE makes one"
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = (
            json.loads(text)
            if re.match(r"\s*\[", text)
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{str(file)!r} is no export of the ledger: {error}", hint=hint) from error
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict) or not isinstance(value.get("seq"), int):
            raise UsageError(f"item {number} of {str(file)!r} is no request of the ledger", hint=hint)
    return values
