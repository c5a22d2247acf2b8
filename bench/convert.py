"""A Hugging Face folder → Q4_K_M: `edgeai convert` against llama.cpp's reference converter and llama-quantize, in turns.

    python bench/convert.py FOLDER [--llama-cpp DIR --quantize PROGRAM] [--rounds 3]
    python bench/convert.py FOLDER --grow 10 270 1000     random Llama models of so many million parameters, with FOLDER's tokenizer

FOLDER is a bf16 checkpoint with a tokenizer that the reference converter knows (SmolLM2). What edgeai spends on its proof, which the
peer has none of, is taken off its time and reported apart; memory is that of the largest process, without and with the proof.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from measure import save

QUANT = "q4_k_m"
WATCH = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, "
    "stderr=subprocess.DEVNULL).returncode; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def ours(folder: Path, out: Path) -> dict[str, float]:
    """Convert FOLDER with edgeai; return seconds and megabytes, proof apart."""
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "edgeai",
        "convert",
        folder,
        "--quant",
        QUANT,
        "-o",
        out,
        "--force",
        "--json",
        "-q",
    ]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    wall = time.perf_counter() - began
    told = json.loads(done.stdout)
    return {
        "time_s": wall - told["timings"]["proof_s"],
        "peak_rss_mb": told["peak_rss_bytes"] / 1e6,
        "proof_s": told["timings"]["proof_s"],
        "proof_peak_rss_mb": told["proof_peak_rss_bytes"] / 1e6,
        "bytes": told["bytes"],
    }


def theirs(folder: Path, out: Path, source: Path, quantize: Path) -> dict[str, float]:
    """Convert FOLDER with the reference converter to bf16 and quantize that; return seconds and megabytes."""
    whole = out.with_suffix(".bf16.gguf")
    steps = (
        [sys.executable, source / "convert_hf_to_gguf.py", folder, "--outtype", "bf16", "--outfile", whole],
        [quantize, whole, out, QUANT.upper()],
    )
    environment = {**os.environ, "PYTHONPATH": str(source / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    found: dict[str, float] = {"time_s": 0.0, "peak_rss_mb": 0.0}
    for name, step in zip(("convert_s", "quantize_s"), steps, strict=True):
        began = time.perf_counter()
        command = [sys.executable, "-c", WATCH, *(str(part) for part in step)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[name] = time.perf_counter() - began
        found["time_s"] += found[name]
        found["peak_rss_mb"] = max(found["peak_rss_mb"], int(done.stdout) * 1024 / 1e6)  # Linux counts in KiB
    found["bytes"] = out.stat().st_size
    whole.unlink()
    return found


def compare(folder: Path, source: Path, quantize: Path, rounds: int) -> dict[str, Any]:
    """Measure both in turns on FOLDER; return the medians and the ratios ours / theirs."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        for _ in range(rounds):
            runs["ours"].append(ours(folder, Path(name) / "ours.gguf"))
            runs["theirs"].append(theirs(folder, Path(name) / "theirs.gguf", source, quantize))
    medians = {
        side: {key: statistics.median(run[key] for run in found) for key in found[0]} for side, found in runs.items()
    }
    ratios = {key: medians["ours"][key] / medians["theirs"][key] for key in ("time_s", "peak_rss_mb")}
    return {**medians, "ratios": ratios, "rounds": rounds}


def layers_for(millions: int, vocab: int, hidden: int) -> float:
    """Return how many layers of a Llama with tied embeddings make MILLIONS of parameters."""
    return (millions * 1e6 - vocab * hidden) / (12 * hidden * hidden)


def grow(folder: Path, millions: int, place: Path) -> Path:
    """Write a random bf16 Llama model of about MILLIONS of parameters with FOLDER's tokenizer into PLACE."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    vocab = config["vocab_size"]
    hidden = min(range(128, 4096, 64), key=lambda size: abs(layers_for(millions, vocab, size) - size / 40))
    layers = round(layers_for(millions, vocab, hidden))
    torch.manual_seed(1)
    shape = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3 // 32 * 32, "num_hidden_layers": layers}
    torch.set_default_dtype(torch.bfloat16)
    settings = LlamaConfig(
        vocab_size=vocab, num_attention_heads=hidden // 64, tie_word_embeddings=True, max_position_embeddings=2048,
        bos_token_id=config.get("bos_token_id"), eos_token_id=config.get("eos_token_id"), **shape,
    )  # fmt: skip
    target = place / f"random-{millions}m"
    LlamaForCausalLM(settings).save_pretrained(target)
    for side in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / side).exists():
            shutil.copy(folder / side, target)
    return target


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources  [default: those of the peers]")
    parser.add_argument("--quantize", type=Path, help="the llama-quantize program  [default: built as a peer]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", type=int, nargs="*", default=[], metavar="MILLIONS")
    arguments = parser.parse_args()
    source = arguments.llama_cpp or peers.llama_sources()
    quantize = arguments.quantize or peers.llama_tool("llama-quantize")
    results: dict[str, Any] = {"model": arguments.folder.name, "quant": QUANT}
    if not arguments.grow:
        save("convert", results | compare(arguments.folder, source, quantize, arguments.rounds))
        return
    for millions in arguments.grow:
        with tempfile.TemporaryDirectory() as name:
            made = grow(arguments.folder, millions, Path(name))
            results[f"{millions}M"] = compare(made, source, quantize, arguments.rounds)
    save("convert_growth", results)


if __name__ == "__main__":
    main()
