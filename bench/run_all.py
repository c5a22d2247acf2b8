"""`make bench`: build the peers if they are missing, then run every bench script against them; `--quick` only shows that they work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peers

HERE = Path(__file__).parent
SCRIPTS = (
    "speed.py",
    "streams.py",
    "stall.py",
    "growth.py",
    "memory.py",
    "worker.py",
    "constraint.py",
    "embed.py",
    "kv_types.py",
    "genai.py",
)


def main() -> None:
    """Run the scripts one after another; each writes its own files in results/."""
    quick = sys.argv[1:2] == ["--quick"]
    cold_start = ["cold_start.py", "--llm", str(peers.llm()), *(["--rounds", "1"] if quick else [])]
    scripts = [cold_start, *([script, *(["--quick"] if quick else [])] for script in SCRIPTS)]
    for script, *arguments in scripts:
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
