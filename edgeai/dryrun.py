"""What a conversion would write, found out without reading a tensor or writing a byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converters import gguf
from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.quantmap import QuantMap
from converters.tokenizer import read_vocabulary
from edgeai.evaluation.passport import no_torch_notice
from edgeai.quantization import Wish, decide, file_keys
from edgeai.types import Notice

__all__ = ["DryRun", "dry_run"]

Notify = Callable[[Notice], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a conversion would write: the type of every tensor, and the exact size of the file."""

    plan: ModelPlan
    quantmap: QuantMap
    bytes: int
    warnings: tuple[Notice, ...] = ()

    @property
    def bpw(self) -> float:
        """Bits for each weight of the model."""
        return self.quantmap.nbytes * 8 / self.plan.parameters

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "dry_run": True,
            "format": "gguf",
            "bytes": self.bytes,
            "tensor_bytes": self.quantmap.nbytes,
            "bpw": round(self.bpw, 4),
            "quant": self.quantmap.label,
            "types": self.quantmap.counts(),
            "share": round(self.quantmap.share(), 4),
            "fallback_share": round(self.quantmap.fallback_share(), 4),
            "tensors": [
                {"name": tensor.name, "shape": list(tensor.shape), **asdict(self.quantmap.choices[tensor.name])}
                for tensor in self.plan.tensors
            ],
            "warnings": [asdict(notice) for notice in self.warnings],
        }


def dry_run(
    source: Path, wish: Wish, *, allow_inexact_tokenizer: bool = False, notify: Notify = lambda _notice: None
) -> DryRun:
    """Return what `convert` would write, reading no tensor and writing nothing. Raises what its preflight raises."""
    checkpoint = open_checkpoint(source)
    plan = plan_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=allow_inexact_tokenizer)
    notices: list[Notice] = []

    def say(code: str, message: str) -> None:
        notices.append(Notice(code=code, message=message))
        notify(notices[-1])

    for code, message in (*plan.warnings, *vocabulary.warnings):
        say(code, message)
    quantization = decide(wish, plan, checkpoint, say, force=True)
    if (warning := quantization.quantmap.warning()) is not None:
        say(*warning)
    keys = file_keys(
        checkpoint, plan, quantization, "0" * 64, torch=no_torch_notice(plan) is None
    )  # every sha256 is as long
    return DryRun(
        plan=plan,
        quantmap=quantization.quantmap,
        bytes=gguf.file_bytes(plan, vocabulary, quantization.quantmap, keys),
        warnings=tuple(notices),
    )
