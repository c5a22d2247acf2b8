"""The real models that are measured: those of the catalogue, and SmolLM2 in the types that matter, made with llama.cpp's
own quantizer.

    python bench/models.py           fetches or makes what is missing and prints the paths as JSON

What a weight is worth does not matter for speed, so the files are quantized from the catalogue's Q4_1 file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peers

QUANTIZED = {"smollm2-q4_0": "Q4_0", "smollm2-q4_k_m": "Q4_K_M"}
NAMES = ("smollm2-q4_0", "smollm2-q4_k_m", "gemma3-270m")


def model(name: str) -> Path:
    """Return the file of NAME: one of NAMES, a name of the catalogue, or a path."""
    if name in QUANTIZED:
        return quantized(QUANTIZED[name])
    from edgeai.store import Store
    from edgeai.types import no_progress

    store = Store.open()
    if Path(name).suffix == ".gguf" or store.entry(name) is None:
        return store.find(name)
    return store.pull(name, no_progress)


def quantized(kind: str) -> Path:
    """Return SmolLM2 in the type KIND."""
    path = peers.folder() / "models" / f"SmolLM2-135M-Instruct.{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        tool = peers.llama_tool("llama-quantize")
        command = [tool, "--allow-requantize", model("smollm2"), whole, kind]
        subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        whole.rename(path)
    return path


if __name__ == "__main__":
    print(json.dumps({name: str(model(name)) for name in NAMES}))
