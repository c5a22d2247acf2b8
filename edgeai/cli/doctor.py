"""`edgeai doctor`: what is here and what is wrong with it."""

from __future__ import annotations

import click

from edgeai.cli.output import Output, output_options

__all__ = ["doctor_command"]


@click.command("doctor", short_help="Find out what is wrong on this machine.")
@output_options
def doctor_command(out: Output) -> None:
    """Look at this machine and say what is wrong, with the command that mends it."""
    from edgeai.doctor import examine

    found = examine()
    if out.as_json:
        out.json(found.to_dict())
    else:
        for title, facts in found.sections.items():
            out.answer(title)
            for name, value in facts.items():
                out.answer(f"  {name:<18}{value}")
        for problem in found.problems:
            out.answer(f"\nproblem: {problem.what}\n   mend: {problem.mend}")
        if not found.problems:
            out.answer("\nno problems found")
    worst = max((problem.exit_code for problem in found.problems), default=0)
    click.get_current_context().exit(worst)
