"""`edgeai train`: a recipe → a language model in the Hugging Face layout, or the folder of a classifier."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import click

from edgeai.cli.output import Output, is_terminal, output_options

if TYPE_CHECKING:
    from edgeai.training.loop import Trained
    from edgeai.training.monitor import Event
    from edgeai.training.tasks.loop import TrainedTask

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
    """Train the model that RECIPE describes, and export it. RECIPE is a .toml file, or a name of one that comes with edgeai.

    \b
    tiny       a language model              digits       pictures of digits (CNN)
    tumors     a table, two classes (MLP)    sequence     digits as a series (TCN)
    diabetes   a table → a number (MLP)      topics       texts, from nothing
                                             topics-head  texts, on minilm

    \b
    edgeai train tiny -o out/tiny
    edgeai train tiny -o out/tiny --resume
    edgeai train digits --set model.width=16
    edgeai train my-recipe.toml --set training.steps=100 --set model.layers=1
    """
    from edgeai import training
    from edgeai.training import recipe as recipes

    training.require_torch()
    settings = training.load(recipes.find(recipe), overrides)
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
    elif isinstance(settings, recipes.Recipe):
        _summary(cast("Trained", trained), out)
    else:
        _task_summary(cast("TrainedTask", trained), out)


def _task_summary(trained: TrainedTask, out: Output) -> None:
    """Say how good the model is on what it has never seen, where it is, and what to do with it."""
    test = trained.test
    if "accuracy" in test:
        low, high = test["interval"]
        out.note(
            f"test accuracy {test['accuracy']:.1%} (95 % between {low:.1%} and {high:.1%}, {test['rows']} rows) · "
            f"macro-F1 {test['macro_f1']:.3f} · always the commonest class {test['baseline']:.1%} · {_duration(trained.seconds)}"
        )
    else:
        out.note(
            f"test RMSE {test['rmse']:.4g} · R² {test['r2']:.3f} ({test['rows']} rows) · "
            f"always the mean {test['baseline']:.4g} · {_duration(trained.seconds)}"
        )
    _say_stopped(trained, out)
    folder = str(trained.path)
    out.note(f"next: edgeai convert {shlex.quote(folder)} --to onnx -o {shlex.quote(folder.rstrip('/') + '.onnx')}")
    out.answer(folder)


def _summary(trained: Trained, out: Output) -> None:
    """Say how good the model is, where it is, and what to do with it."""
    folder = str(trained.path)
    better = trained.bigram_loss - trained.eval_loss
    verdict = f"{abs(better):.3f} {'better' if better > 0 else 'worse'} than"
    out.note(
        f"eval loss {trained.eval_loss:.3f} nats per token · perplexity {trained.perplexity:.1f} · "
        f"{verdict} a bigram model ({trained.bigram_loss:.3f}) · {_duration(trained.seconds)}"
    )
    _say_stopped(trained, out)
    out.note(f"next: edgeai convert {shlex.quote(folder)} --quant q8_0 -o {shlex.quote(folder.rstrip('/') + '.gguf')}")
    out.answer(folder)


def _say_stopped(trained: Trained | TrainedTask, out: Output) -> None:
    if trained.steps < trained.horizon:
        out.note(
            f"stopped at step {trained.steps} of the recipe's {trained.horizon}, before the learning rate came down: "
            "--resume goes on; for a whole shorter run --set training.steps (and warmup_steps below it)"
        )


class LiveLine:
    """Shows a run on stderr: one line that changes on a terminal, a line for each tenth of the steps elsewhere."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live = is_terminal(sys.stderr)
        self._eval: float | None = None
        self._score: tuple[str, float] | None = None
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
            self._eval, self._score = event.eval_loss, event.score
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
            _speed(event.tok_s, "tok") if event.row_s is None else _speed(event.row_s, "rows"),
        ]
        if self._eval is not None:
            parts.append(f"eval {self._eval:.3f}")
        if self._score is not None:
            parts.append(f"{self._score[0]} {self._score[1]:.3f}")
        if event.step < event.steps:
            parts.append(f"ETA {_duration(event.eta_s)}")
        return " · ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:  # whatever comes next, an error too, starts on a line of its own
            click.echo(err=True)
            self._open = False


def _speed(each_s: float, what: str) -> str:
    """Return EACH_S of WHAT in a second as 41.0k tok/s."""
    return f"{each_s / 1000:.1f}k {what}/s" if each_s >= 1000 else f"{each_s:.0f} {what}/s"


def _duration(seconds: float) -> str:
    """Return SECONDS as 0:48 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
