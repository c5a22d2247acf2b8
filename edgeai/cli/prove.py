"""`edgeai prove`: whether a file still is the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeai.cli.output import Output, output_options
from edgeai.cli.report import report_lines

if TYPE_CHECKING:
    from edgeai.evaluation.prove import Verdict

__all__ = ["prove_command"]


@click.command("prove", short_help="Check that a file still is its source model.")
@click.argument("source", metavar="SOURCE")
@click.argument("artifact", metavar="ARTIFACT")
@click.option(
    "--max-kl", type=float, metavar="NATS", help="Fail above this mean KL to the source  [default: by the type]"
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="The text to compare on, instead of the bundled one.",
)
@click.option(
    "--write", is_flag=True, help="Keep the report: beside a file as FILE.passport.json, in a folder as passport.json."
)
@output_options
def prove_command(
    source: str, artifact: str, max_kl: float | None, eval_text: Path | None, write: bool, out: Output
) -> None:
    """Check that ARTIFACT, a GGUF file, an ONNX file or a folder with one, still is the model in the folder SOURCE.

    Of a language model token ids, chat template, logits and the end of answers are compared, of an embedding model vectors, of a
    classifier its labels on the test set in SOURCE. ARTIFACT may come from anywhere. Nothing is written unless --write is given.
    Exit code 9: it is not the model.

    \b
    edgeai prove out/tiny out/tiny.gguf
    edgeai prove out/tiny out/tiny-onnx
    edgeai prove out/digits out/digits.onnx
    edgeai prove ./SmolLM2-135M model-from-elsewhere.gguf --json
    """
    from edgeai.errors import ProofFailed
    from edgeai.evaluation.corpus import read_text
    from edgeai.exporting.proving import prove
    from edgeai.paper import write_paper
    from edgeai.store import Store

    text = read_text(eval_text) if eval_text is not None else None
    store = Store.open()
    verdict = prove(
        store.find(source),
        store.find(artifact),
        text=text,
        max_kl=max_kl,
        progress=out.progress,
        notify=lambda notice: out.warn([notice]),
    )
    for line in report_lines(verdict.report):
        out.note(line)
    if write:
        write_paper(verdict)
    if out.as_json:
        out.json(verdict.to_dict())
    if not verdict.report.ok:
        raise ProofFailed(
            f"{artifact!r} is not the model in {source!r}: {failed(verdict)}",
            hint="the lines marked FAIL say where they differ",
        )
    if not out.as_json:
        out.answer(f"{artifact} is the model in {source}")


def failed(verdict: Verdict) -> str:
    """Return the first thing in which the two differ, and how many more there are."""
    row, *others = verdict.report.failed
    value = row.value
    if not isinstance(value, str):
        ends = f", 95 % between {row.interval[0]:.4g} and {row.interval[1]:.4g}" if row.interval else ""
        value = f"{value:.3g}{ends}, limit {row.limit}"
    return f"{row.name}: {value}" + (f" (and {len(others)} more)" if others else "")
