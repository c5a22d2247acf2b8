"""A GGUF file gets types that are chosen for it: it is read back as a folder, exactly, which is then converted like any other.

Gradients need the model in torch, and torch reads no GGUF.
"""

from __future__ import annotations

import os
from pathlib import Path

from converters.header import read_header
from converters.imports.source import check_whole
from converters.manifest import file_sha256
from converters.output import check_output
from converters.scratch import Scratch
from edgeai.bounds.aim import Aim
from edgeai.conversion import Conversion
from edgeai.errors import UsageError
from edgeai.importing import import_model
from edgeai.pipeline import Notify, convert
from edgeai.quantization import Wish
from edgeai.requantizing import quantized_types
from edgeai.types import Notice, Progress, no_progress

__all__ = ["retype"]


def retype(
    source: Path,
    output: Path | None,
    aim: Aim,
    wish: Wish,
    *,
    allow: bool = False,
    force: bool = False,
    keep_failed: bool = False,
    max_kl: float | None = None,
    text: str | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
) -> Conversion:
    """Write the GGUF file SOURCE with the types that AIM finds to OUTPUT (default: SOURCE with -mixed), proved like any other.

    A file that is quantized already needs ALLOW. Raises what `importing.import_model` and `pipeline.convert` raise.
    """
    header = read_header(source)
    check_whole(header)
    quantized = quantized_types(header)
    if quantized and not allow:
        raise UsageError(
            f"{str(source)!r} is quantized already ({', '.join(quantized)})",
            hint="convert the original model; or, with errors on top of errors, this one: --requantize",
        )
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    name = place.name.removesuffix(".gguf")
    target = output or place.with_name(f"{name}-mixed.gguf")
    check_output(target, source, [source], force=force)
    if quantized:
        message = (
            f"the source is quantized already ({', '.join(quantized)}): its errors stay, and the proof cannot see them"
        )
        notify(Notice(code="requantized", message=message))
    with Scratch() as scratch:
        folder = Path(scratch) / name
        import_model(source, folder, progress=progress, notify=notify)
        return convert(
            folder,
            target,
            wish,
            force=force,
            keep_failed=keep_failed,
            max_kl=max_kl,
            text=text,
            origin=f"{place.name} with sha256 {file_sha256(source)}",
            aim=aim,
            progress=progress,
            notify=notify,
        )
