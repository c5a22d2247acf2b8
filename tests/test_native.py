"""The native library is loaded quietly, cheaply, and without harm to whoever uses the whole package."""

from __future__ import annotations

import os
import signal
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


@pytest.mark.parametrize(
    ("given", "spins"), [({}, native.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_sleep_soon_at_a_barrier_unless_the_user_says_otherwise(given: dict[str, str], spins: str) -> None:
    said = python("from edgeai import native; native.library()", OMP_DISPLAY_ENV="verbose", **given).stderr
    if "OPENMP DISPLAY ENVIRONMENT BEGIN" not in said:
        pytest.skip("the native library is built without GCC's OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


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


def test_native_code_says_why_before_it_ends_the_process() -> None:
    code = (
        "from edgeai import native; lib = native.library(); lib.ggml_abort = lib._lib.ggml_abort;"
        "native._keep_log(4, b'CUDA error: an illegal memory access was encountered\\n', None);"
        "native._keep_log(4, b'  current device: 0, in function f at ggml-cuda.cu:1\\n', None);"
        "lib._lib.ggml_abort(b'ggml-cuda.cu', 109, b'CUDA error')"
    )
    done = python(code)
    assert -done.returncode == signal.SIGABRT
    assert native.abort_reason(done.stderr) == (
        "CUDA error: an illegal memory access was encountered; current device: 0, in function f at ggml-cuda.cu:1; "
        "ggml-cuda.cu:109: CUDA error"
    )
    assert done.stdout == ""


def test_a_process_that_ends_otherwise_has_no_abort_reason() -> None:
    assert native.abort_reason("Traceback\nnothing of the kind\n") is None


@pytest.mark.parametrize(
    ("missing", "cure"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "install the NVIDIA driver"),
        ("libcublas.so.13: cannot open shared object file: No such file or directory", "install the CUDA runtime"),
        ("libcudart.so.12: cannot open shared object file: No such file or directory", "install the CUDA runtime"),
    ],
)
def test_a_cuda_build_without_cuda_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, cure: str
) -> None:
    monkeypatch.setattr(native, "library_dir", lambda: tmp_path)
    error = native._does_not_load(f"Failed to load shared library '{tmp_path}/libllama.so': {missing}")
    assert isinstance(error, DeviceUnavailable)
    assert missing.partition(":")[0] in error.message
    assert (error.hint or "").startswith(cure)


def test_any_other_library_that_does_not_load_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "library_dir", lambda: tmp_path)
    assert isinstance(native._does_not_load("libgomp.so.1: cannot open shared object file"), EngineCrashed)


def test_lines_logged_by_a_block_are_captured_and_nest() -> None:
    with native.captured_log() as outer:
        native._keep_log(native.DEBUG, b"one\n", None)
        with native.captured_log() as inner:
            native._keep_log(native.ERROR, b"two\n", None)
        native._keep_log(native.INFO, b"three\n", None)
    native._keep_log(native.INFO, b"four\n", None)
    assert [line.text for line in inner] == ["two"]
    assert [line.text for line in outer] == ["one", "two", "three"]


def test_what_loading_writes_by_the_thousand_does_not_push_out_reasons() -> None:
    native._keep_log(native.ERROR, b"the reason\n", None)
    for _ in range(1000):
        native._keep_log(native.DEBUG, b"noise\n", None)
        native._keep_log(native.CONT, b".", None)
    assert native.last_log(1) == ["the reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is that of Linux")
def test_threads_spin_shortly_also_where_there_are_more_of_them_than_cores() -> None:
    code = "import os; from edgeai import native; native.library(); print('OMP_WAIT_POLICY' in os.environ)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this build has no libgomp")
    assert f"GOMP_SPINCOUNT = '{native.SPINS}'" in done.stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in done.stderr
    assert done.stdout.strip() == "False"
