"""`edgeai train`: a recipe → a model in the Hugging Face layout."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from edgeai.cli.output import Output, is_terminal, output_options

if TYPE_CHECKING:
    from edgeai.training.loop import Trained
    from edgeai.training.monitor import Event

__all__ = ["train_command"]


@click.command("train", short_help="Train a small model from a recipe.")
@click.argument("recipe")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the model  [default: out/NAME]"
)
@click.option(
    "--steps", type=int, metavar="N", help="Stop after step N; the learning rate follows the recipe's own steps."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in DIR, exactly as if never interrupted.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: --set training.lr=0.001"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@output_options
def train_command(
    recipe: str,
    output: Path | None,
    steps: int | None,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    out: Output,
) -> None:
    """Train the model that RECIPE describes, and export it. RECIPE is a .toml file, or "tiny", which comes with edgeai.

    \b
    edgeai train tiny -o out/tiny
    edgeai train tiny -o out/tiny --resume
    edgeai train my-recipe.toml --set training.steps=100 --set model.layers=1
    """
    from edgeai import training
    from edgeai.training import recipe as recipes

    training.require_torch()
    settings = recipes.load(recipes.find(recipe), overrides)
    folder = output or Path("out") / settings.name
    again = ["edgeai", "train", recipe, "-o", str(folder), "--resume"]
    again += ["--steps", str(steps)] if steps is not None else []
    again += [word for override in overrides for word in ("--set", override)]
    with LiveLine(out) as live:
        trained = training.train(
            settings, folder, steps=steps, resume=resume, device=device, observe=live, resume_command=shlex.join(again)
        )
    if out.as_json:
        out.json(trained.to_dict())
    else:
        _summary(trained, out)


def _summary(trained: Trained, out: Output) -> None:
    """Say how good the model is, where it is, and what to do with it."""
    folder = str(trained.path)
    better = trained.bigram_loss - trained.eval_loss
    verdict = f"{abs(better):.3f} {'better' if better > 0 else 'worse'} than"
    out.note(
        f"eval loss {trained.eval_loss:.3f} nats per token · perplexity {trained.perplexity:.1f} · "
        f"{verdict} a bigram model ({trained.bigram_loss:.3f}) · {_duration(trained.seconds)}"
    )
    if trained.steps < trained.horizon:
        out.note(
            f"stopped at step {trained.steps} of the recipe's {trained.horizon}, before the learning rate came down: "
            "--resume goes on; for a whole shorter run --set training.steps (and warmup_steps below it)"
        )
    out.note(f"next: edgeai convert {shlex.quote(folder)} --quant q8_0 -o {shlex.quote(folder.rstrip('/') + '.gguf')}")
    out.answer(folder)


class LiveLine:
    """Shows a run on stderr: one line that changes on a terminal, a line for each tenth of the steps elsewhere."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live = is_terminal(sys.stderr)
        self._eval: float | None = None
        self._drawn_at = float("-inf")
        self._open = False

    def __call__(self, event: Event) -> None:
        self._out.warn(event.notices)  # before the first step, so that --strict costs no training
        if self._out.quiet:
            return
        if event.text is not None:
            click.echo(event.text, err=True)
            return
        if event.eval_loss is not None:
            self._eval = event.eval_loss
        if self._live:
            self._draw(event)
        elif event.step == event.steps or event.step % max(1, -(-event.steps // 10)) == 0:
            click.echo(self._text(event), err=True)

    def _draw(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._drawn_at < 0.1 and event.step != event.steps:
            return
        self._drawn_at = now
        width = shutil.get_terminal_size().columns - 1
        click.echo(f"\r\x1b[2K{self._text(event)[:width]}", err=True, nl=False)
        self._open = True

    def _text(self, event: Event) -> str:
        parts = [
            f"step {event.step}/{event.steps}",
            f"loss {event.loss:.3f}",
            f"lr {event.lr:.1e}".replace("e-0", "e-"),
            f"{event.tok_s / 1000:.1f}k tok/s" if event.tok_s >= 1000 else f"{event.tok_s:.0f} tok/s",
        ]
        if self._eval is not None:
            parts.append(f"eval {self._eval:.3f}")
        if event.step < event.steps:
            parts.append(f"ETA {_duration(event.eta_s)}")
        return " · ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:  # whatever comes next, an error too, starts on a line of its own
            click.echo(err=True)
            self._open = False


def _duration(seconds: float) -> str:
    """Return SECONDS as 0:48 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
