"""Ctrl-C in a program of ours: an exception that is not lost and ends the program with the exit code that we say."""

from __future__ import annotations

import _thread
import signal
import sys
import time
from typing import NoReturn

__all__ = ["CtrlC", "raise_ctrl_c", "take_ctrl_c"]

AGAIN_S = 0.01


class CtrlC(KeyboardInterrupt):
    """The user pressed Ctrl-C.

    Python notes a KeyboardInterrupt, but none of its subclasses, that passes through `exec` of a text, as every dataclass and namedtuple
    runs one while it is imported, and then ends with SIGINT whatever the program does about it (run_eval_code_obj, Python/pythonrun.c).
    """


def raise_ctrl_c(_number: int, _frame: object) -> NoReturn:
    """Raise CtrlC; a signal handler."""
    raise CtrlC


def take_ctrl_c() -> None:
    """Have Ctrl-C raise CtrlC from now on, also where it was ignored: a script's background job inherits that, and `kill -INT` ends it.

    Where Python runs code that cannot raise (the end of a module's import lock, a `__del__`, a callback of ctypes) an exception is
    dropped; the Ctrl-C is then raised again a moment later.
    """
    signal.signal(signal.SIGINT, raise_ctrl_c)
    usual, main_thread = sys.unraisablehook, _thread.get_ident()

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, CtrlC):
            _thread.start_new_thread(_press_again, (main_thread,))
        else:
            usual(dropped)

    sys.unraisablehook = hook


def _press_again(thread: int) -> None:
    time.sleep(AGAIN_S)
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, signal.SIGINT)  # unlike interrupt_main, it ends a sleep or a read as well
    else:
        _thread.interrupt_main()
