"""A file that kills the native library is found out in a child, once, and the parent lives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from converters.header import read_header
from edgeai import vetting
from edgeai.errors import InvalidModel
from edgeai.model import Model, open_engine
from edgeai.vetting import vet


def with_value(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """Write SOURCE to TARGET with one value of its header changed."""
    data = source.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) >= 1
    target.write_bytes(data.replace(old, new, 1))
    read_header(target)  # what our own check refuses never gets to native code
    return target


EPSILON = b"llama.attention.layer_norm_rms_epsilon\x06\x00\x00\x00"
LAYERS = b"llama.block_count\x04\x00\x00\x00"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (EPSILON + b"\xac\xc5\x27\x37", EPSILON + b"\x00\x00\x80\xbf"),
        (LAYERS + b"\x02\x00\x00\x00", LAYERS + b"\x00\x00\x00\x00"),
    ],
    ids=["epsilon -1", "no layers"],
)
def test_a_file_that_kills_the_library_is_an_invalid_model(
    tiny_gguf: Path, tmp_path: Path, old: bytes, new: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = with_value(tiny_gguf, tmp_path / "hostile.gguf", old, new)
    with pytest.raises(InvalidModel) as caught:
        open_engine(path)
    assert caught.value.exit_code == 3
    assert capfd.readouterr().out == ""


def test_a_good_file_is_asked_once(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = vetting.run_module

    def run(module: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        asked.append(arguments[0])
        return real(module, *arguments, timeout_s=timeout_s)

    monkeypatch.setattr(vetting, "run_module", run)
    copy = tmp_path / "é 模型.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    for _ in range(2):
        vet(copy, tmp_path / "cache", extra_bufts=True)
    assert asked == [str(copy)]
    copy.write_bytes(tiny_gguf.read_bytes() + b"")
    vet(copy, tmp_path / "cache", extra_bufts=True)
    assert len(asked) == 2  # the file has been written again


def test_only_so_many_files_are_remembered(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "REMEMBERED", 3)
    monkeypatch.setattr(vetting, "run_module", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    for index in range(6):
        path = tmp_path / f"{index}.gguf"
        path.write_bytes(b"x")
        vet(path, tmp_path, extra_bufts=True)
    known = json.loads((tmp_path / "vetted.json").read_text())
    assert [Path(key.split(" ")[0]).stem for key in known] == ["3", "4", "5"]


def test_a_good_model_answers_after_vetting(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf)) as model:
        assert model.complete("The", max_tokens=1).text is not None
