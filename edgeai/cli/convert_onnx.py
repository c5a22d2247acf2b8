"""`edgeai convert --to onnx`, and one model in several formats, shown side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.cli.output import Output, human_bytes
from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.bounds.aim import Aim
    from edgeai.conversion import Conversion
    from edgeai.evaluation.sidebyside import Speed

__all__ = ["convert_formats"]


def convert_formats(
    path: Path, output: Path | None, default: Path | None, quants: Mapping[str, str | None], *, types: tuple[str, ...],
    force: bool, max_kl: float | None, text: str | None, origin: str | None,
    calibration: str | None, aim: Aim | None, out: Output,
) -> list[Conversion]:  # fmt: skip
    """Convert the folder PATH to each of QUANTS' formats; several are measured and shown side by side."""
    from converters.lora import is_adapter
    from edgeai import exporting, pipeline
    from edgeai.quantization import DEFAULT_QUANT, Wish

    if path.is_file():
        raise UsageError(
            f"{str(path)!r} is a file, and ONNX is made from a folder", hint=f"edgeai convert {path} --to hf makes one"
        )
    if is_adapter(path):
        raise UsageError(
            f"{str(path)!r} is a LoRA adapter", hint="merge it into its base first, and convert the result"
        )
    several = len(quants) > 1
    base = output or default
    done: list[Conversion] = []
    places = {target: placed(base, target, several=several, given=output is not None) for target in quants}
    if several:  # what can be found out before the work is found out for all of them
        exporting.check_onnx(path, places["onnx"], quants["onnx"], force=force)
    for target, quant in quants.items():
        where = places[target]
        shared: dict[str, Any] = {
            "force": force, "max_kl": max_kl, "text": text, "origin": origin, "progress": out.progress,
            "notify": lambda notice: out.warn([notice]), "aim": aim,
        }  # fmt: skip
        if target == "onnx":
            done.append(
                exporting.convert_onnx(
                    path, where, quant, types=types, calibration=calibration, tell=out.note, **shared
                )
            )
        else:
            wish = Wish(quant=quant or DEFAULT_QUANT)
            wish.check()
            done.append(
                pipeline.convert(
                    path, where, wish, tell=lambda verdict: out.note("\n".join(verdict.lines(human_bytes))), **shared
                )
            )
    if several:
        from edgeai.artifact import open_artifact
        from edgeai.evaluation.sidebyside import measure

        paths = [item.path for item in done]
        answers = all(open_artifact(item).task == "generation" for item in paths)
        show(done, measure(paths, progress=out.progress) if answers else [None] * len(done), out)
    return done


def placed(base: Path | None, target: str, *, several: bool, given: bool) -> Path | None:
    """Return where the result of TARGET goes; None leaves it beside the source."""
    if base is None or (given and not several):
        return base
    if not base.name or base.name == "..":
        raise UsageError(
            f"-o {str(base)!r} has no name to add to", hint="-o out/NAME makes out/NAME.gguf and out/NAME-onnx"
        )
    stem = base.name.removesuffix(".gguf").removesuffix("-onnx")
    return base.with_name(f"{stem}.gguf" if target == "gguf" else f"{stem}-onnx")


COLUMNS = ("format", "quant", "size", "bits/weight", "mean KL", "top-1", "prompt tok/s", "answer tok/s", "file")


def show(done: Sequence[Conversion], speeds: Sequence[Speed | None], out: Output) -> None:
    """Print what came out side by side, or as one JSON object."""
    from edgeai.cli.report import report_lines

    if out.as_json:
        found = [
            item.to_dict()
            | (
                {"prompt_tok_s": speed.prompt_tok_s, "gen_tok_s": speed.gen_tok_s, "load_s": speed.load_s}
                if speed
                else {}
            )
            for item, speed in zip(done, speeds, strict=True)
        ]
        out.json({"ok": all(item.report.ok for item in done), "results": found})
        return
    for item in done:
        out.note(f"{item.path}")
        for line in report_lines(item.report):
            out.note(line)
    cells = [list(COLUMNS)]
    for item, speed in zip(done, speeds, strict=True):
        cells.append(
            [
                item.format,
                item.quant,
                human_bytes(item.bytes),
                f"{item.bpw:.2f}",
                value(item, "mean KL on text, nats"),
                value(item, "first choice as torch"),
                f"{speed.prompt_tok_s:.0f}" if speed else "-",
                f"{speed.gen_tok_s:.1f}" if speed else "-",
                str(item.path),
            ]
        )
    widths = [max(len(row[at]) for row in cells) for at in range(len(COLUMNS))]
    for row in cells:
        out.answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def value(item: Conversion, name: str) -> str:
    """Return a measure of the proof; of a file that is exact there is none."""
    row = next((row for row in item.report.rows if row.name == name), None)
    return f"{row.value:.3g}" if row is not None and isinstance(row.value, float) else "exact"
