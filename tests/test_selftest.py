"""A library that crashes is found out in a child, once, and the parent lives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from converters.header import read_header
from edgeai import native, selftest
from edgeai.errors import DeviceUnavailable, EngineCrashed
from edgeai.selftest import Verdict, decode_probe, native_verdict, write_probe_model


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_this_library_passes_with_extra_buffer_types(tmp_path: Path) -> None:
    assert native_verdict(tmp_path, "cpu") == Verdict(extra_bufts=True)


def test_a_crash_with_extra_buffer_types_turns_them_off(tmp_path: Path) -> None:
    verdict = native_verdict(tmp_path, "cpu", run=lambda extra: child(CRASH if extra == "1" else "pass"))
    assert not verdict.extra_bufts
    assert "SIGSEGV" in (verdict.reason or "")


def test_a_crash_either_way_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed, match="SIGSEGV"):
        native_verdict(tmp_path, "cpu", run=lambda _: child(CRASH))


def test_the_verdict_is_remembered_for_library_and_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(extra: str) -> subprocess.CompletedProcess[str]:
        asked.append(extra)
        return child("pass")

    for cpu in ("cpu a", "cpu a", "cpu b"):
        native_verdict(tmp_path, cpu, run=run)
    assert len(asked) == 2
    monkeypatch.setattr(native, "fingerprint", lambda: "rebuilt")
    native_verdict(tmp_path, "cpu a", run=run)
    assert len(asked) == 3


@pytest.mark.parametrize("text", ["[]", "{half", '{"KEY": 1}', '{"KEY": {}}', '{"KEY": {"extra_bufts": 3, "more": 1}}'])
def test_a_strange_cache_is_asked_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "selftest.json").write_text(text.replace("KEY", f"{native.fingerprint()} cpu"))
    assert native_verdict(tmp_path, "cpu", run=lambda _: child("pass")) == Verdict(extra_bufts=True)


def test_a_child_that_was_killed_from_outside_is_asked_again_next_time(tmp_path: Path) -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert not native_verdict(tmp_path, "cpu", run=lambda extra: child(killed if extra == "1" else "pass")).extra_bufts
    assert native_verdict(tmp_path, "cpu", run=lambda _: child("pass")).extra_bufts


def test_a_module_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gguf.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert selftest._run_child("1").returncode == 0


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert native_verdict(tmp_path / "file" / "cache", "cpu", run=lambda _: child("pass")).extra_bufts


@pytest.mark.parametrize("extra_bufts", [True, False])
def test_wrong_logits_are_noticed(tmp_path: Path, extra_bufts: bool) -> None:
    path = tmp_path / "é 模型.gguf"
    write_probe_model(path, types=("Q4_0",))
    decode_probe(path, extra_bufts=extra_bufts)
    header = read_header(path)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    data = bytearray(path.read_bytes())
    row = embedding.offset + 63 * 256 * 4  # the last token of the first batch now looks like token 10
    data[row : row + 1024] = struct.pack("<256f", *(float(column == 10) for column in range(256)))
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="wrong logits"):
        decode_probe(path, extra_bufts=extra_bufts)


def test_the_child_really_dies_with_the_signal_that_is_reported() -> None:
    assert child(CRASH).returncode == -signal.SIGSEGV


def test_the_child_finds_the_package_where_the_parent_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.devnull)
    assert selftest._run_child("1").returncode == 0


CRASHING_LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
/* libllama asks for extra buffer types through this function: one that dies stands for kernels that do. */
void *ggml_backend_reg_get_proc_address(void *reg, const char *name) {
    void *(*real)(void *, const char *) = dlsym(RTLD_NEXT, "ggml_backend_reg_get_proc_address");
    if (strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) raise(SIGSEGV);
    return real ? real(reg, name) : 0; /* none of the optional functions: enough to compute */
}
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_a_library_that_really_crashes_is_run_without_extra_buffer_types(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "crash.c").write_text(CRASHING_LIBRARY)
    shim = tmp_path / "crash.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "crash.c", "-ldl"], check=True)
    command = [sys.executable, "-m", "edgeai", "run", str(tiny_gguf), "The", "--raw", "--max-tokens", "4", "--json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LD_PRELOAD": str(shim)},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [warning["code"] for warning in answer["warnings"]] == ["no-extra-buffer-types"]
    assert answer["plan"]["extra_bufts"] is False
    assert "SIGSEGV" in done.stderr


ILLEGAL = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


@pytest.mark.parametrize(
    ("isa", "said"),
    [
        (("avx", "f16c"), r"built with AVX2, FMA, which this CPU does not have"),
        (("avx", "avx2", "fma", "f16c"), "instructions that this CPU does not have"),
    ],
)
def test_a_library_for_a_newer_cpu_names_the_instructions(tmp_path: Path, isa: tuple[str, ...], said: str) -> None:
    features = "print('CPU : AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | REPACK = 1 |')"
    with pytest.raises(EngineCrashed, match=said) as caught:
        native_verdict(tmp_path, "cpu", isa, run=lambda task: child(features if task == "features" else ILLEGAL))
    assert "SIGILL" in caught.value.message


def test_a_library_that_cannot_even_say_what_it_is_built_with_is_still_explained(tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed, match="instructions that this CPU does not have"):
        native_verdict(tmp_path, "cpu", ("avx",), run=lambda _: child(ILLEGAL))


def test_the_child_says_what_this_library_is_built_with() -> None:
    assert "CPU : " in selftest._run_child("features").stdout


def test_a_library_that_lacks_cuda_libraries_fails_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise DeviceUnavailable("libcuda.so.1 is missing", hint="install the NVIDIA driver")

    monkeypatch.setattr(native, "library", refuse)
    with pytest.raises(DeviceUnavailable, match=r"libcuda\.so\.1"):
        native_verdict(tmp_path, "cpu", run=lambda _: child("raise SystemExit(6)"))


def test_a_gpu_that_passes_is_remembered_until_the_library_or_the_gpu_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(task: str) -> subprocess.CompletedProcess[str]:
        asked.append(task)
        return child("pass")

    for gpus in (["RTX"], ["RTX"], ["RTX", "GTX"]):
        assert selftest.cuda_failure(tmp_path, gpus, run=run) is None
    assert asked == ["cuda", "cuda"]
    monkeypatch.setattr(native, "fingerprint", lambda **_: "rebuilt")
    selftest.cuda_failure(tmp_path, ["RTX"], run=run)
    assert len(asked) == 3


def test_a_gpu_that_fails_is_asked_again_and_its_error_is_named(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.stderr.write('native code aborts: CUDA error: no kernel image is available; current "
        "device: 0\\n'); sys.stderr.flush(); os.abort()"
    )
    failure = selftest.cuda_failure(tmp_path, ["RTX"], run=lambda _: child(code))
    assert failure == "it died with SIGABRT (CUDA error: no kernel image is available; current device: 0)"
    assert selftest.cuda_failure(tmp_path, ["RTX"], run=lambda _: child("pass")) is None


def test_the_gpu_test_runs_here_on_no_gpu_at_all(tmp_path: Path) -> None:
    # The same decode with an empty list of devices: what is left is that the child and its arguments work.
    assert selftest._run_child("cuda").returncode == 0
