"""The conversation on a terminal: history, slash-commands, several-line input, Ctrl-C that stops the answer only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeai.cli.answer import print_stream, say_route, timing_lines
from edgeai.cli.output import Output
from edgeai.errors import ContextExceeded, EdgeAIError, NoChatTemplate, UsageError
from edgeai.model import Model
from edgeai.types import GenerationConfig, Message

__all__ = ["Chat"]

HELP = """\
/set NAME VALUE   change a sampling parameter; /set alone shows them
/system TEXT      set the system message; /system alone shows it
/clear            forget the conversation
/save FILE        write the conversation to FILE
/load FILE        read a conversation from FILE
/bye              leave (Ctrl-D does, too)
\"\"\"               begin and end a message of several lines
Ctrl-C            stop the answer"""

NAMES = {"temp": "temperature", "n": "max_tokens"}

PARAMETERS: dict[str, Callable[[str], Any]] = {
    "max_tokens": int, "max_seconds": float, "overflow": str, "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repeat_penalty": float, "seed": int, "stop": lambda value: (value.strip('"'),) if value else (),
}  # fmt: skip
"""What /set changes, and how its value is read."""


class Chat:
    """A conversation with a model. `messages` is the history, without the system message."""

    def __init__(self, model: Model, config: GenerationConfig, system: str | None, out: Output) -> None:
        if model.artifact.template is None:
            raise NoChatTemplate(
                f"{model.artifact.name} has no chat template: it is a base model and cannot chat",
                hint='give it a text to complete: edgeai run MODEL "TEXT"',
            )
        self.model, self.config, self.system, self.out = model, config, system, out
        self.messages: list[Message] = []
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.say(HELP),
            "/?": lambda _: self.say(HELP),
            "/set": self.set,
            "/system": self.set_system,
            "/clear": self.clear,
            "/save": self.save,
            "/load": self.load,
        }

    def loop(self) -> None:
        """Read, answer, repeat, until /bye or Ctrl-D."""
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        self.say("/help for commands, /bye to leave")
        while True:
            try:
                text = self.read()
            except EOFError:
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                self.say("\n/bye or Ctrl-D to leave")
                continue
            if text == "/bye":
                return
            if text:
                self.react(text)

    def read(self) -> str:
        """Return one message: a line, or the lines between two triple quotes."""
        line = input(">>> ").strip()
        if not line.startswith('"""'):
            return line
        lines, rest = [], line[3:]
        while not rest.rstrip().endswith('"""'):
            lines.append(rest)
            rest = input("... ")
        lines.append(rest.rstrip()[:-3])
        return "\n".join(lines).strip()

    def react(self, text: str) -> None:
        """Do a command or answer a message; an error is shown and the conversation goes on."""
        try:
            if text.startswith("/"):
                name, _, rest = text.partition(" ")
                if name not in self.commands:
                    raise UsageError(f"there is no command {name!r}", hint="/help lists the commands")
                self.commands[name](rest.strip())
            else:
                self.answer(text)
        except ContextExceeded as error:
            self.say(
                f"error: {error.message}\nhint: /clear forgets the conversation so far,"
                " /set overflow rolling leaves out its oldest messages"
            )
        except EdgeAIError as error:
            self.say(f"error: {error.message}")
            if error.hint:
                self.say(f"hint: {error.hint}")
        except KeyboardInterrupt:  # before the answer began, or a second one
            self.say("interrupted")

    def answer(self, text: str) -> None:
        """Answer TEXT and keep both in the history; a stopped answer is kept as far as it came."""
        turn: Message = {"role": "user", "content": text}
        prompt: list[Message] = [*self.head(), *self.messages, turn]
        with self.model.stream_config(prompt, self.config) as stream:
            before = len(self.out.warned)
            done = print_stream(stream, self.out, show=True)
        self.messages += [turn, {"role": "assistant", "content": done.text}]
        said = {*self.model.notices, *self.out.warned[before:]}
        self.out.warn(notice for notice in done.warnings if notice not in said)
        if done.finish_reason in {"length", "timeout"}:
            self.say(f"[cut after {done.usage.completion_tokens} tokens, {done.timings.total_s:.1f} s]")
        if done.route is not None:
            say_route(done.route, self.out)
        if self.out.verbose:
            self.say("\n".join(timing_lines(done)))

    def head(self) -> list[Message]:
        """Return the system message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def say(self, text: str) -> None:
        """Print TEXT for the human; the answers alone go to stdout."""
        click.echo(text, err=True)

    # ---- commands

    def set(self, rest: str) -> None:
        """Change one sampling parameter, or show all."""
        if not rest:
            self.say("\n".join(f"{name} = {getattr(self.config, name)!r}" for name in PARAMETERS))
            return
        name, _, value = rest.partition(" ")
        name = NAMES.get(name, name.replace("-", "_"))
        self.config = self.config.with_(**{name: parse_parameter(name, value.strip())})
        self.say(f"{name} = {getattr(self.config, name)!r}")

    def set_system(self, rest: str) -> None:
        """Change or show the system message."""
        if rest:
            self.system = rest.strip('"')
        self.say(f"system = {self.system!r}")

    def clear(self, _: str) -> None:
        """Forget the history; the system message stays."""
        self.messages.clear()
        self.say("the conversation is forgotten")

    def save(self, rest: str) -> None:
        """Write system message and history as JSON, whole or not at all."""
        path = named_file(rest, "/save")
        temporary = path.with_name(f".{path.name}.part")
        try:
            temporary.write_text(
                json.dumps([*self.head(), *self.messages], ensure_ascii=False, indent=1), encoding="utf-8"
            )
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}") from error
        self.say(f"{len(self.messages)} messages saved to {path}")

    def load(self, rest: str) -> None:
        """Replace system message and history by those in a saved file."""
        path = named_file(rest, "/load")
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{str(path)!r} is not a saved conversation: {error}") from error
        messages = check_conversation(loaded, path)
        self.system = next((message["content"] for message in messages if message["role"] == "system"), None)
        self.messages = [message for message in messages if message["role"] != "system"]
        self.say(f"{len(self.messages)} messages loaded from {path}")


def named_file(text: str, command: str) -> Path:
    """Return the path that a command names."""
    if not text:
        raise UsageError(f"{command} needs a file name", hint=f"{command} conversation.json")
    return Path(text).expanduser()


def check_conversation(value: Any, path: Path) -> list[Message]:
    """Return VALUE as messages. Raises UsageError when it is anything else."""
    roles = {"system", "user", "assistant"}
    for item in value if isinstance(value, list) else [None]:
        if not (isinstance(item, dict) and item.get("role") in roles and isinstance(item.get("content"), str)):
            raise UsageError(f"{str(path)!r} is not a saved conversation", hint="it must be a list of {role, content}")
    return [{"role": item["role"], "content": item["content"]} for item in value]


def parse_parameter(name: str, text: str) -> Any:
    """Return the value TEXT of the sampling parameter NAME. Raises UsageError for an unknown name or a wrong type."""
    if name not in PARAMETERS:
        raise UsageError(f"there is no parameter {name!r}", hint=f"parameters are {', '.join(PARAMETERS)}")
    if name in {"seed", "max_tokens", "max_seconds"} and text.lower() == "none":
        return None
    try:
        return PARAMETERS[name](text)
    except ValueError as error:
        raise UsageError(f"{name} cannot be {text!r}", hint="/set shows the parameters") from error
