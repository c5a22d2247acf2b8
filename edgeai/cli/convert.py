"""`edgeai convert`: a trained model → a file that runs, proved to be the same model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeai.cli.bounds import BOUNDS, SizeParam, aim_of, given, ranges_of
from edgeai.cli.output import Output, human_bytes, output_options
from edgeai.cli.report import report_lines
from edgeai.cli.targets import TargetsParam, check_options, quants_for
from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.conversion import Conversion

__all__ = ["convert_command"]


@click.command("convert", short_help="Turn a trained model into GGUF or ONNX, or back, with proof.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The file or folder to write  [default: SOURCE.gguf, SOURCE-onnx]",
)
@click.option(
    "--to",
    "targets",
    type=TargetsParam(),
    default="gguf",
    show_default=True,
    metavar="FORMAT",
    help="gguf, onnx, or both: gguf,onnx. hf: from a GGUF file a Hugging Face folder.",
)
@click.option(
    "--quant",
    metavar="TYPE",
    help="f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m q4_0 iq4_nl q3_k_m q2_k iq2_m …; ONNX: f32 f16 int8 int4  [default: q8_0, int8]",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Another type for the tensors whose names match, as 'blk.*.ffn_down=q6_k'. Repeatable; the last match wins.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="TEXT|FILE",
    help="What matters most: a text to find out with, or a file of llama-imatrix.",
)
@click.option(
    "--calibration-tokens", type=click.IntRange(1), metavar="N", help="Tokens of TEXT to read  [default: 8192]"
)
@click.option(
    "--imatrix-out", type=click.Path(path_type=Path), metavar="FILE", help="Keep the importance matrix of TEXT."
)
@click.option(
    "--target-size",
    "target_bytes",
    type=SizeParam(),
    metavar="SIZE",
    help="The best file of at most this size: 90MB, 1.2GB.",
)
@click.option("--target-bpw", type=float, metavar="BITS", help="The best file of so many bits per weight: 4.5.")
@click.option(
    "--max-kl",
    type=float,
    metavar="NATS",
    help="The smallest file with at most this mean KL to the source. With --quant: fail above it  [default: by the type]",
)
@click.option(
    "--min-top1",
    type=float,
    metavar="SHARE",
    help="The smallest file whose first choice is the source's so often: 0.95.",
)
@click.option(
    "--min-cosine",
    type=float,
    metavar="COSINE",
    help="Of an embedding model: the smallest file whose vectors are so near: 0.995.",
)
@click.option(
    "--prefer",
    type=click.Choice(["quality", "speed"]),
    default="quality",
    show_default=True,
    help="What else counts within these bounds; speed is measured on this machine.",
)
@click.option("--only", metavar="TYPES", help="The types that may be chosen: q4_0,q5_0,q8_0.")
@click.option("--exclude", metavar="TYPES", help="Types that may not be chosen.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    metavar="N",
    default=6,
    show_default=True,
    help="How many files may be measured.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Draw KL against size, with the usual types beside it, as .png, .svg or .html.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Make the file of an edgeai.quant.toml again, byte for byte.",
)
@click.option(
    "--calibration",
    metavar="TEXT",
    help="What the types are chosen on: a text like those that the model will read  [default: a bundled one]. With --to onnx --quant int8, "
    "of a classifier: how ranges are found in its data, minmax, entropy or percentile.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say which type every tensor would get and how large the file; write nothing."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f32", "f16", "bf16"]),
    default="auto",
    show_default=True,
    help="With --to hf: how the weights are stored. auto is exact: f32 for a quantized file, which f16 and bf16 would round.",
)
@click.option(
    "--requantize", is_flag=True, help="Quantize a GGUF file that is quantized already, with errors on top of errors."
)
@click.option(
    "--base", metavar="MODEL", help="The model that a LoRA adapter was trained on: a folder, a name, hf:owner/repo."
)
@click.option("--merge", is_flag=True, help="Merge a LoRA adapter into its base, instead of writing an adapter file.")
@click.option(
    "--force", is_flag=True, help="Replace the output if it is there; the old file stays until the new one is proved."
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The text to compare on, instead of the bundled one.",
)
@click.option(
    "--allow-inexact-tokenizer",
    is_flag=True,
    help="Convert a tokenizer that the runtime can only do nearly; a warning has the measured rate.",
)
@click.option("--keep-failed", is_flag=True, help="Keep a file that fails its proof, as OUT.failed, with its passport.")
@output_options
def convert_command(
    source: str,
    output: Path | None,
    targets: tuple[str, ...],
    quant: str | None,
    target_bytes: int | None,
    target_bpw: float | None,
    min_top1: float | None,
    min_cosine: float | None,
    prefer: str,
    only: str | None,
    exclude: str | None,
    rounds: int,
    plot: Path | None,
    recipe: Path | None,
    dtype: str,
    types: tuple[str, ...],
    imatrix: Path | None,
    calibration_tokens: int | None,
    imatrix_out: Path | None,
    calibration: str | None,
    dry_run: bool,
    requantize: bool,
    base: str | None,
    merge: bool,
    force: bool,
    max_kl: float | None,
    eval_text: Path | None,
    keep_failed: bool,
    allow_inexact_tokenizer: bool,
    out: Output,
) -> None:
    """Convert the folder SOURCE (a path, a pulled model's name, or hf:owner/repo[@revision]) to GGUF or ONNX, and prove the result.

    A GGUF file as SOURCE is quantized, or with --to hf written as a folder. hf:owner/repo is downloaded. --to gguf,onnx makes both and
    shows them side by side: size, distance from the source, tokens per second on this machine.

    The file gets its name only when its token ids and logits are those of the source.

    \b
    edgeai convert out/tiny
    edgeai convert out/tiny --quant q4_k_m -o out/tiny-q4.gguf
    edgeai convert model-f16.gguf --quant q4_k_m
    edgeai convert model.gguf --to hf
    edgeai convert out/tiny --to onnx --quant int4
    edgeai convert out/tiny --to gguf,onnx --quant q4_k_m,int4
    edgeai convert out/tiny --quant iq2_m --imatrix prompts.txt
    edgeai convert out/tiny --quant q4_0 --type '*.ffn_down=q6_k' --dry-run
    edgeai convert out/tiny --max-kl 0.02 --plot kl.png
    edgeai convert out/tiny --target-size 1MB --calibration prompts.txt
    edgeai convert out/tiny --recipe edgeai.quant.toml
    """
    from converters.lora import is_adapter
    from converters.output import check_apart
    from edgeai import pipeline
    from edgeai.evaluation.corpus import read_text
    from edgeai.quantization import DEFAULT_QUANT, Wish

    text = read_text(eval_text) if eval_text is not None else None
    if output is not None:
        check_apart(output, {"--eval-text": eval_text})
    check_options(targets)
    ranges = ranges_of(targets, calibration)
    aim = aim_of(
        {
            "target_bytes": target_bytes,
            "target_bpw": target_bpw,
            "max_kl": max_kl,
            "min_top1": min_top1,
            "min_cosine": min_cosine,
            "prefer": prefer,
            "only": only,
            "exclude": exclude,
            "rounds": rounds,
        },
        recipe=recipe,
        calibration=Path(calibration) if calibration is not None and ranges is None else None,
        tokens=calibration_tokens,
        plot=plot,
        force=force,
    )
    quants = quants_for(targets, quant)
    if "onnx" in targets:
        from edgeai.cli.convert_onnx import convert_formats

        path, default, origin = find(source, out)
        check_source(path, targets)
        made = convert_formats(
            path,
            output,
            default,
            quants,
            types=types,
            force=force,
            max_kl=max_kl,
            text=text,
            origin=origin,
            calibration=ranges,
            aim=aim,
            out=out,
        )
        if len(made) == 1:
            show_chosen(made[0], plot, out)
        return
    wish = Wish(
        quant=quants[targets[0]] or DEFAULT_QUANT,
        types=types,
        imatrix=imatrix,
        calibration_tokens=calibration_tokens if aim is None else None,
        imatrix_out=imatrix_out,
    )
    wish.check()
    path, default, origin = find(source, out)
    check_source(path, targets)
    if targets == ("hf",):
        finish(to_hf(path, output or (default and Path(f"{default.stem}-hf")), dtype, out, force=force), out)
        return
    if path.is_file() and aim is not None:
        from edgeai.retyping import retype

        refuse(("allow_inexact_tokenizer", "base", "merge"), "a GGUF file")
        done = retype(
            path,
            output or (default and Path(f"{default.stem}-mixed.gguf")),
            aim,
            wish,
            allow=requantize,
            force=force,
            keep_failed=keep_failed,
            max_kl=max_kl,
            text=text,
            progress=out.progress,
            notify=lambda notice: out.warn([notice]),
        )
        show_chosen(done, plot, out)
        return
    if path.is_file():
        from edgeai.requantizing import requantize as from_file

        refuse(
            ("calibration_tokens", "imatrix_out", "dry_run", "allow_inexact_tokenizer", "base", "merge"), "a GGUF file"
        )
        done = from_file(
            path,
            output or (default and Path(f"{default.stem}-{wish.quant.lower()}.gguf")),
            wish,
            allow=requantize,
            force=force,
            keep_failed=keep_failed,
            max_kl=max_kl,
            text=text,
            progress=out.progress,
            notify=lambda notice: out.warn([notice]),
        )
        finish(done, out)
        return
    refuse(("requantize",), "a folder")
    if aim is not None and output is not None:
        check_apart(output, {"--calibration": aim.calibration, "--plot": plot, "--recipe": recipe})
    adapter = None
    if is_adapter(path):
        from edgeai.adapting import base_of

        adapter = path
        path, _, origin = find(base, out) if base else (base_of(path), None, None)
        if not merge:
            refuse(NOT_OF_ADAPTERS, "a LoRA adapter without --merge")
            finish(to_adapter(adapter, path, output, out, force=force), out)
            return
        refuse(("imatrix", "dry_run", *BOUNDS, "recipe"), "a LoRA adapter")
        default = default or adapter.absolute().with_name(f"{adapter.absolute().name}.gguf")
    else:
        refuse(("base", "merge"), "no LoRA adapter")
    if dry_run:
        from edgeai.cli.typetable import table
        from edgeai.dryrun import dry_run as run_dry

        would = run_dry(
            path,
            wish,
            allow_inexact_tokenizer=allow_inexact_tokenizer,
            notify=lambda notice: out.warn([notice]),
        )
        if out.as_json:
            out.json(would.to_dict())
        else:
            out.answer(table(would, verbose=out.verbose))
        return
    done = pipeline.convert(
        path,
        output or default,
        wish,
        force=force,
        keep_failed=keep_failed,
        allow_inexact_tokenizer=allow_inexact_tokenizer,
        max_kl=max_kl,
        text=text,
        origin=origin,
        adapter=adapter,
        aim=aim,
        progress=out.progress,
        notify=lambda notice: out.warn([notice]),
        tell=lambda verdict: out.note("\n".join(verdict.lines(human_bytes))),
    )
    show_chosen(done, plot, out)


def show_chosen(done: Conversion, plot: Path | None, out: Output) -> None:
    """Draw how the types were chosen where PLOT says so, and say what came out."""
    if plot is not None and done.outcome is not None:
        from edgeai.bounds.picture import draw

        draw(done.outcome, plot)
        out.note(f"drawn: {plot}")
    finish(done, out)


def finish(done: Conversion, out: Output) -> None:
    """Say what came out."""
    summarize(done, out)
    if out.as_json:
        out.json(done.to_dict())
    else:
        out.answer(str(done.path))


NOT_OF_ADAPTERS = (
    "quant",
    "types",
    "imatrix",
    "dry_run",
    "keep_failed",
    "max_kl",
    "eval_text",
    "allow_inexact_tokenizer",
)
"""Options that an adapter file has no use for."""


def to_adapter(path: Path, base: Path, output: Path | None, out: Output, *, force: bool) -> Conversion:
    """Write the LoRA folder PATH as an adapter file."""
    from edgeai import adapting

    return adapting.convert_adapter(
        path, base, output, force=force, progress=out.progress, notify=lambda notice: out.warn([notice])
    )


def to_hf(path: Path, folder: Path | None, dtype: str, out: Output, *, force: bool) -> Conversion:
    """Read the GGUF file PATH back as a folder."""
    from edgeai import importing

    return importing.import_model(
        path, folder, dtype, force=force, progress=out.progress, notify=lambda notice: out.warn([notice])
    )


def refuse(names: tuple[str, ...], source: str) -> None:
    """Raise UsageError for an option of NAMES, which nothing is done with where the source is SOURCE."""
    for name in names:
        if option := given(name):
            raise UsageError(f"{option} does nothing where the source is {source}", hint=f"leave {option} out")


def check_source(path: Path, targets: tuple[str, ...]) -> None:
    """Raise UnsupportedModel for an ONNX file or folder as the source, and for a classifier that is to be something else."""
    from edgeai.errors import UnsupportedModel
    from edgeai.exporting.modules import is_module_folder

    if is_module_folder(path) and (other := [target for target in targets if target != "onnx"]):
        raise UnsupportedModel(
            f"{str(path)!r} is the folder of a trained classifier, which becomes ONNX and not {other[0]}",
            hint="--to onnx",
        )
    weights = (*path.glob("*.safetensors"), *path.glob("*.bin")) if path.is_dir() else ()
    folder = (path / "genai_config.json").exists() or ((path / "model.onnx").exists() and not weights)
    if path.suffix.lower() == ".onnx" or folder:
        raise UnsupportedModel(
            f"{str(path)!r} is an ONNX model already, and nothing is converted from ONNX",
            hint="name the folder with the weights that it was made from; `edgeai run` runs it as it is",
        )


def find(source: str, out: Output) -> tuple[Path, Path | None, str | None]:
    """Return the path of SOURCE, where its output goes if that is not beside it, and where it was downloaded from.

    What is not a path of the user's own, a pulled model or one of the hub, goes into the working folder.
    """
    from edgeai.store import Store

    if source.startswith("hf:") and not Path(source).exists():
        from edgeai.fetch.snapshot import snapshot

        found = snapshot(source, out.progress)
        return found.path, Path(f"{found.name}.gguf"), found.origin
    store = Store.open()
    path = store.find(source)
    pulled = store.path_of(source) == path if not Path(source).exists() else False
    return path, Path(f"{Path(source).name}.gguf") if pulled else None, None


def summarize(done: Conversion, out: Output) -> None:
    """Say on stderr what was checked, what came out, and what to do next."""
    for line in report_lines(done.report):
        out.note(line)
    if done.outcome is not None:
        from edgeai.bounds import table

        out.note(table.text(done.outcome, rounds=True))
        out.note(table.type_map(done.outcome))
        for note in done.outcome.notes:
            out.note(note)
    types = ", ".join(f"{count} {kind}" for kind, count in done.types.items())
    out.note(
        f"{done.quant} · {human_bytes(done.bytes)} · {done.bpw:.2f} bits per weight · {types} · {done.timings['total_s']:.1f} s"
    )
    if out.verbose:
        out.note(" · ".join(f"{name.removesuffix('_s')} {value:.2f} s" for name, value in done.timings.items()))
    path = shlex.quote(str(done.path))
    steps = {"hf": f"edgeai convert {path}", "gguf-adapter": f"llama-server -m BASE.gguf --lora {path}"}
    out.note("next: " + steps.get(done.format, f"edgeai run {path} {done.example}"))
