"""What is here, what is wrong with it, and the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from edgeai.cuda import built_for, trouble
from edgeai.device import (
    CPU,
    GPU,
    Device,
    Memory,
    NativeLibrary,
    cpu_facts,
    library_facts,
    memory_facts,
    nvidia_gpus,
    system_name,
)
from edgeai.errors import EdgeAIError
from edgeai.native import cuda_install_command
from edgeai.paths import home
from edgeai.runtimes import onnx_facts, onnx_problems

__all__ = ["Examination", "Problem", "examine"]

LOW_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong, what it costs, and how to mend it. `exit_code` is 0 when models run all the same."""

    what: str
    mend: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The facts in sections, and the problems."""

    sections: Mapping[str, Mapping[str, str]]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        problems = [{"what": problem.what, "mend": problem.mend} for problem in self.problems]
        return {"ok": not problems, **self.sections, "problems": problems}


def examine() -> Examination:
    """Look at the machine, the native library, onnxruntime, the optional packages and the store."""
    cpu, memory = cpu_facts(), memory_facts()
    gpus, gpu_problem = nvidia_gpus()
    problems: list[Problem] = []
    library: NativeLibrary | None = None
    try:
        library = library_facts(cpu)
    except EdgeAIError as error:
        problems.append(Problem(what=error.message, mend=error.hint or "", exit_code=error.exit_code))
    limit = "" if memory.limit is None else f" (limit of the cgroup {_gb(memory.limit)})"
    sections = {
        "machine": {
            "system": system_name(),
            "cpu": cpu.name,
            "cores": _cores(cpu),
            "instructions": " ".join(cpu.isa) or "unknown",
            "memory": f"{_gb(memory.available)} available of {_gb(memory.total)}{limit}",
        },
        "gpu": {f"gpu {index}": _gpu(gpu) for index, gpu in enumerate(gpus)} or {"nvidia": gpu_problem or "none"},
        "native library": _library(library),
        "onnx": onnx_facts(),
        "packages": {name: _version(name) for name in ("llama-cpp-python", "gguf", "onnx", "torch", "transformers")},
        "store": _store(),
    }
    if library is not None:
        problems += _library_problems(library) + _gpu_problems(library, cpu, memory, gpus, gpu_problem)
    problems += [Problem(what=what, mend=mend) for what, mend in onnx_problems(gpus)]
    problems += _store_problems()
    return Examination(sections=sections, problems=tuple(problems))


def _cores(cpu: CPU) -> str:
    quota = "" if cpu.quota is None else f", cgroup quota {cpu.quota:g}"
    return f"{cpu.physical} physical, {cpu.logical} logical, {cpu.usable} usable{quota}; computing with {cpu.threads} threads"


def _gpu(gpu: GPU) -> str:
    free = f"{_gb(gpu.memory_free)} free of {_gb(gpu.memory_total)}"
    return f"{gpu.name}, {free}, driver {gpu.driver}, compute capability {gpu.compute_capability}"


def _library(library: NativeLibrary | None) -> dict[str, str]:
    if library is None:
        return {"libllama": "does not work here, see below"}
    return {
        "libllama": f"{library.version} in {library.path}",
        "computes on": ", ".join(f"{device.name} ({device.description})" for device in library.devices),
        "built with": library.features,
        "self-test": library.verdict.reason or "passed, with extra buffer types",
        **_cuda(library),
    }


def _cuda(library: NativeLibrary) -> dict[str, str]:
    archs = built_for(library.features)
    if archs is None:
        return {}
    found = sum(device.name.startswith("CUDA") for device in library.devices)
    state = library.cuda_error or (library.cuda_failure or "self-test passed" if found else "no device")
    capabilities = ", ".join(f"{arch / 10:.1f}" for arch in archs) or "not stated"
    return {"cuda": f"kernels for compute capability {capabilities}; {state}"}


def _library_problems(library: NativeLibrary) -> list[Problem]:
    if library.verdict.extra_bufts:
        return []
    return [
        Problem(
            what=f"the native library crashes with repacked weights ({library.verdict.reason}); models run without them, slower",
            mend='rebuild it without AMX: CFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" CXXFLAGS="$CFLAGS" '
            "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36",
        )
    ]


def _gpu_problems(
    library: NativeLibrary, cpu: CPU, memory: Memory, gpus: tuple[GPU, ...], gpu_problem: str | None
) -> list[Problem]:
    """Return why a GPU, or a build for one, stays unused; a machine without either has no problem."""
    device = Device(system=system_name(), cpu=cpu, memory=memory, gpus=gpus, gpu_problem=gpu_problem, library=library)
    found = trouble(device)
    if found is not None:
        return [Problem(what=f"models run on the CPU: {found.reason}", mend=found.mend)] if found.lost else []
    left_out = [item for item in library.devices if item.name.startswith("CUDA") and item not in device.cuda_devices]
    return [
        Problem(
            what=f"{item.description} stays unused: llama-cpp-python has no kernels for a GPU that old",
            mend=cuda_install_command(),
        )
        for item in left_out
    ]


def _store() -> dict[str, str]:
    folder = _existing(home())
    return {"folder": str(home()), "free disk": _gb(shutil.disk_usage(folder).free)}


def _store_problems() -> list[Problem]:
    folder = _existing(home())
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(
            Problem(
                what=f"{str(folder)!r} cannot be written: no model can be pulled",
                mend="set EDGEAI_HOME to a folder of yours",
            )
        )
    if shutil.disk_usage(folder).free < LOW_DISK_BYTES:
        problems.append(
            Problem(what=f"little disk is free in {str(folder)!r}", mend="edgeai rm MODEL, or set EDGEAI_HOME")
        )
    return problems


def _existing(path: Any) -> Any:
    while not path.exists():
        path = path.parent
    return path


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
