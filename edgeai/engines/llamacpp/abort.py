"""How a running decode is ended from another thread."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["AbortFlag", "Aborted"]


class Aborted(Exception):
    """A decode ended early because its AbortFlag was set."""


class AbortFlag:
    """Lets any thread end a decode, without calling into Python at every graph node.

    libggml asks a C function `bool f(void *data)` before each node; a Python callback there would cost more than the node. C's strlen
    is such a function: it reads the bytes at `data` and returns 0 (go on) for an empty string, 1 (abort) for a string of one character.
    """

    def __init__(self, lib: Any) -> None:
        c_library = ctypes.CDLL("msvcrt") if sys.platform == "win32" else ctypes.CDLL(None)
        self.callback = ctypes.cast(c_library.strlen, lib.ggml_abort_callback)
        self._flag = ctypes.create_string_buffer(2)
        self.address = ctypes.addressof(self._flag)

    def set(self) -> None:
        """End the decode that is running, or the next one, within one graph node."""
        self._flag[0] = b"x"

    def clear(self) -> None:
        """Let decodes run again."""
        self._flag[0] = b"\0"
