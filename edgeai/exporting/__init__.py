"""Export to ONNX: language models, embedders, and whatever else the trainer makes, each in a list of steps of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeai.pipeline import Conversion

__all__ = ["convert_onnx"]


def convert_onnx(source: Path, output: Path | None = None, quant: str | None = None, **options: Any) -> Conversion:
    """Convert the folder SOURCE to ONNX, whatever kind of model it has; OPTIONS are those of `language.convert_language`."""
    from edgeai.exporting.language import DEFAULT_QUANT, convert_language

    return convert_language(source, output, quant or DEFAULT_QUANT, **options)
