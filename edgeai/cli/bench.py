"""`edgeai bench`: how fast a model is here, in llama-bench's columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgeai.cli.numbers import numbers
from edgeai.cli.output import Output, output_options
from edgeai.errors import UsageError
from edgeai.options import DeviceChoice

if TYPE_CHECKING:
    from edgeai.evaluation.speed import Figure

__all__ = ["bench_command"]

TOKENS = numbers(0, 1_000_000)


@click.command("bench", short_help="Measure how fast a model is here.")
@click.argument("model")
@click.option("--pp", callback=TOKENS, metavar="N", help="Read a prompt of N tokens; 0 for none.  [default: 512]")
@click.option("--tg", callback=TOKENS, metavar="N", help="Decode N tokens; 0 for none.  [default: 128]")
@click.option(
    "--depth", callback=TOKENS, metavar="D", default="0", help="Do so after D tokens of context.  [default: 0]"
)
@click.option(
    "--streams",
    callback=numbers(1, 128),
    metavar="N",
    help="Instead: N requests side by side, each with a prompt and an answer of these lengths, through the whole engine.",
)
@click.option("--threads", callback=numbers(1, 512), metavar="N", help="CPU threads.  [default: the plan's]")
@click.option("--threads-batch", callback=numbers(1, 512), metavar="N", help="CPU threads for prompts.")
@click.option("--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs of each test.")
@click.option("--device", type=click.Choice(get_args(DeviceChoice)), default="auto", show_default=True)
@click.option("--gpu-layers", type=click.IntRange(0, 10_000), help="Layers on the GPU.  [default: the plan's]")
@click.option("--kv-type", help="Type of the KV cache.  [default: f16]")
@click.option(
    "--tune", is_flag=True, help="Find the fastest thread counts first, and remember them for every later run."
)
@output_options
def bench_command(
    model: str,
    pp: tuple[int, ...] | None,
    tg: tuple[int, ...] | None,
    depth: tuple[int, ...],
    streams: tuple[int, ...] | None,
    threads: tuple[int, ...] | None,
    threads_batch: tuple[int, ...] | None,
    repeat: int,
    tune: bool,
    out: Output,
    **load: Any,
) -> None:
    """Measure how fast MODEL is on this machine: a prompt of N tokens at once (pp), N tokens one by one (tg).

    The columns, and what they measure, are llama-bench's. Options with N take several: 128,512 or 1-4 or 1-16*2.
    A classifier has items a second instead, given one at a time and 32 at once.

    \b
    edgeai bench smollm2
    edgeai bench model.gguf --pp 0 --tg 32 --threads 1-4
    edgeai bench smollm2 --streams 1,8 --pp 64 --tg 64
    edgeai bench out/tiny-onnx
    """
    from edgeai.evaluation import speed
    from edgeai.store import Store

    if tune and (threads or threads_batch):
        raise UsageError("--tune and --threads exclude each other", hint="--tune is what finds the threads")
    if streams and (depth != (0,) or len(threads or ()) > 1 or len(threads_batch or ()) > 1):
        raise UsageError(
            "--streams goes with one number of threads and no --depth",
            hint="leave out --depth, or give --threads one number",
        )
    wanted = speed.Wanted(
        prompts=pp, answers=tg, depths=depth, streams=streams or (), threads=threads or (), threads_batch=threads_batch or (),
        repeat=repeat, load={name: value for name, value in load.items() if value is not None},
    )  # fmt: skip
    path: Path = Store.open().find(model)
    if tune:
        show_tuning(path, wanted, out)
    figures: list[Figure] = []
    try:
        for figure in speed.measure(path, wanted, notify=out.warn, progress=out.progress):
            if not out.as_json:
                show(figure, first=not figures, out=out)
            figures.append(figure)
    finally:  # what is measured when Ctrl-C comes is kept
        if out.as_json and figures:
            out.json([figure.to_dict() for figure in figures])
    if figures and figures[0].energy_problem is not None:
        out.note(f"energy: not measured, {figures[0].energy_problem}")


def show_tuning(path: Path, wanted: Any, out: Output) -> None:
    """Tune, and say on stderr what was tried and what is remembered."""
    from edgeai.evaluation import speed

    found = speed.tune_here(path, wanted, notify=out.warn, progress=out.progress)
    for trial in found.trials:
        out.note(f"{trial.kind} with {trial.threads:>3} threads: {trial.tok_s:10.2f} t/s")
    out.note(
        f"remembered for {found.kind}: {found.tuned.threads} threads to decode, {found.tuned.threads_batch} to read prompts"
    )


COLUMNS = (
    ("model", 30, str.ljust), ("size", 10, str.rjust), ("params", 10, str.rjust), ("backend", 10, str.ljust),
    ("threads", 7, str.rjust), ("test", 15, str.rjust), ("t/s", 20, str.rjust),
)  # fmt: skip


def show(figure: Figure, *, first: bool, out: Output) -> None:
    """Print a row of the table; before the FIRST one, its head. Figures of several streams get two columns more."""
    wide = max(10, len(figure.backend))  # the same in all rows
    units = {"backend": ("backend", wide, str.ljust), "t/s": (figure.unit, 20, str.rjust)}
    columns = [units.get(column[0], column) for column in COLUMNS]
    cells = [
        figure.model,
        f"{figure.size_bytes / 2**20:.2f} MiB" if figure.size_bytes < 2**30 else f"{figure.size_bytes / 2**30:.2f} GiB",
        f"{figure.params / 1e6:.2f} M" if figure.params < 1e9 else f"{figure.params / 1e9:.2f} B",
        figure.backend,
        str(figure.threads),
        figure.test,
        f"{figure.mean:.2f} ± {figure.std:.2f}",
    ]
    if figure.ttft_p50_s is not None and figure.ttft_p95_s is not None:
        columns += [("TTFT p50", 10, str.rjust), ("TTFT p95", 10, str.rjust)]
        cells += [f"{figure.ttft_p50_s * 1000:.0f} ms", f"{figure.ttft_p95_s * 1000:.0f} ms"]
    if figure.joules_per_token is not None:
        columns.append(("J/token", 10, str.rjust))
        cells.append(f"{figure.joules_per_token:.3f}")
    if first:
        out.answer("| " + " | ".join(pad(name, width) for name, width, pad in columns) + " |")
        dashes = ("-" * width if pad is str.ljust else "-" * (width - 1) + ":" for _, width, pad in columns)
        out.answer("| " + " | ".join(dashes) + " |")
    fitted = (pad(cell, width) for cell, (_, width, pad) in zip(cells, columns, strict=True))
    out.answer("| " + " | ".join(fitted) + " |")
