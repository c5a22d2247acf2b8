"""Folders for temporary files: gone with their process, and never taken from one that is at work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from converters.scratch import PREFIX, Scratch, sweep

LEAVE = "import os; from converters.scratch import Scratch; print(Scratch().name, flush=True); os.kill(os.getpid(), 9)"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("converters.scratch.SWEPT", set[str]())
    return tmp_path


def test_a_folder_is_removed_with_what_is_in_it(place: Path) -> None:
    with Scratch() as name:
        (Path(name) / "file").write_text("text")
        assert Path(name).parent == place
    assert not list(place.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")
def test_what_a_killed_process_left_is_removed_by_the_next(place: Path) -> None:
    command = [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {str(place)!r}; {LEAVE}"]
    left = Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip())
    (left / "more").mkdir()
    assert left.parent == place
    Scratch().cleanup()
    assert not list(place.iterdir())


def test_a_folder_in_use_and_what_is_none_of_ours_stay(place: Path) -> None:
    (place / f"{PREFIX}file").write_text("mine")
    (place / "other").mkdir()
    (place / f"{PREFIX}link").symlink_to(place / "other")
    with Scratch() as name:
        sweep(place)
        assert Path(name).is_dir()
    assert {path.name for path in place.iterdir()} == {f"{PREFIX}file", "other", f"{PREFIX}link"}
