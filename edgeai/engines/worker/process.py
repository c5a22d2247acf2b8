"""One child process as its parent sees it: started, written to, read from, buried.

Data goes through two pipes that only the child inherits; there is no port, and stdin and stdout carry nothing. A pipe also tells either
side at once that the other is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgeai import native
from edgeai.childprocess import environment, module_command
from edgeai.engines.worker.frames import BrokenStream, Frame, FrameReader
from edgeai.engines.worker.outbox import Outbox
from edgeai.errors import UsageError

__all__ = ["CHILD", "Ending", "WorkerProcess"]

CHILD = "edgeai.engines.worker.child"
READ_SIZE = 1 << 16  # what a pipe holds on Linux
KEPT_OUTPUT = 1 << 13
"""Bytes of what the child said last, on stdout or stderr: an assertion of the native library, or a traceback."""
ENDING_S = 2.0
SAID_LINES, SAID_WIDTH = 3, 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a child ended, in words that follow its name; by which signal, if by one; and what it said last."""

    words: str
    signal: int | None
    said: str

    @property
    def reason(self) -> str:
        """The words, with what was said."""
        return f"{self.words}: {self.said}" if self.said else self.words


class WorkerProcess:
    """A child process that runs MODULE. `on_frame` and then once `on_end` are called in its reading thread.

    Linux tells a child of its parent's death when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG), so the thread that
    makes this object must stay until the child has been buried.
    """

    def __init__(self, on_frame: Callable[[Frame], None], on_end: Callable[[], None], *, module: str = CHILD) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        try:
            self._popen = _spawn(module, theirs_in, theirs_out)
        except BaseException:
            os.close(ours_out)
            os.close(ours_in)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.pid = self._popen.pid
        self._fault: str | None = None
        self._output = b""
        name = f"edgeai worker {self.pid}"
        self._outbox: Outbox[bytes] = Outbox(ours_out, b"".join, name=f"{name} out")
        self.reader = threading.Thread(
            target=self._read, args=(ours_in, on_frame, on_end), name=f"{name} in", daemon=True
        )
        self._listener = threading.Thread(target=self._listen, name=f"{name} log", daemon=True)
        self.reader.start()
        self._listener.start()

    def send(self, frame: bytes) -> None:
        """Send FRAME, now or as soon as the pipe takes it; never waits."""
        self._outbox.put(frame)

    def kill(self, fault: str) -> None:
        """End the child at once; FAULT says what it did, as words that follow its name."""
        self._fault = self._fault or fault
        self._popen.kill()

    def bury(self) -> Ending:
        """Kill what is left of the child, free what it held here, and return how it ended. To be called once."""
        code = self._wait()
        self.reader.join()
        self._outbox.close()
        self._listener.join(1.0)  # a grandchild may hold the other end
        if self._popen.stdout is not None and not self._listener.is_alive():
            self._popen.stdout.close()
        number = -code if code < 0 else None
        return Ending(
            words=self._fault or _words(code),
            signal=None if self._fault else number,
            said=self._said(killed=number == signal.SIGKILL),
        )

    def _said(self, *, killed: bool) -> str:
        """Return why native code ended the child, if it said so, else the last lines of what there is."""
        output = self._output.decode("utf-8", "replace")
        lines = [line.strip()[:SAID_WIDTH] for line in output.splitlines() if line.strip()]
        if (reason := native.abort_reason(output)) or killed:
            return reason or ""  # who is killed has no last words, and earlier ones are of something else
        return "; ".join(lines[-SAID_LINES:])

    def _wait(self) -> int:
        """Return the exit code of a child that has ended or is just ending: its pipe closes a moment before."""
        if self._fault is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._popen.wait(timeout=ENDING_S)
            self.kill("was killed: it closed its pipe and did not end")
        return self._popen.wait()

    def _read(self, fd: int, on_frame: Callable[[Frame], None], on_end: Callable[[], None]) -> None:
        frames = FrameReader()
        try:
            while data := os.read(fd, READ_SIZE):
                for frame in frames.feed(data):
                    on_frame(frame)
        except OSError:
            pass  # as good as its end
        except BrokenStream as error:
            self.kill(f"was killed: it sent what is no message: {error}")
        finally:
            os.close(fd)
            on_end()

    def _listen(self) -> None:
        assert self._popen.stdout is not None  # noqa: S101 - asked for in _spawn
        with contextlib.suppress(OSError):
            while data := os.read(self._popen.stdout.fileno(), READ_SIZE):
                self._output = (self._output + data)[-KEPT_OUTPUT:]


def _words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    if -code == getattr(signal, "SIGKILL", None):
        return "was killed from outside (SIGKILL), as the system does when memory runs out"
    with contextlib.suppress(ValueError):
        return f"died with {signal.Signals(-code).name}"
    return f"died with signal {-code}"


def _spawn(module: str, read_fd: int, write_fd: int) -> subprocess.Popen[bytes]:
    _check_python()
    if sys.platform == "win32":
        import msvcrt

        handles = [msvcrt.get_osfhandle(fd) for fd in (read_fd, write_fd)]
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        command = module_command(module, *map(str, handles), str(os.getpid()))
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": handles})
        # A process group of its own gets no Ctrl-C of the console.
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
            startupinfo=startup, creationflags=flags,
        )  # fmt: skip
    command = module_command(module, str(read_fd), str(write_fd), str(os.getpid()))
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
        pass_fds=(read_fd, write_fd),
    )  # fmt: skip


def _check_python() -> None:
    """Refuse to start an application a second time in place of a Python: a frozen one is its own sys.executable."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise UsageError(
            f"isolated=True starts a second Python, and {sys.executable!r} is a frozen application",
            hint="load the model without isolated=True, or run the application with a Python beside it",
        )
