"""Take an imported model off the grid that it was once quantized on, without changing what it computes.

    python bench/off_grid.py FOLDER OUT [--seed N]

An imported GGUF has weights that lie on the grid of its old type, which its old blocks reproduce without any error: a measurement on it
would favour that type. Random permutations of the residual stream, of the inner units of each MLP and of the dimensions of each value
head move every weight into another block, and the function stays the same. For models with the tensors of Llama or Gemma 3.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROWS = ("o_proj.weight", "down_proj.weight")
"""Matrices that write to the residual stream; all others of a layer read from it."""


def permuted(
    tensors: dict[str, np.ndarray], config: dict[str, object], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return TENSORS with the three kinds of permutation applied."""
    hidden = int(str(config["hidden_size"]))
    heads, kv_heads = int(str(config["num_attention_heads"])), int(str(config["num_key_value_heads"]))
    dim = int(str(config.get("head_dim") or hidden // heads))
    stream = rng.permutation(hidden)
    found = {}
    for name, values in tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            found[name] = values
        elif values.ndim == 1 or name.endswith(ROWS):
            found[name] = values[stream]
        else:
            found[name] = values[:, stream]
    layers = sorted({match.group(1) for name in tensors if (match := re.match(r"(.*layers\.\d+)\.", name))})
    for layer in layers:
        mlp, attention = f"{layer}.mlp", f"{layer}.self_attn"
        units = rng.permutation(len(found[f"{mlp}.up_proj.weight"]))
        for part in ("up_proj", "gate_proj"):
            found[f"{mlp}.{part}.weight"] = found[f"{mlp}.{part}.weight"][units]
        found[f"{mlp}.down_proj.weight"] = found[f"{mlp}.down_proj.weight"][:, units]
        inner = [rng.permutation(dim) for _ in range(kv_heads)]
        values = np.concatenate([head * dim + order for head, order in enumerate(inner)])
        group = heads // kv_heads
        outputs = np.concatenate([head * dim + inner[head // group] for head in range(heads)])
        found[f"{attention}.v_proj.weight"] = found[f"{attention}.v_proj.weight"][values]
        found[f"{attention}.o_proj.weight"] = found[f"{attention}.o_proj.weight"][:, outputs]
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def main() -> None:
    """Write the permuted copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = json.loads((options.folder / "config.json").read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.folder.iterdir():
        if path.suffix == ".safetensors":
            tensors = permuted(load_file(path), config, np.random.default_rng(options.seed))
            save_file(tensors, options.out / path.name, metadata={"format": "pt"})
        elif path.name != "edgeai.json":
            shutil.copy(path, options.out / path.name)


if __name__ == "__main__":
    main()
