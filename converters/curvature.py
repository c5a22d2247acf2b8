"""How much an error in each weight would change what a model says: measured in torch, in a child process, on texts of its kind.

`curvature_child.py` says what is summed and why. The sums lie in files, one matrix for all tensors with the same input, so that memory
is that of the child for one part of the model and here that of one matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.child import Child, ChildFailed
from converters.errors import ConvertError
from converters.families import ModelPlan, TensorPlan
from converters.mixes import EMBEDDING, OUTPUT, part_of
from converters.quantmap import is_matrix

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["BUDGET", "FACTS", "Curvature", "Texts", "measure_curvature", "open_curvature"]

CHILD = Path(__file__).with_name("curvature_child.py")
BUDGET = 2 << 30
"""Bytes of sums that the child holds at once; a larger model is run several times."""
FACTS = "curvature.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a model is run over: `windows` of token ids, and `generated` texts of `length` tokens that it writes itself from `starts`.

    The same `seed` and number of `threads` give the same sums on the same machine.
    """

    windows: Sequence[Sequence[int]]
    generated: int = 0
    length: int = 0
    starts: Sequence[Sequence[int]] = ()
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """The sums in `folder`: `places` is tensor → the number of its matrix. `tokens` were read in `texts` texts, of each of which one
    prediction was made where it counts as a `whole`. `rounding` is tensor → length of a block → what it costs, in nats of KL, that a
    processor rounds the tensor's inputs to 8 bits in such blocks."""

    folder: Path
    places: Mapping[str, int]
    tokens: int
    texts: int
    whole: bool = False
    rounding: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def columns(self, name: str) -> F32:
        """Return the weighted products of the inputs of the tensor NAME, (columns, columns)."""
        flat = self._read(f"H{self.places[name]}.f32")
        size = math.isqrt(len(flat))
        return flat.reshape(size, size)

    def rounded(self, name: str, block: int) -> float:
        """Return what rounding its inputs in blocks of BLOCK costs the tensor NAME, in nats: nothing for an embedding that is looked up."""
        return self.rounding.get(name, {}).get(str(block), 0.0)

    def importance(self, name: str) -> F32:
        """Return the weighted mean squares of the inputs of NAME, (1, columns): its importance matrix."""
        import numpy as np

        return np.ascontiguousarray(self.columns(name).diagonal()[None])

    def plain(self, name: str) -> F32:
        """Return the mean squares of the inputs of NAME as llama-imatrix has them, (1, columns)."""
        return self._read(f"A{self.places[name]}.f32")[None]

    def rows(self, tensor: TensorPlan) -> F32:
        """Return how much each row of TENSOR matters, (rows,), in the order that it has in the file."""
        import numpy as np

        flat = self._read(f"{tensor.name}.G.f32")
        flat = flat[tensor.first_row : tensor.first_row + tensor.shape[0]]
        if tensor.transform is None or not reorders(tensor):
            return flat
        return np.ascontiguousarray(tensor.transform(flat[:, None], tensor.block_rows)[:, 0])

    def source_rows(self, name: str) -> F32:
        """Return how much each row of the tensor NAME matters, (rows,), in the order that the source has them."""
        return self._read(f"{name}.G.f32")

    def _read(self, name: str) -> F32:
        import numpy as np

        return np.fromfile(self.folder / name, "<f4")


def reorders(tensor: TensorPlan) -> bool:
    """Whether the transform of TENSOR moves rows; others change values, which no vector of weights follows."""
    import numpy as np

    assert tensor.transform is not None  # noqa: S101 - asked of those that have one
    probe = np.zeros((tensor.block_rows, 1), np.float32)
    return not tensor.transform(probe, tensor.block_rows).any()


def sources(plan: ModelPlan) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return tensor → name of its weight for the matrices of the layers, and which tensors are the ends of the model."""
    inner, ends = {}, {}
    for tensor in plan.tensors:
        if not is_matrix(tensor) or not tensor.sources:
            continue
        part = part_of(tensor.name)
        if tensor.name == "token_embd.weight":
            tied = all(other.name != "output.weight" for other in plan.tensors) and plan.pooling is None
            ends["both" if tied else "embedding"] = [tensor.name]
        elif part == OUTPUT:
            ends["output"] = [tensor.name]
        elif part != EMBEDDING and not tensor.stacked:
            inner[tensor.name] = tensor.sources[0].name
    return inner, ends


def measure_curvature(
    source: Path, plan: ModelPlan, texts: Texts, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Curvature:
    """Run the model in the folder SOURCE over TEXTS and leave the sums in FOLDER, which is empty.

    Raises ConvertError where transformers cannot run the model.
    """
    inner, ends = sources(plan)
    request: dict[str, Any] = {
        "source": str(source.resolve()),
        "class": "AutoModelForCausalLM" if plan.pooling is None else "AutoModel",
        "pooling": plan.pooling,
        "sources": inner,
        "ends": ends,
        "texts": [list(map(int, window)) for window in texts.windows],
        "generated": texts.generated,
        "generated_length": texts.length,
        "starts": [list(start) for start in texts.starts],
        "seed": texts.seed,
        "threads": texts.threads,
        "budget": BUDGET,
        "folder": str(folder.resolve()),
    }
    with Child(CHILD, request, what="finding out which weights matter") as child:
        try:
            answer = child.result(progress)
        except ChildFailed as error:
            raise ConvertError(
                f"which weights matter cannot be found out, because torch does not run {str(source)!r}: {error.reason}",
                hint="give the quant type instead: --quant q4_k_m",
            ) from error
    facts = {
        **{name: answer[name] for name in ("targets", "tokens", "texts", "rounding")},
        "whole": plan.pooling is not None,
    }
    (folder / FACTS).write_text(json.dumps(facts, sort_keys=True))
    return open_curvature(folder)


def open_curvature(folder: Path) -> Curvature:
    """Return the sums that an earlier measurement left in FOLDER."""
    facts = json.loads((folder / FACTS).read_text())
    return Curvature(
        folder=folder,
        places=facts["targets"],
        tokens=facts["tokens"],
        texts=facts["texts"],
        whole=facts["whole"],
        rounding=facts["rounding"],
    )
