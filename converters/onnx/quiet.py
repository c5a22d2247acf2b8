"""Keep what libraries print, warn and log off the terminal while they work, and remember their errors."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

NATIVE_FATAL, NATIVE_WARNING = 4, 2
"""Severities of onnxruntime's own log, which goes past Python to the terminal; 2 is its default."""


class Errors(logging.Handler):
    """Keeps the messages of errors that a library logs instead of raising them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of RECORD."""
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[list[str]]:
    """Silence stdout, stderr, warnings and logs of this process; gives the list to which errors of the named LOGGERS are added.

    The errors of onnxruntime's native log are silenced where it is loaded already: they come as exceptions too.
    """
    errors = Errors()
    chosen = [logging.getLogger(name) for name in loggers]
    before = [(logger, logger.propagate, logger.disabled, list(logger.handlers)) for logger in chosen]
    limit = logging.root.manager.disable
    # Without loggers to listen to, everything is off; with them, the rest is off below errors, which have no handler here.
    logging.disable(logging.WARNING if chosen else logging.CRITICAL)
    for logger in chosen:
        logger.handlers, logger.propagate, logger.disabled = [errors], False, False
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            native_log(),
        ):
            warnings.simplefilter("ignore")
            yield errors.lines
    finally:
        logging.disable(limit)
        for logger, propagate, disabled, handlers in before:
            logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled


@contextlib.contextmanager
def native_log() -> Iterator[None]:
    """Silence onnxruntime's native log."""
    try:
        import onnxruntime
    except ImportError:
        yield
        return
    onnxruntime.set_default_logger_severity(NATIVE_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(NATIVE_WARNING)
