"""The native library is loaded quietly, cheaply, and without harm to whoever uses the whole package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeai import native
from edgeai.errors import DeviceUnavailable, EngineCrashed
from edgeai.selftest import write_probe_model


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_the_whole_package_can_be_imported_afterwards() -> None:
    code = (
        "from edgeai import native; lib = native.library(); import sys; assert 'numpy' not in sys.modules;"
        "import llama_cpp; assert llama_cpp.Llama; assert llama_cpp.llama_cpp is lib; print('ok')"
    )
    assert python(code).stdout == "ok\n"


def test_the_whole_package_can_be_imported_before() -> None:
    code = "import llama_cpp; from edgeai import native; assert native.library() is llama_cpp.llama_cpp; print('ok')"
    assert python(code).stdout == "ok\n"


def test_loading_a_model_prints_nothing(tiny_gguf: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeai.model import *;"
        "m = Model(open_engine(Path(sys.argv[1]))); m.complete('a', max_tokens=2); m.close()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_gguf)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_reasons_are_kept_when_the_whole_package_has_taken_the_log(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_probe_model(path, types=("F16",))
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"))
    code = (
        "import sys; from pathlib import Path; from edgeai.model import open_engine\nimport llama_cpp\n"
        "try: open_engine(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "ffn_up" in done.stdout
    assert done.stderr == ""


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DeviceUnavailable) as caught:
        native.library_dir()
    assert "pip install llama-cpp-python" in (caught.value.hint or "")


def test_a_library_that_does_not_load_is_an_error_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "libllama.so").write_bytes(b"not a library")
    done = python("from edgeai.cli import main; main()", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.returncode in {0, 2}  # help needs no library
    code = (
        "from edgeai import native, errors\n"
        "try: native.library()\nexcept errors.EdgeAIError as error: print(type(error).__name__)"
    )
    assert python(code, LLAMA_CPP_LIB_PATH=str(tmp_path)).stdout == f"{EngineCrashed.__name__}\n"


def test_a_rebuilt_library_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "library_dir", lambda: tmp_path)
    (tmp_path / "libllama.so").write_bytes(b"one")
    first = native.fingerprint()
    (tmp_path / "libllama.so").write_bytes(b"two")
    assert native.fingerprint() != first
