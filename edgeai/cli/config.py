"""`edgeai config`: the configuration file, what is in effect, and keys in the system's keyring."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from edgeai.cli.output import Output, is_terminal, output_options
from edgeai.cli.report import report_lines
from edgeai.cli.show import printable
from edgeai.errors import UsageError

__all__ = ["config_command"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("config", short_help="Write, show and check the configuration.")
def config_command() -> None:
    """Write, show and check the configuration: who answers, which endpoints there are, what must not leave.

    Each subcommand takes --json.
    """


@config_command.command("init", short_help="Write a commented example.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@output_options
def init_command(force: bool, out: Output) -> None:
    """Write an example with every key, what it is, and its default; it changes nothing until a # is taken away."""
    from edgeai.configfile import write_example

    path = write_example(force=force)
    if out.as_json:
        out.json({"path": str(path)})
    else:
        out.answer(str(path))


@config_command.command("show", short_help="Show the values in effect.")
@output_options
def show_command(out: Output) -> None:
    """Show each value in effect and where it comes from: the default, the file, or the environment. Keys are never shown."""
    from edgeai.configfile import settings_in_effect

    config, settings = settings_in_effect()
    if out.as_json:
        out.json({"sha256": config.sha256, "settings": [asdict(setting) for setting in settings]})
        return
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        value = "-" if setting.value is None else str(setting.value)
        out.answer(printable(f"{setting.name:<{width}}  {value}  ({setting.origin})"))


@config_command.command("path", short_help="Show where the file is.")
@output_options
def path_command(out: Output) -> None:
    """Print the path of the configuration; EDGEAI_CONFIG names another."""
    from edgeai.config import config_path

    path = config_path()
    if out.as_json:
        out.json({"path": str(path), "exists": path.exists()})
        return
    out.answer(str(path))
    if not path.exists():
        out.note("it is not there yet; edgeai config init writes an example")


@config_command.command("check", short_help="Check the file and what it names.")
@click.argument("file", type=FILE, required=False)
@output_options
def check_command(file: Path | None, out: Output) -> None:
    """Read the configuration (FILE) and look whether its endpoints, keys, files and models are there. Opens no connection."""
    from edgeai.config import read_config
    from edgeai.routing.configcheck import check_config

    report = check_config(read_config(file))
    if out.as_json:
        out.json(report.to_dict())
    else:
        for line in report_lines(report):
            out.answer(printable(line))
    if not report.ok:
        raise UsageError(
            f"{', '.join(row.name for row in report.failed)}: not as it should be", hint="edgeai config show"
        )


@config_command.command("set-key", short_help="Put a key into the system's keyring.")
@click.argument("name")
@output_options
def set_key_command(name: str, out: Output) -> None:
    """Ask for a key, hidden, and keep it as NAME in the system's keyring; `api_key = "keyring:NAME"` then refers to it.

    A piped key is read from stdin.
    """
    from edgeai.config import REFERENCE
    from edgeai.routing.configcheck import save_key

    if not REFERENCE.fullmatch(f"keyring:{name}"):
        raise UsageError("that is no name for a key", hint="letters, digits and . _ - : / @ make a name")
    if is_terminal(sys.stdin):
        secret = click.prompt(f"key for {name}", hide_input=True, err=True)
    else:
        secret = sys.stdin.readline() if sys.stdin is not None else ""
    save_key(name, secret)
    if out.as_json:
        out.json({"name": name, "reference": f"keyring:{name}"})
    else:
        out.note(f'kept; write api_key = "keyring:{name}" below [[cloud]]')
