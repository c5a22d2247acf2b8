from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from converters.errors import OutputError
from converters.output import OutputFile, check_output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source é"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def check(output: Path, source: Path, *, force: bool = False) -> None:
    check_output(output, source, list(source.iterdir()), force=force)


def test_a_new_file_beside_the_source_is_fine(source: Path, tmp_path: Path) -> None:
    check(tmp_path / "out.gguf", source)


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard", "symbolic"])
def test_the_input_is_recognised_through_links(source: Path, tmp_path: Path, link: object) -> None:
    assert callable(link)
    link(source / "model.safetensors", tmp_path / "out.gguf")
    with pytest.raises(OutputError, match="is the input"):
        check(tmp_path / "out.gguf", source, force=True)


def test_a_file_inside_the_source_is_refused_even_through_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for folder in (source, tmp_path / "link"):
        with pytest.raises(OutputError, match="inside the source"):
            check(folder / "out.gguf", source)


def test_an_existing_file_needs_force(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"old")
    with pytest.raises(OutputError, match="there already"):
        check(tmp_path / "out.gguf", source)
    check(tmp_path / "out.gguf", source, force=True)


def test_a_folder_is_no_output(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check(tmp_path, source, force=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_device_or_pipe_is_never_replaced(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path(os.devnull)):
        with pytest.raises(OutputError, match="no regular file"):
            check(path, source, force=True)


@pytest.mark.parametrize("parent", ["nowhere", "source é/model.safetensors"])
def test_the_folder_must_be_there(source: Path, tmp_path: Path, parent: str) -> None:
    with pytest.raises(OutputError, match=r"does not exist|is not a folder"):
        check(tmp_path / parent / "out.gguf", source)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with OutputFile(Path("/proc/out.gguf")) as out, pytest.raises(OutputError, match="cannot be written"):
        out.temporary()


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), OutputFile(tmp_path / "out.gguf") as out:
        out.temporary().write_bytes(b"half")
        out.temporary()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_commit_replaces_the_old_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"old")
    with OutputFile(tmp_path / "out.gguf") as out:
        path = out.temporary()
        path.write_bytes(b"new")
        assert (tmp_path / "out.gguf").read_bytes() == b"old"
        out.commit(path)
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("out.gguf", b"new")]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from converters.output import OutputFile\n"
    code += "OutputFile(Path(sys.argv[1])).temporary().write_bytes(b'half'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.gguf")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with OutputFile(tmp_path / "out.gguf"):
        assert list(tmp_path.iterdir()) == []


def test_work_in_progress_and_other_names_are_left_alone(tmp_path: Path) -> None:
    others = [".out.gguf.notours.edgeai-part", ".out.gguf.edgeai-part", ".other.gguf.0a1b2c3d.edgeai-part"]
    for name in others:
        (tmp_path / name).touch()
    with OutputFile(tmp_path / "out.gguf") as first:
        mine = first.temporary()
        with OutputFile(tmp_path / "out.gguf"):
            assert {item.name for item in tmp_path.iterdir()} == {mine.name, *others}


def test_a_name_of_the_greatest_length_still_has_a_temporary_one(tmp_path: Path) -> None:
    with OutputFile(tmp_path / ("é" * 125 + ".gguf")) as out:
        path = out.temporary()
        out.commit(path)
    assert len(list(tmp_path.iterdir())) == 1
