"""Export to ONNX: language models, embedders, and whatever else the trainer makes, each in a list of steps of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.conversion import Conversion
from edgeai.errors import UsageError
from edgeai.types import no_progress

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint

__all__ = ["check_onnx", "convert_onnx", "is_embedder", "refuse"]


def convert_onnx(source: Path, output: Path | None = None, quant: str | None = None, **options: Any) -> Conversion:
    """Convert the folder SOURCE to ONNX, whatever kind of model it has.

    OPTIONS are those of `language.convert_language`; one that the kind of model has no use for is a UsageError.
    """
    from edgeai.exporting.modules import convert_module, is_module_folder

    calibration = options.pop("calibration", None)
    if is_module_folder(source):
        options |= {"calibration_method": calibration} if calibration else {}
        refuse(options, ("types", "max_kl", "text", "origin", "tell", "aim"), "a classifier or regression")
        return convert_module(source, output, quant, **options)
    if calibration:
        raise UsageError("--calibration is for classifiers and regressions in int8", hint="leave --calibration out")
    from converters.checkpoint import open_checkpoint

    if is_embedder(open_checkpoint(source)):
        from edgeai.exporting.embedder import convert_embedder

        refuse(options, ("types", "max_kl", "aim"), "an embedding model")
        return convert_embedder(source, output, quant, **options)
    from edgeai.exporting.language import convert_language

    return convert_language(source, output, quant, **options)


def is_embedder(checkpoint: Checkpoint) -> bool:
    """Whether CHECKPOINT is an embedding model."""
    from converters.families import plan_model
    from converters.onnx.choices import ARCHITECTURES

    classes = checkpoint.config.get("architectures") or [""]
    language = classes[0] in ARCHITECTURES or "CausalLM" in str(classes[0])
    return not language and plan_model(checkpoint).pooling is not None


OPTION = {"types": "--type", "max_kl": "--max-kl", "text": "--eval-text", "aim": "a bound"}


def refuse(options: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    """Take what WHAT has no use for out of OPTIONS. Raises UsageError for one that is set."""
    for name in names:
        value = options.pop(name, None)
        if value and name in OPTION:
            raise UsageError(
                f"{OPTION[name]} does nothing where the source is {what}", hint=f"leave {OPTION[name]} out"
            )


def check_onnx(source: Path, output: Path | None, quant: str | None, *, force: bool) -> None:
    """Raise what `convert_onnx` would raise before it reads a tensor: of a model, its type, the output, disk, memory, libraries."""
    from converters.checkpoint import open_checkpoint
    from edgeai.exporting.job import require
    from edgeai.exporting.modules import is_module_folder

    require()
    if is_module_folder(source):
        raise UsageError(f"{str(source)!r} is no language model, and has no GGUF file", hint="--to onnx alone")
    if is_embedder(open_checkpoint(source)):
        from edgeai.exporting import embedder

        embedder.prepare(source, output, embedder.parse(quant or embedder.DEFAULT_QUANT), force, no_progress, _ignore)
        return
    from edgeai.exporting import language

    language.prepare(source, output, quant or language.DEFAULT_QUANT, (), force, no_progress, _ignore)


def _ignore(_notice: object) -> None:
    """Take a notice, which comes again when the work is done."""
