"""Write a LoRA adapter as a GGUF file that libllama loads beside its base: `<tensor>.lora_a` and `.lora_b`, and one alpha for all.

The runtime multiplies B A by alpha / rank (llama-adapter.h, `get_scale`), so what a matrix needs beyond that goes into its B. Rows of B
are reordered as those of the base matrix are. Keys: `LLM_KV_ADAPTER_…` in llama-arch.cpp.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import ModelPlan, TensorPlan
from converters.gguf import collector, pad, write_header
from converters.lora import Adapter, Pair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["check_adapter", "write_adapter"]

MERGE = "merge it into the base: --merge"


def check_adapter(plan: ModelPlan, adapter: Adapter) -> dict[str, tuple[TensorPlan, Pair]]:
    """Return GGUF tensor → (its plan, the pair); raises UnsupportedModel for what an adapter file cannot hold."""
    if adapter.dora:
        raise UnsupportedModel("the adapter is DoRA, which an adapter file cannot hold", hint=MERGE)
    if adapter.replaced:
        names = ", ".join(sorted(adapter.replaced)[:4])
        raise UnsupportedModel(
            f"the adapter replaces whole tensors ({names}), which an adapter file cannot hold", hint=MERGE
        )
    found: dict[str, tuple[TensorPlan, Pair]] = {}
    for name, pair in adapter.pairs.items():
        plans = [tensor for tensor in plan.tensors if any(source.name == name for source in tensor.sources)]
        simple = len(plans) == 1 and not plans[0].stacked and not plans[0].first_row and plans[0].factor == 1.0
        if not simple:
            raise UnsupportedModel(
                f"{name!r} is not one whole matrix of the file, so it can have no adapter", hint=MERGE
            )
        if pair.embedding and not plans[0].name.startswith("token_embd"):
            raise UnsupportedModel(
                f"{name!r} is no table of tokens, so the runtime takes no adapter for it", hint=MERGE
            )
        if pair.embedding and plan.tied:
            raise UnsupportedModel(f"{name!r} is the output matrix too, so it can have no adapter")
        found[plans[0].name] = plans[0], pair
    return found


def write_adapter(
    path: Path, plan: ModelPlan, adapter: Adapter, keys: Mapping[str, str], alpha: float | None = None
) -> None:
    """Write ADAPTER for the base PLAN to PATH in F32. ALPHA is the one number of the file, by default what most matrices need."""
    import numpy as np

    matrices = check_adapter(plan, adapter)
    if alpha is None:
        alpha = Counter(pair.scale * pair.rank for _, pair in matrices.values()).most_common(1)[0][0]
    writer = collector(plan.architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in keys.items():
        writer.add_string(key, value)
    data: dict[str, F32] = {}
    for tensor, pair in matrices.values():
        a, b = halves(tensor, pair, alpha)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise BrokenCheckpoint(
                f"the adapter's matrices for {pair.target!r} have values that are not finite numbers",
                hint="the training that made them went wrong, or the file is damaged",
            )
        data[f"{tensor.name}.lora_a"], data[f"{tensor.name}.lora_b"] = a, b
    with path.open("wb") as file:
        write_header(file, writer, [(name, rows.shape, "F32", rows.size * 4) for name, rows in data.items()])
        for rows in data.values():
            file.write(np.ascontiguousarray(rows, "<f4").tobytes())
            pad(file, rows.size * 4)
        file.flush()
        os.fsync(file.fileno())


def halves(tensor: TensorPlan, pair: Pair, alpha: float) -> tuple[F32, F32]:
    """Return A and B as the file holds them: B with its rows in the file's order and with what ALPHA / rank leaves to be multiplied."""
    a, b = pair.matrices()
    rest = pair.scale / (alpha / pair.rank)
    b = b if rest == 1.0 else b * a.dtype.type(rest)
    if pair.embedding:
        return a.T, b
    if tensor.transform:
        b = tensor.transform(b, tensor.block_rows)
    return a, b
