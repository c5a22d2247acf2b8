"""`make bench`: build the peers if they are missing, then run every bench script against them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peers

HERE = Path(__file__).parent


def main() -> None:
    """Run the scripts one after another; each writes its own file in results/."""
    for script, *arguments in (
        ("cold_start.py", "--llm", str(peers.llm())),
        ("speed.py", "--llama-bench", str(peers.llama_tool("llama-bench"))),
    ):
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
