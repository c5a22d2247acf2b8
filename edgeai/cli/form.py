"""The options that give an answer a form: --schema, --regex, --grammar, --choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.types import Constraint

__all__ = ["FORM_OPTIONS", "check_form", "form_options"]

FORM_OPTIONS = ("schema", "regex", "grammar", "choice")


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and pass the command one `form: Constraint | None`."""

    @click.option("--schema", help="Answer in JSON of this schema: a file, JSON text, or fields like 'name, age int'.")
    @click.option("--regex", help="The whole answer matches this regex.")
    @click.option(
        "--grammar", type=click.Path(dir_okay=False, path_type=Path), help="Answer by this Lark grammar, a file."
    )
    @click.option("--choice", multiple=True, help="Answer with this or another --choice.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, schema: str | None, regex: str | None, grammar: Path | None, choice: tuple[str, ...], **kwargs: Any
    ) -> Any:
        return command(*args, form=_form(schema, regex, grammar, choice), **kwargs)

    return wrapped


def _form(schema: str | None, regex: str | None, grammar: Path | None, choice: tuple[str, ...]) -> Constraint | None:
    if schema is None and regex is None and grammar is None and not choice:
        return None
    from edgeai.schema import constraint_of, read_form, schema_of_argument

    return constraint_of(
        schema=None if schema is None else schema_of_argument(schema),
        regex=regex,
        grammar=None if grammar is None else read_form(grammar),
        choices=choice or None,
    )


def check_form(form: Constraint | None, prompt: str | None) -> None:
    """Raise for a form that cannot be enforced, before the model is loaded, and for one of a whole chat."""
    if form is None:
        return
    if prompt is None:
        raise UsageError("an answer in a form needs a prompt", hint='edgeai run MODEL "PROMPT" --schema …')
    from edgeai.engines.constraint import check

    check(form)
