"""The one place that makes an onnxruntime session: on the device that was asked for, and what runs where is read back.

onnxruntime answers a provider that cannot start with a line in its log and the CPU, so a session is believed only after it has said
which provider got how many of its operators.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeai.engines.onnx.cache import OptimizedModels
from edgeai.errors import DeviceUnavailable, DoesNotFit, EdgeAIError, EngineCrashed, InvalidModel
from edgeai.options import DeviceChoice
from edgeai.types import Notice

__all__ = ["Backend", "Session", "load_failure", "one_line", "open_session", "run_failure"]

Backend = Literal["cpu", "cuda", "dml"]

CPU = "CPUExecutionProvider"
PROVIDERS: Mapping[Backend, str] = {"cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider", "cpu": CPU}
"""The devices, best first, and what onnxruntime calls what computes there."""
PACKAGES = {"cuda": "onnxruntime-gpu", "dml": "onnxruntime-directml"}
RECORD = "session.record_ep_graph_assignment_info"
SPINNING, SPIN_US = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"
ERROR = 3
"""Severity of onnxruntime's log from which on lines are kept: error. None goes to the terminal."""
LOG_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session of onnxruntime that is ready, with what was read back: `backend` computes, `operators` is provider → how many it got."""

    native: Any
    backend: Backend
    providers: tuple[str, ...]
    operators: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    @property
    def in_words(self) -> str:
        """Return which provider got how many operators."""
        shares = ", ".join(f"{count} on {name}" for name, count in self.operators.items())
        return f"operators: {shares}" if shares else f"providers: {', '.join(self.providers)}"


def open_session(path: Path, *, device: DeviceChoice, threads: int, cache: OptimizedModels | None = None) -> Session:
    """Return a session for the ONNX file PATH on DEVICE with THREADS; CACHE keeps what optimising its graph gave.

    Raises DeviceUnavailable where DEVICE cannot run it, InvalidModel for a file that onnxruntime refuses, DoesNotFit, EngineCrashed.
    """
    runtime = _runtime()
    available = runtime.get_available_providers()
    if device != "auto" and PROVIDERS[device] not in available:
        raise _unavailable(device, f"the onnxruntime that is installed has only {', '.join(available)}")
    notices: list[Notice] = []
    for wanted in [device] if device != "auto" else [name for name in PROVIDERS if PROVIDERS[name] in available]:
        found = _attempt(path, wanted, threads, cache if wanted == "cpu" else None)
        if isinstance(found, Session):
            return Session(
                native=found.native, backend=found.backend, providers=found.providers, operators=found.operators,
                notices=tuple(notices),
            )  # fmt: skip
        if device != "auto":
            raise _unavailable(device, found)
        message = f"not running on {PROVIDERS[wanted]}: {found}"
        notices.append(Notice(code="cpu-fallback", message=message))
    raise EngineCrashed("onnxruntime has no provider for the CPU", hint="pip install --force-reinstall onnxruntime")


def _unavailable(device: Backend, reason: str) -> DeviceUnavailable:
    package = PACKAGES.get(device)
    mend = f"pip uninstall -y onnxruntime && pip install {package}" if package else "pip install onnxruntime"
    return DeviceUnavailable(f"device {device!r} cannot run here: {reason}", hint=f"{mend}; or use `device=cpu`")


def _attempt(path: Path, wanted: Backend, threads: int, cache: OptimizedModels | None) -> Session | str:
    """Return a session whose operators WANTED computes, or why there is none. What is wrong with the file is raised."""
    _log.clear()
    providers = [PROVIDERS[wanted]] if wanted == "cpu" else [PROVIDERS[wanted], CPU]
    try:
        native = _create(path, wanted, providers, threads, cache)
    except EdgeAIError as error:
        if wanted == "cpu":
            raise
        return error.message  # the same file on the CPU says whether it is the file
    running = tuple(native.get_providers())
    operators = _operators(native)
    ours = PROVIDERS[wanted]
    if running[:1] != (ours,) or (operators and not operators.get(ours)):
        said = f": {one_line(_log[0])}" if _log else ""
        return f"onnxruntime gave the model to {', '.join(operators or running)} instead of {ours}{said}"
    return Session(native=native, backend=wanted, providers=running, operators=operators)


def _create(path: Path, wanted: Backend, providers: list[str], threads: int, cache: OptimizedModels | None) -> Any:
    if cache is None or not cache.pays(path):
        return _load(path, _options(wanted, threads), providers)
    kept = cache.find(path, providers)
    if kept is not None:
        with contextlib.suppress(EdgeAIError):  # damaged: it is made again
            return _load(kept, _options(wanted, threads, optimize=False), providers)
        kept.unlink(missing_ok=True)
    with cache.make(path, providers) as place:
        options = _options(wanted, threads)
        if place is not None:
            options.optimized_model_filepath = str(place)
        return _load(path, options, providers)


def _load(path: Path, options: Any, providers: list[str]) -> Any:
    runtime = _runtime()
    try:
        # Its own fallback prints on stdout and goes on with the CPU; a configuration in the file is not followed.
        return runtime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0, read_config_from_model=0
        )
    except Exception as error:
        raise load_failure(path, error) from error


def _options(wanted: Backend, threads: int, *, optimize: bool = True) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = ERROR
    options.add_session_config_entry(RECORD, "1")
    for key, value in _waiting(runtime.__version__).items():
        options.add_session_config_entry(key, value)
    if wanted == "dml":
        options.enable_mem_pattern = False  # DirectML has none, and refuses the session otherwise
    return options


def _waiting(version: str) -> dict[str, str]:
    """Return how the threads of onnxruntime VERSION wait for each other: they spin for 50 µs.

    A network of 1.4 ms with one thread takes 0.8 ms with two that spin for 50 µs or for as long as they do by default, which on cores
    that others use costs 1.3 times the processor time and twice the p99; with no spinning, or 10 µs, two threads gain nothing.
    """
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return {SPIN_US: "50"} if numbers >= [1, 32] else {SPINNING: "0"}


def _operators(native: Any) -> dict[str, int]:
    """Return which provider got how many operators, the most first; nothing where onnxruntime does not tell."""
    try:
        groups = native.get_provider_graph_assignment_info()
    except Exception:  # noqa: BLE001 - versions before 1.23 have no such method, and a provider may not record
        return {}
    counts: Counter[str] = Counter()
    for group in groups:
        counts[group.ep_name] += len(group.get_nodes())
    return dict(counts.most_common())


# ---- the library


_log: deque[str] = deque(maxlen=LOG_LINES)
_lock = threading.Lock()


def _runtime() -> Any:
    with _lock:
        return _prepared()


@functools.cache
def _prepared() -> Any:
    """Return onnxruntime, silent: no telemetry, and what it logs is kept for the errors instead of the terminal."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineCrashed(
            f"onnxruntime cannot be loaded: {one_line(error)}", hint="pip install onnxruntime"
        ) from error
    onnxruntime.disable_telemetry_events()
    if hasattr(onnxruntime, "set_default_logger_callback"):
        onnxruntime.set_default_logger_callback(lambda *line: _log.append(str(line[-1])))
    onnxruntime.set_default_logger_severity(ERROR)
    if PROVIDERS["cuda"] in onnxruntime.get_available_providers() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            onnxruntime.preload_dlls()  # CUDA's libraries from pip's packages; what is missing shows when the session is made
    return onnxruntime


# ---- its errors


UNKNOWN = (
    re.compile(r"No Op registered for (?P<op>\S+) with domain_version of (?P<version>\d+)"),
    re.compile(r"(?P<op>[\w.:]+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"Could not find an implementation for (?P<op>[\w.:]+)\((?P<version>\d+)\)"),
)
PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.(?:cc|h):\d+ [^\n]*?\) ")
NO_MEMORY = re.compile(r"allocate memory|bad_alloc|out of memory|OOM", re.IGNORECASE)


def one_line(error: object) -> str:
    """Return what ERROR says, in one line of at most 200 characters and without its number."""
    text = " ".join(PREFIX.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def load_failure(path: Path, error: Exception) -> EdgeAIError:
    """Return what it means that onnxruntime refuses the file PATH with ERROR."""
    where, text = str(path), str(error)
    for pattern in UNKNOWN:
        if found := pattern.search(text):
            version = found.groupdict().get("version")
            operator = f"{found['op']}{f' of opset {version}' if version else ''}"
            return InvalidModel(
                f"{where!r} has an operator that this onnxruntime does not have: {operator}",
                hint="pip install -U onnxruntime, or export the model with an older opset",
            )
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return DoesNotFit(f"{where!r} does not fit in memory: {one_line(error)}", hint="use a smaller model")
    if type(error).__module__.startswith("onnxruntime"):
        return InvalidModel(
            f"onnxruntime refuses {where!r}: {one_line(error)}", hint="the file is damaged: convert it again"
        )
    return EngineCrashed(f"loading {where!r} failed: {one_line(error)}", hint="edgeai doctor")


def run_failure(name: str, error: Exception) -> EdgeAIError:
    """Return what it means that the model NAME, which was loaded, fails with ERROR."""
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return DoesNotFit(f"{name} needs more memory than is free: {one_line(error)}", hint="give fewer items at once")
    return EngineCrashed(f"{name} failed while it computed: {one_line(error)}", hint="edgeai doctor")
