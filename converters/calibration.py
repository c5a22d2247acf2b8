"""Compute an importance matrix: run the source model over a text in torch, in a child process, and sum what its matrices get to see."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from converters.child import Child, ChildFailed
from converters.errors import ConvertError, WrongChoice
from converters.families import ModelPlan
from converters.importance import ImportanceMatrix, read_text
from converters.mixes import EMBEDDING, OUTPUT, part_of
from converters.quantmap import is_matrix
from converters.tokenizer import Vocabulary

__all__ = ["DEFAULT_TOKENS", "WINDOW", "Calibration", "calibrate", "check_calibration", "reachable"]

CHILD = Path(__file__).with_name("importance_child.py")
WINDOW = 512
"""Tokens that are run together; llama-imatrix's default too."""
DEFAULT_TOKENS = 8192
"""Measurements of llama.cpp find hardly any gain beyond a thousand (tools/perplexity/README.md, the table of imatrix sizes)."""
FEW_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A computed matrix, how many tokens it is computed on, and warnings."""

    matrix: ImportanceMatrix
    tokens: int
    warnings: tuple[tuple[str, str], ...] = field(default=())


def reachable(plan: ModelPlan) -> dict[str, str]:
    """Return tensor → name of its weight in the checkpoint, for the matrices of the layers: what `calibrate` sums the inputs of."""
    return {
        tensor.name: tensor.sources[0].name
        for tensor in plan.tensors
        if is_matrix(tensor) and tensor.sources and part_of(tensor.name) not in (EMBEDDING, OUTPUT)
    }


def check_calibration(text: Path, tokens: int) -> None:
    """Raise unless TEXT can be read and torch is there: what can be known before the work."""
    if tokens < 1:
        raise WrongChoice(f"{tokens} calibration tokens are asked for", hint=f"the default is {DEFAULT_TOKENS}")
    read_text(text)
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ConvertError(
                f"{name} is not installed, and an importance matrix is computed with it",
                hint="pip install 'edgeai[convert]', or give the file of a matrix: --imatrix FILE",
            )


def calibrate(
    source: Path,
    plan: ModelPlan,
    vocabulary: Vocabulary,
    text: Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run the model in the folder SOURCE over up to TOKENS tokens of TEXT, in windows of `WINDOW`, taken from all over it.

    PROGRESS gets windows done and in all. Memory is that of the float32 weights and of one window. Special tokens written in the text
    are text. Raises ConvertError where transformers cannot run the model, WrongChoice for a text that is too short.
    """
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    request = {
        "source": str(source.resolve()),
        "text": str(text.resolve()),
        "sources": reachable(plan),
        "before": list(vocabulary.before),
        "after": list(vocabulary.after),
        "window": max(2, min(WINDOW, plan.context, tokens)),
        "tokens": tokens,
        "threads": threads,
    }
    with Child(CHILD, request, what="computing the importance matrix") as child:
        try:
            answer = child.result(progress)
        except ChildFailed as error:
            raise ConvertError(
                f"the importance matrix cannot be computed from {str(text)!r}: {error.reason}",
                hint="give a longer text, or the file of a matrix: --imatrix FILE",
            ) from error
        matrix = load(child.path / "sums.npz", answer["targets"], answer["windows"], answer["window"], digest)
    few = answer["tokens"] < min(FEW_TOKENS, tokens)
    message = f"the calibration text gives {answer['tokens']} tokens, and an importance matrix of fewer than {FEW_TOKENS} says more "
    message += "about the text than about the model"
    return Calibration(
        matrix=matrix, tokens=answer["tokens"], warnings=(("calibration-short", message),) if few else ()
    )


def load(path: Path, targets: dict[str, int], chunks: int, window: int, digest: str) -> ImportanceMatrix:
    """Return the matrix in the child's file. The text is named by its sha256 and not by its path, which is nobody's business."""
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        sums = {name: arrays[f"v{index}"] for name, index in targets.items()}
        counts = {name: arrays[f"c{index}"] for name, index in targets.items()}
    return ImportanceMatrix(
        sums=sums, counts=counts, chunks=chunks, window=window, datasets=(f"text with sha256 {digest}",)
    )
