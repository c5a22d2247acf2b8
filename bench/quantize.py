"""Are the tensors that edgeai writes, byte for byte, those of the llama-quantize program? With and without an importance matrix.

    python bench/quantize.py FOLDER [--quants q4_k_m iq2_m …] [--text TEXT] [--quantize PROGRAM] [--imatrix PROGRAM]

FOLDER is a Hugging Face checkpoint. Its importance matrix is computed twice over TEXT, here in torch and by llama-imatrix; how far
apart they are is said, and llama-quantize gets ours, which shows that it reads it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
from measure import save

from converters.calibration import calibrate
from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.gguf import write_model
from converters.header import read_header
from converters.importance import ImportanceMatrix, read_importance, usable, write_importance
from converters.mixes import NEEDS_IMPORTANCE
from converters.quantmap import plan_types
from converters.tokenizer import Vocabulary, read_vocabulary

QUANTS = [
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_0",
    "q5_1",
    "q4_k_m",
    "q4_k_s",
    "q4_0",
    "q4_1",
    "iq4_nl",
    "iq4_xs",
    "q3_k_m",
    "q2_k",
]
INFORMED = [
    "q5_k_m",
    "q4_k_m",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "q3_k_m",
    "iq3_s",
    "iq3_xxs",
    "q2_k",
    "q2_k_s",
    "iq2_m",
    "iq2_xs",
]


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return tensor → (type, bytes) of a GGUF file."""
    data = path.read_bytes()
    return {item.name: (item.type, data[item.offset : item.offset + item.nbytes]) for item in read_header(path).tensors}


def distance(left: ImportanceMatrix, right: ImportanceMatrix) -> dict[str, float]:
    """Return how far the means of two matrices are apart: the worst correlation over tensors, and the median relative difference."""
    worst, apart = 1.0, []
    for name in left.sums:
        means = [np.ravel(side.sums[name] / side.counts[name][:, None]) for side in (left, right)]
        worst = min(worst, float(np.corrcoef(*means)[0, 1]))
        apart.append(float(np.median(np.abs(means[0] / np.maximum(means[1], 1e-12) - 1))))
    return {"tensors": len(left.sums), "worst_correlation": worst, "median_difference": float(np.median(apart))}


def same(
    work: Path, plan: ModelPlan, vocabulary: Vocabulary, quant: str, quantize: Path, matrix: Path | None
) -> dict[str, Any]:
    """Write QUANT both ways and return in how many tensors the files differ."""
    ours, theirs, export = work / "ours.gguf", work / "theirs.gguf", work / "f32.gguf"
    rows = usable(read_importance(matrix), plan, "it").rows if matrix else None
    types = plan_types(plan, quant.upper(), importance=rows)
    write_model(ours, plan, vocabulary, types, {}, threads=2, importance=rows)
    options = ["--imatrix", str(matrix)] if matrix else []
    command = [str(quantize), *options, str(export), str(theirs), quant, "2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found, expected = tensors(ours), tensors(theirs)
    different = sorted(name for name in expected if found.get(name) != expected[name])
    row = {"quant": quant, "imatrix": matrix is not None, "tensors": len(expected), "different": different}
    print(
        f"{quant:8s} {'with' if matrix else 'without'} importance: {len(different)} of {len(expected)} tensors differ",
        flush=True,
    )
    return row


def main() -> int:
    """Compare all types; the exit code says whether all were the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quants", nargs="*", default=None)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--quantize", type=Path)
    parser.add_argument("--imatrix", type=Path)
    options = parser.parse_args()
    quantize = options.quantize or peers.llama_tool("llama-quantize")
    checkpoint = open_checkpoint(options.folder)
    plan = plan_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size)
    result: dict[str, Any] = {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "f32.gguf", plan, vocabulary, plan_types(plan, "F32"), {}, threads=2)
        matrix = None
        if options.text:
            found = calibrate(checkpoint.path, plan, vocabulary, options.text, tokens=1 << 20, threads=2).matrix
            matrix, theirs = work / "imatrix.gguf", work / "theirs.imatrix.gguf"
            write_importance(matrix, found)
            program = options.imatrix or peers.llama_tool("llama-imatrix")
            command = [program, "-m", work / "f32.gguf", "-f", options.text, "-o", theirs, "-c", "512", "-ngl", "0"]
            subprocess.run([*map(str, command), "--no-ppl"], check=True, stdout=sys.stderr)
            result["importance"] = distance(found, read_importance(theirs))
            print(result["importance"], flush=True)
        for quant in options.quants or QUANTS:
            if quant.upper() not in NEEDS_IMPORTANCE:
                result["rows"].append(same(work, plan, vocabulary, quant, quantize, None))
        for quant in (options.quants or INFORMED) if matrix else ():
            result["rows"].append(same(work, plan, vocabulary, quant, quantize, matrix))
    save(f"quantize_{options.folder.name}", result)
    return int(any(row["different"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
