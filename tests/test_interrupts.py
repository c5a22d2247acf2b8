"""Ctrl-C is not lost, and ends a program with the exit code that the program says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SWALLOWED = """
import os, signal, time
from edgeai.interrupts import take_ctrl_c
take_ctrl_c()
class Dropped:
    def __del__(self):  # Python drops what is raised in here
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
try:
    Dropped()
    time.sleep(60)
except KeyboardInterrupt:
    print("raised after all")
"""

IN_EXEC = """
import os, signal, sys
{take}
try:
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT); [None for _ in range(1000)]")
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_ctrl_c_that_python_drops_is_raised_again() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.stderr) == ("raised after all\n", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no death by a signal")
@pytest.mark.parametrize(
    ("take", "code"),
    [("from edgeai.interrupts import take_ctrl_c; take_ctrl_c()", 130), ("", -signal.SIGINT)],
    ids=["ours", "python's own"],
)
def test_a_ctrl_c_in_the_middle_of_an_import_ends_with_the_exit_code_of_the_program(
    tmp_path: Path, take: str, code: int
) -> None:
    (tmp_path / "program.py").write_text(IN_EXEC.format(take=take))
    command = [sys.executable, "-m", "program"]
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run(command, check=False, timeout=30, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == code
