"""The C library behind llama-cpp-python: loaded once, quietly, and without the rest of that package.

Only the low-level module `llama_cpp.llama_cpp` is used. Importing it in the usual way runs the package's `__init__`, which imports
numpy, jinja2 and the high-level classes: 0.1 s that a cold start does not have.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import re
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgeai.errors import DeviceUnavailable, EdgeAIError, EngineCrashed

__all__ = [
    "BackendDevice",
    "LogLine",
    "abort_reason",
    "backend_devices",
    "captured_log",
    "cpu_install_command",
    "cuda_error",
    "cuda_install_command",
    "device_list",
    "echo_log",
    "fingerprint",
    "last_log",
    "library",
    "library_dir",
    "logging_here",
]

Library = Any
"""The module `llama_cpp.llama_cpp`: ctypes declarations of llama.h, without type annotations that could be checked."""


class LogLine(NamedTuple):
    """A line of the native log; `level` is one of DEBUG, INFO, WARN, ERROR and CONT."""

    level: int
    text: str


DEBUG, INFO, WARN, ERROR, CONT = 1, 2, 3, 4, 5
"""enum ggml_log_level, ggml.h. CONT continues the line before it: the dots of a progress bar."""

SPINS = "1000"
"""How long GCC's OpenMP lets a thread spin at a barrier before it sleeps: about 10 µs. Its own 300000 (3 ms; libgomp, env.c) makes threads
burn the processor that their partner waits for as soon as anything else runs: decoding falls to a twentieth. See bench/LOG.md."""

_lock = threading.Lock()
_library: Library | None = None
_log: collections.deque[str] = collections.deque(maxlen=400)
_captures: dict[int, list[LogLine]] = {}
"""Thread → the list that everything it makes the library log goes to: two models loaded at once do not mix their logs."""
_cuda_error: str | None = None
_echo: Callable[[str], None] | None = None
_log_callback: Any = None  # the C side keeps only the address: this reference keeps the function alive


def cuda_install_command() -> str:
    """Return the command that puts a CUDA build of llama-cpp-python into this environment."""
    return (
        'CMAKE_ARGS="-DGGML_CUDA=on" '
        f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"
    )


def cpu_install_command() -> str:
    """Return the command that puts a build of llama-cpp-python without CUDA into this environment."""
    return f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"


def library_dir() -> Path:
    """Return the folder of libllama and libggml, found without loading them. Raises DeviceUnavailable."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama-cpp-python's own variable
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise DeviceUnavailable(
            "llama-cpp-python is not installed", hint=f"{sys.executable} -m pip install llama-cpp-python==0.3.36"
        )
    return Path(spec.submodule_search_locations[0]) / "lib"


def fingerprint(*, cuda: bool = False) -> str:
    """Return a sha256 over the CPU libraries that will be loaded, so that a rebuilt library is a new library.

    The library of CUDA kernels is hundreds of megabytes: with CUDA true its size and date count, otherwise nothing of it.
    """
    digest = hashlib.sha256()
    for path in sorted(library_dir().iterdir()):
        # Versioned copies (libllama.so.0) repeat the same bytes
        if "mtmd" in path.name:
            continue
        if "cuda" in path.name:
            if cuda:
                digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        elif path.suffix in {".so", ".dylib", ".dll"}:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def library() -> Library:
    """Return the low-level binding with its backend initialised and its log kept away from the terminal."""
    global _library, _log_callback
    with _lock:
        if _library is None:
            # An abort in native code must not print a debugger's view of this process on stdout.
            os.environ.setdefault("GGML_NO_BACKTRACE", "1")
            with _short_spins():
                binding = _import_binding()
                _log_callback = binding.llama_log_callback(_keep_log)
                binding.llama_log_set(_log_callback, ctypes.c_void_p(0))
                _explain_aborts(binding)
                binding.llama_backend_init()
            _library = binding
        return _library


@contextlib.contextmanager
def _short_spins() -> Iterator[None]:
    """Set SPINS while OpenMP is loaded, which is when it is read, unless the user has set something; later child programs do not get it.

    With more threads than cores, as with two models in one process, libgomp spins a hundred times only, and both had 0.7 of their speed.
    Under the policy "active" it is a thousand times, which is SPINS (libgomp/env.c, gomp_throttled_spin_count_var).
    """
    ours = {"GOMP_SPINCOUNT": SPINS} | ({"OMP_WAIT_POLICY": "active"} if sys.platform == "linux" else {})
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _import_binding() -> Library:
    library_dir()  # says clearly when the package is not there
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None  # noqa: S101 - library_dir has checked it
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = list(spec.submodule_search_locations or ())
    shell.__spec__ = spec
    sys.modules["llama_cpp"] = shell
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, FileNotFoundError) as error:
        raise _does_not_load(str(error)) from error
    finally:
        del sys.modules["llama_cpp"]  # whoever imports the whole package later gets the whole package


def _does_not_load(reason: str) -> EdgeAIError:
    """Return the error for a library that the system's loader refuses with REASON."""
    cuda = re.search(r"(?<![\w-])(?:lib)?(cudart|cublas|nvcuda|cuda)[\w.-]*\.(?:so|dll)[\d.]*", reason)
    if cuda is None:
        return EngineCrashed(
            f"the native library in {str(library_dir())!r} does not load: {reason}", hint="edgeai doctor"
        )
    cure = (
        "install the NVIDIA driver"
        if cuda[1] in {"cuda", "nvcuda"}
        else "install the CUDA runtime that it was built with"
    )
    return DeviceUnavailable(
        f"llama-cpp-python is built with CUDA and does not load here, not even for the CPU: {cuda[0]} is missing",
        hint=f"{cure}, or a build without CUDA: {cpu_install_command()}",
    )


# ---- what native code says before it ends the process

_ABORT = "native code aborts: "
_abort_callback: Any = None  # kept alive, like the log's


def _explain_aborts(binding: Library) -> None:
    """Have libggml say on stderr, before it aborts, the assertion and the last errors of its log.

    A CUDA error is in the log only, and the log ends with the process (ggml_cuda_error in ggml-cuda.cu, ggml_abort in ggml.c).
    """
    global _abort_callback
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    function = _exported(binding, "ggml-base", "ggml_set_abort_callback")
    function.restype, function.argtypes = kind, [kind]
    _abort_callback = kind(_tell_abort)
    function(_abort_callback)


def _tell_abort(message: bytes) -> None:
    errors = [line.partition("|")[2] for line in list(_log) if line.startswith(f"{ERROR}|")][-3:]
    reasons = "; ".join(" ".join(reason.split()) for reason in [*errors, message.decode("utf-8", "replace")])
    text = re.sub(r"[^\s;]*[/\\]([\w.-]+:\d+)", r"\1", reasons)  # files without the folder that somebody built them in
    with contextlib.suppress(OSError):  # nobody reads; the abort goes on
        os.write(2, f"{_ABORT}{text}\n".encode())


def abort_reason(stderr: str) -> str | None:
    """Return what native code said in STDERR, of a child process, before it aborted; None when it said nothing.

    For a GPU that was lost it names the CUDA error: "CUDA error: unspecified launch failure; current device: 0, in function …".
    """
    said = [line.partition(_ABORT)[2] for line in stderr.splitlines() if _ABORT in line]
    return said[-1] if said else None


def _keep_log(level: int, text: bytes, _data: object) -> None:
    global _cuda_error
    line = text.decode("utf-8", "replace")
    if "failed to initialize CUDA: " in line:  # ggml_cuda_init, once in a process
        _cuda_error = line.partition("failed to initialize CUDA: ")[2].strip()
    if level not in {DEBUG, CONT}:  # loading writes a thousand of those, which would push out what matters
        _log.append(f"{level}|{line}")
    capture = _captures.get(threading.get_ident())
    if capture is not None:
        capture.append(LogLine(level, line.rstrip("\n")))
    if _echo is not None and level == ERROR:
        _echo(line)


@contextlib.contextmanager
def captured_log() -> Iterator[list[LogLine]]:
    """Give a list that fills with every line, debug lines too, that calls of this thread make the library log inside the block."""
    thread = threading.get_ident()
    outer = _captures.get(thread)
    lines = _captures[thread] = []
    try:
        with logging_here():
            yield lines
    finally:
        if outer is None:
            del _captures[thread]
        else:
            outer += lines
            _captures[thread] = outer


def echo_log(echo: Callable[[str], None] | None) -> None:
    """Have ECHO told every error of the native log from now on, in the thread that says it; it must raise nothing."""
    global _echo
    _echo = echo


@contextlib.contextmanager
def logging_here() -> Iterator[None]:
    """Have the native log kept here for a while, whoever has taken it over since: importing all of llama_cpp does so.

    A Ctrl-C that arrives meanwhile is raised at the end: inside the log's callback, ctypes would drop it.
    """
    with _ctrl_c_at_the_end():
        yield from _log_kept_here()


@contextlib.contextmanager
def _ctrl_c_at_the_end() -> Iterator[None]:
    main_thread = threading.current_thread() is threading.main_thread()
    usual = signal.getsignal(signal.SIGINT)
    if not main_thread or not callable(usual):  # only the main thread may set a handler
        yield
        return
    pressed = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed.is_set():
        usual(signal.SIGINT, None)


_log_lock = threading.Lock()
_log_users = 0
_log_of_others: tuple[Any, Any] | None = None


def _log_kept_here() -> Iterator[None]:
    global _log_users, _log_of_others
    lib = library()
    with _log_lock:  # the first to come sets it and the last to go puts it back: threads load side by side
        if _log_users == 0:
            callback, data = lib.llama_log_callback(), ctypes.c_void_p()
            lib.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
            _log_of_others = callback, data
            lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
        _log_users += 1
    try:
        yield
    finally:
        with _log_lock:
            _log_users -= 1
            if _log_users == 0 and _log_of_others is not None:
                lib.llama_log_set(*_log_of_others)


def last_log(lines: int = 8, *, errors_only: bool = False) -> list[str]:
    """Return the last LINES of the native log; levels are ggml's: 2 info, 3 warn, 4 error, 5 continuation."""
    entries = [entry.split("|", 1) for entry in list(_log)]
    texts = [text.rstrip() for level, text in entries if text.strip() and (not errors_only or level in {"3", "4"})]
    return texts[-lines:]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDevice:
    """A device that the loaded libggml can compute on; memory in bytes, 0 where the backend does not say."""

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int


_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}  # enum ggml_backend_dev_type, ggml-backend.h


def backend_devices() -> tuple[BackendDevice, ...]:
    """Return what the loaded library can compute on, as it says itself."""
    size = ctypes.POINTER(ctypes.c_size_t)
    name, description = _of_device("name", ctypes.c_char_p), _of_device("description", ctypes.c_char_p)
    kind, memory = _of_device("type", ctypes.c_int), _of_device("memory", None, size, size)
    found = []
    for device in _device_pointers():
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            BackendDevice(
                name=name(device).decode(),
                description=description(device).decode(),
                kind=_KINDS.get(kind(device), "other"),
                memory_free=free.value,
                memory_total=total.value,
            )
        )
    return tuple(found)


def device_list(names: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
    """Return the C array for `llama_model_params.devices`: those called NAMES in that order, then NULL; none of them for no names.

    The array must outlive the load. Raises DeviceUnavailable for a name that the library does not know.
    """
    name = _of_device("name", ctypes.c_char_p)
    known = {name(device).decode(): device for device in _device_pointers()}
    if unknown := [name for name in names if name not in known]:
        raise DeviceUnavailable(
            f"the native library has no device {unknown[0]!r}, only {', '.join(known)}", hint="edgeai doctor"
        )
    return (ctypes.c_void_p * (len(names) + 1))(*(known[name] for name in names), None)


def _device_pointers() -> list[int]:
    binding = library()
    count = _exported(binding, "ggml", "ggml_backend_dev_count")
    count.restype = ctypes.c_size_t
    get = _exported(binding, "ggml", "ggml_backend_dev_get")
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    return [get(index) for index in range(count())]


def _of_device(what: str, result: Any, *arguments: Any) -> Any:
    """Return the function ggml_backend_dev_WHAT with its types declared (ggml-backend.h)."""
    function = _exported(library(), "ggml-base", f"ggml_backend_dev_{what}")
    function.restype, function.argtypes = result, [ctypes.c_void_p, *arguments]
    return function


def cuda_error() -> str | None:
    """Return with which words CUDA failed to start in this process; None when it did start, and for a library without CUDA."""
    _device_pointers()  # libggml starts its backends when they are first asked for
    return _cuda_error


def _exported(binding: Library, name: str, function: str) -> Any:
    """Return FUNCTION from libllama where that finds what it is linked with (not on Windows), else from the library NAME beside it."""
    linked = getattr(binding, "_lib", None)
    if not hasattr(linked, function):
        from llama_cpp._ctypes_extensions import load_shared_library

        linked = load_shared_library(name, library_dir())
    return getattr(linked, function)
