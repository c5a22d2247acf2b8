"""`edgeai route calibrate`: fit the confidence of the local model on questions with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeai.cli.output import Output, output_options

if TYPE_CHECKING:
    from edgeai.routing.calibration import CalibrationReport

__all__ = ["calibrate_command"]


@click.command("calibrate", short_help="Fit the confidence of the local model on known answers.")
@click.argument("data", type=click.Path(path_type=Path), metavar="DATA.jsonl")
@click.option(
    "--model", metavar="NAME", help="A pulled name or a path.  [default: the local model of the configuration]"
)
@click.option(
    "--samples", type=click.IntRange(0, 20), default=0, help="Draw so many more answers and see if they agree."
)
@click.option("--max-tokens", type=click.IntRange(1, 4096), default=256, show_default=True, help="Of each answer.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
@output_options
def calibrate_command(
    data: Path, model: str | None, samples: int, max_tokens: int, limit: int | None, out: Output
) -> None:
    """Fit the confidence of a model on the questions in DATA.jsonl, and keep it with the model file.

    The policy `cascade` then asks an endpoint what the local model is not sure of. Each line is a question:

    \b
    {"prompt": "What is 2 + 3?", "answer": 5}
    {"prompt": "Hot or cold: fire?", "answer": "hot", "choices": ["hot", "cold"]}
    {"messages": […], "answer": ["Paris", "paris"], "match": "contains", "strong_correct": true}

    `match` is exact, contains (whole words), number (the last one that is said), choice (the first one that is said) or regex.
    All figures are of cross-validation; `strong_correct` says whether a stronger model was right, else it is taken to be always right.
    """
    from edgeai.config import read_config
    from edgeai.model import load
    from edgeai.routing.calibration import calibrate, check_count
    from edgeai.routing.questions import read_questions

    questions = read_questions(data)[:limit]
    check_count(questions)
    with load(model or read_config().routing.local_model) as loaded:
        report = calibrate(loaded, questions, samples=samples, max_tokens=max_tokens, progress=out.progress)
    out.warn(report.warnings)
    if out.as_json:
        out.json(report.to_dict())
    else:
        out.answer("\n".join(lines(report)))


def lines(report: CalibrationReport) -> list[str]:
    """Return REPORT for people."""
    found = report.figures
    head = report.head
    given = "" if found["strong"] == "given" else f"  ({found['strong']})"
    shown = [
        f"{report.model} {head.quant}: {head.rows} questions, {_share(found['local'])} right",
        f"  AUROC  {_number(found['auroc'])}, 0.5 is chance",
        f"  ECE    {_number(found['ece'])} in {found['ece']['bins']} bins",
        f"  AURC   {_number(found['aurc'])}, random {found['aurc']['random']:.3f}, oracle {found['aurc']['oracle']:.3f}",
        f"  handed to a stronger model that is right in {found['strong_accuracy']:.1%}{given}:",
    ]
    for share, each in found["hand_off"].items():
        beside = f"random {each['random']:.1%}, oracle {each['oracle']:.1%}"
        shown.append(f"    {share:>4}  {_share(each['confidence'])} right, {beside}")
    shown += [
        f"  {task}: {ability:.1%} right of {report.counts[task]}" for task, ability in sorted(head.ability.items())
    ]
    return [*shown, f"kept in {report.path}"]


def _share(found: dict[str, Any]) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _number(found: dict[str, Any]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
