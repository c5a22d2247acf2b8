"""What this machine is: cores that may be used, instruction set, memory, GPUs, and what the native library can run on it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeai import native
from edgeai.cores import Cores, find_cores
from edgeai.cuda import built_for, usable_devices
from edgeai.paths import home
from edgeai.selftest import Verdict, cuda_failure, native_verdict
from edgeai.tuning import Tuned, read_tuned

__all__ = [
    "CPU",
    "GPU",
    "Device",
    "Memory",
    "NativeLibrary",
    "cpu_facts",
    "library_facts",
    "memory_facts",
    "nvidia_gpus",
    "probe",
    "system_name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CPU:
    """`physical` and `logical` cores of the machine; `usable` hardware threads are what affinity and cgroup leave this process.

    `quota` is the cgroup's limit in cores (1.5 is one core and a half), None without one. `cores` are the physical cores that it may use,
    by kind; None where the system does not tell.
    """

    name: str
    physical: int
    logical: int
    usable: int
    quota: float | None
    isa: tuple[str, ...]
    cores: Cores | None = None

    @property
    def threads(self) -> int:
        """How many threads to decode with: one per performance core that may be used.

        Each token passes hundreds of barriers, where the fastest thread waits for the slowest.
        """
        return max(1, min(self.cores.performance if self.cores else self.physical, self.usable))

    @property
    def threads_batch(self) -> int:
        """How many threads to read prompts with: those, and one per efficiency core that is fast enough to help."""
        helpful = self.cores.helpful if self.cores else 0
        performance = self.cores.performance if self.cores else self.physical
        return max(1, min(performance + helpful, self.usable))


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """An NVIDIA GPU as its driver describes it; memory in bytes."""

    name: str
    memory_total: int
    memory_free: int
    driver: str
    compute_capability: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLibrary:
    """The loaded libllama: where it is, what it was built with, and what it computes on.

    `cuda_error` is with which words CUDA failed to start, `cuda_failure` how a decode on the GPU went wrong; None for what went right.
    """

    path: str
    version: str
    features: str
    gpu_offload: bool
    devices: tuple[native.BackendDevice, ...]
    verdict: Verdict
    cuda_error: str | None = None
    cuda_failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """RAM in bytes, already cut to the cgroup's `limit` (None without one)."""

    total: int
    available: int
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """This machine."""

    system: str
    cpu: CPU
    memory: Memory
    gpus: tuple[GPU, ...]
    gpu_problem: str | None
    library: NativeLibrary
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    """What `edgeai bench --tune` found here, by kind of model (edgeai/tuning.py)."""

    @property
    def cuda_devices(self) -> tuple[native.BackendDevice, ...]:
        """The CUDA devices that the loaded library can really use."""
        if self.library.cuda_failure:
            return ()
        return usable_devices(self.library.devices, self.gpus, built_for(self.library.features))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)


def probe(*, gpus: bool = True) -> Device:
    """Look at this machine; with GPUS false the NVIDIA driver is asked only if there are signs of one.

    Raises DeviceUnavailable without a native library, EngineCrashed when it cannot decode at all.
    """
    cpu = cpu_facts()
    library = library_facts(cpu)
    found, problem = nvidia_gpus() if gpus or _signs_of_nvidia() else ((), None)
    return Device(
        system=system_name(),
        cpu=cpu,
        memory=memory_facts(),
        gpus=found,
        gpu_problem=problem,
        library=library,
        tuned=read_tuned(home() / "cache", cpu.name, cpu.usable),
    )


def system_name() -> str:
    """Return operating system, machine and Python in one line."""
    return f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"


def library_facts(cpu: CPU) -> NativeLibrary:
    """Load libllama, after a child process has shown that it survives a decode on CPU.

    Raises DeviceUnavailable when it is not installed, EngineCrashed when it cannot decode at all.
    """
    cache = home() / "cache"
    verdict = native_verdict(cache, cpu.name, cpu.isa)
    lib = native.library()
    devices = native.backend_devices()
    gpus = [device.description for device in devices if device.name.startswith("CUDA")]
    return NativeLibrary(
        path=str(native.library_dir()),
        version=lib.llama_version().decode(),
        features=lib.llama_print_system_info().decode().strip(" |"),
        gpu_offload=bool(lib.llama_supports_gpu_offload()),
        devices=devices,
        verdict=verdict,
        cuda_error=native.cuda_error(),
        cuda_failure=cuda_failure(cache, gpus) if gpus else None,
    )


# ---- cores


def cpu_facts(root: Path = Path("/")) -> CPU:
    """Return what the CPU is and how much of it this process may use; ROOT is where /proc and /sys are."""
    import psutil

    logical = psutil.cpu_count(logical=True) or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = _affinity()
    quota = cpu_quota(root)
    usable = len(allowed) if allowed else logical
    if quota is not None:
        # A thread more than the quota has cores makes all of them pause in every period; half a core is worth that, less is not.
        usable = min(usable, max(1, math.floor(quota + 0.5)))
    name, isa = _cpu_name(root)
    cores = find_cores(allowed, root)
    return CPU(name=name, physical=physical, logical=logical, usable=usable, quota=quota, isa=isa, cores=cores)


def _affinity() -> set[int] | None:
    """Return the processors that this process is bound to, None where the system binds none."""
    import psutil

    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    process = psutil.Process()
    return set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None


_ISA = (
    "avx",
    "avx2",
    "avx512f",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "bmi2",
    "f16c",
    "fma",
)
_ISA_ARM = ("asimd", "asimddp", "i8mm", "sve", "sve2", "bf16", "sme")


def _cpu_name(root: Path) -> tuple[str, tuple[str, ...]]:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, tuple(flag for flag in (*_ISA, *_ISA_ARM) if flag in flags)


# ---- cgroups: version 2 has one tree, version 1 one per controller; a limit anywhere above this process counts


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU limit of this process's cgroups in cores, or None."""
    limits = []
    for folder in _cgroup_folders(root, "cpu"):
        if (text := _read(folder / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "max", _read(folder / "cpu.cfs_period_us") or ""
        microseconds, every = _count(quota), _count(period) or 100_000
        if microseconds:
            limits.append(microseconds / every)
    return min(limits, default=None)


def memory_facts(root: Path = Path("/")) -> Memory:
    """Return the memory that this process may use."""
    import psutil

    memory = psutil.virtual_memory()
    limit, used = memory_cgroup(root)
    if limit is None or limit >= memory.total:
        return Memory(total=memory.total, available=memory.available, limit=None)
    return Memory(total=limit, available=min(memory.available, max(0, limit - used)), limit=limit)


def memory_cgroup(root: Path = Path("/")) -> tuple[int | None, int]:
    """Return (limit, bytes in use) of the tightest memory cgroup above this process; (None, 0) without a limit."""
    limits: list[tuple[int, int]] = []
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _count(_read(folder / limit_name))
            # Version 1 writes "no limit" as a number near 2**63.
            if limit is not None and limit < 2**60:
                limits.append((limit, max(0, (_count(_read(folder / used_name)) or 0) - _reclaimable(folder))))
    return min(limits, default=(None, 0))


def _reclaimable(folder: Path) -> int:
    """Return the bytes of page cache that the kernel gives back when they are needed; they count as used in a cgroup."""
    stat = dict(line.split(" ", 1) for line in (_read(folder / "memory.stat") or "").splitlines() if " " in line)
    return _count(stat.get("inactive_file")) or _count(stat.get("total_inactive_file")) or 0


def _count(text: str | None) -> int | None:
    """Return TEXT as a number that is not negative, or None for "max", -1 and whatever else stands for no limit."""
    return int(text) if text and text.isascii() and text.isdigit() else None


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    text = _read(root / "proc/self/cgroup") or ""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon:
            continue
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controllers
        else:
            continue
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            if folder.is_dir():
                yield folder
            folder = folder.parent


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


# ---- GPUs


def _signs_of_nvidia() -> bool:
    """Whether a driver seems to be there; asking NVML costs a cold start 15 ms that a machine without one need not pay."""
    if platform.system() == "Linux":
        return any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg"))
    return platform.system() == "Windows"


def nvidia_gpus() -> tuple[tuple[GPU, ...], str | None]:
    """Return the NVIDIA GPUs through NVML, and why there are none when there are none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no NVIDIA driver answers ({error})"
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(_gpu(pynvml, handle, driver) for handle in handles)
        return gpus, None if gpus else f"NVIDIA driver {driver} lists no GPU"
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver fails: {error}"
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: Any, handle: Any, driver: str) -> GPU:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return GPU(
        name=pynvml.nvmlDeviceGetName(handle),
        memory_total=memory.total,
        memory_free=memory.free,
        driver=driver,
        compute_capability=f"{major}.{minor}",
    )
