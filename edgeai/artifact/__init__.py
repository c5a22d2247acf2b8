"""Open a path and state its facts; no weights are loaded.

A GGUF file, a Hugging Face folder, an ONNX file or a folder with one becomes one `Artifact`, read from checked headers only
(`converters.header`, `converters.weight_files`, `converters.onnx.header`).
"""

from __future__ import annotations

import os
from pathlib import Path

from converters.header import read_header
from edgeai.artifact.facts import Artifact
from edgeai.artifact.folder import open_folder
from edgeai.artifact.gguf import claimed_quant, dominant, open_gguf
from edgeai.artifact.onnx import GENAI_CONFIG, MODEL, open_language_model, open_onnx
from edgeai.errors import InvalidModel, ModelNotFound

__all__ = ["Artifact", "claimed_quant", "dominant", "open_artifact", "open_gguf"]


def open_artifact(path: Path) -> Artifact:
    """Return the facts of the model PATH: a GGUF or ONNX file, a folder with an ONNX model, or a Hugging Face folder.

    Raises ModelNotFound when there is nothing at PATH, InvalidModel when it is not a whole and valid model.
    """
    # os.path says no where pathlib raises: for a name too long, or with a zero byte
    if os.path.isdir(path):  # noqa: PTH112
        if (path / GENAI_CONFIG).exists():
            return open_language_model(path)
        return open_onnx(path / MODEL, folder=True) if (path / MODEL).exists() else open_folder(path)
    if not os.path.exists(path):  # noqa: PTH110
        raise ModelNotFound(f"{str(path)!r} is not there", hint="check the path, or see `edgeai list --all` for names")
    beside = {".safetensors": "config.json", ".onnx": GENAI_CONFIG}.get(path.suffix)
    if beside is not None and (path.parent / beside).exists():
        raise InvalidModel(f"{str(path)!r} is one file of a model", hint=f"name its folder: {str(path.parent)!r}")
    return open_onnx(path) if path.suffix == ".onnx" else open_gguf(read_header(path))
