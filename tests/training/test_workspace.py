from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.errors import DoesNotFit, OutputError
from edgeai.training.workspace import open_workspace, write_whole


def test_folder_with_files_of_the_user_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"'thesis.tex'"), open_workspace(tmp_path, resume=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    with pytest.raises(OutputError, match="'run'"), open_workspace(tmp_path, resume=False):
        pass
    assert (tmp_path / "run" / "notes").read_text() == "mine"


def test_empty_folder_is_taken_and_stays_when_nothing_came_of_it(tmp_path: Path) -> None:
    with open_workspace(tmp_path, resume=False) as space:
        assert space.run.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OutputError, match="is a file"), open_workspace(path, resume=False):
        pass
    with pytest.raises(OutputError, match="cannot be written"), open_workspace(path / "sub", resume=False):
        pass


def test_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        open_workspace(tmp_path, resume=False) as space,
        pytest.raises(OutputError, match="another process"),
        open_workspace(tmp_path, resume=False),
    ):
        pass
    assert space.folder == tmp_path


def test_leftover_of_a_killed_process_goes(tmp_path: Path) -> None:
    with open_workspace(tmp_path, resume=False) as space:
        (space.run / "step-000000001.pt").touch()
        (space.run / ".step-000000002.pt.tmp").touch()
    with open_workspace(tmp_path, resume=True) as space:
        assert not list(space.run.glob(".*.tmp"))


def test_git_ignores_the_working_state(tmp_path: Path) -> None:
    with open_workspace(tmp_path, resume=False) as space:
        assert (space.run / ".gitignore").read_text() == "*\n"


def test_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("old")
    with pytest.raises(DoesNotFit, match="No space left"):
        write_whole(tmp_path / "file", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
