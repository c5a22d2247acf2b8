"""Every error that edgeai raises on purpose, with its exit code.

EdgeAIError                 1
├── UsageError              2   an argument, option or configuration value is wrong
│   ├── RecipeError         2   a recipe is wrong: of a training, or of a file's types
│   ├── ConstraintError     2   a schema, regex or grammar that cannot be enforced
│   └── ClosedError         2   a model was used after close()
├── OutputError             2   the output path cannot be written, or is the input
├── ModelNotFound           3   no such name, file or folder
├── InvalidModel            3   damaged, truncated or not a model
│   ├── NoChatTemplate      3   a chat was asked of a file without a chat template
│   └── HashMismatch        3   bytes are not those that were promised
├── ConvertError            3   see converters.errors
├── ContextExceeded         4   prompt longer than the context
├── IncompleteOutput        4   an answer that must have a form was cut before it was whole
├── Busy                    4   as many requests wait as may wait
├── DoesNotFit              5   not enough memory or disk
├── DeviceUnavailable       6   the device asked for cannot run
├── EngineCrashed           7   native code failed
├── NetworkError            8   a download or an endpoint failed
│   ├── CloudFailure        8   one attempt at an endpoint failed; says how
│   ├── StreamInterrupted   8   an endpoint broke off its answer after text of it had been given
│   └── NoAnswer            8   every candidate of a routed request failed, or there was none
├── ProofFailed             9   the converted file is not the model
├── LedgerBroken            9   the ledger of routed requests is not what was written
└── Interrupted           130   Ctrl-C

A hint names options as Python has them, in backticks: `ctx=4096`. The command line shows them as its own: --ctx 4096.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from converters.errors import (
    BrokenCheckpoint,
    ConvertError,
    EdgeAIError,
    InvalidModel,
    OutputError,
    TokenizerMismatch,
    UnsupportedModel,
)

__all__ = [
    "BrokenCheckpoint",
    "Busy",
    "ClosedError",
    "CloudFailure",
    "ConstraintError",
    "ContextExceeded",
    "ConvertError",
    "DeviceUnavailable",
    "DoesNotFit",
    "EdgeAIError",
    "EngineCrashed",
    "HashMismatch",
    "IncompleteOutput",
    "Interrupted",
    "InvalidModel",
    "LedgerBroken",
    "ModelNotFound",
    "NetworkError",
    "NoAnswer",
    "NoChatTemplate",
    "OutputError",
    "ProofFailed",
    "RecipeError",
    "StreamInterrupted",
    "TokenizerMismatch",
    "UnsupportedModel",
    "UsageError",
]


class UsageError(EdgeAIError):
    """An argument, option or configuration value is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong: of a training, or of a file's types."""


class ConstraintError(UsageError):
    """A schema, regex or grammar is wrong, or asks for what cannot be enforced."""


class ClosedError(UsageError):
    """A model was used after it was closed."""


class ModelNotFound(EdgeAIError):
    """No catalogue entry, pulled model, file or folder has this name."""

    exit_code = 3


class NoChatTemplate(InvalidModel):
    """A chat was asked of a model file that carries no chat template."""


class ContextExceeded(EdgeAIError):
    """The prompt and the answer asked for are longer than the context."""

    exit_code = 4


class IncompleteOutput(EdgeAIError):
    """An answer that must have a form was cut before it was whole; `text` is what there is of it."""

    exit_code = 4

    def __init__(self, message: str, *, text: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.text = text


class Busy(EdgeAIError):
    """As many requests wait already as may wait; try again in about `retry_after_s` seconds."""

    exit_code = 4

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DoesNotFit(EdgeAIError):
    """The plan needs more memory or disk than there is."""

    exit_code = 5


class DeviceUnavailable(EdgeAIError):
    """The device that was asked for cannot run here."""

    exit_code = 6


class EngineCrashed(EdgeAIError):
    """Native code failed."""

    exit_code = 7


class NetworkError(EdgeAIError):
    """A download or an endpoint failed."""

    exit_code = 8


FailureKind = Literal[
    "refused",
    "context",
    "credentials",
    "quota",
    "rate_limited",
    "server",
    "connection",
    "timeout",
    "malformed",
    "captive",
    "aborted",
]
"""How an attempt at an endpoint failed, which decides what may follow:

`refused`: the request is wrong (400, 404, 422, a redirect), never again. `context`: too long for the model.
`credentials`: 401, 402, 403.
`quota`: the account has run out, for today. `rate_limited`: 429, wait. `server`: 5xx, 408, 409, 425.
`connection`: name, connect, TLS, reset. `timeout`: no first token, a stall, too slow, the whole time.
`malformed`: not what the protocol says, or cut before its end mark. `captive`: a page where an answer should be, of a network that wants
a login. `aborted`: nobody wanted it any more.
"""


class CloudFailure(NetworkError):
    """One attempt at an endpoint failed. No message or hint of it ever holds a key.

    `retry_after_s` is what the endpoint asked for, None where it said nothing that can be kept. `committed`: text had been given before.
    `reason` names what happened more closely than `kind`, in a word ("resolve", "tls-expired", "stall", "redirect"). `should_retry` is what
    the endpoint itself said of trying again (`x-should-retry`), None where it said nothing.
    """

    def __init__(
        self, message: str, *, kind: FailureKind = "server", status: int | None = None, retry_after_s: float | None = None,
        committed: bool = False, hint: str | None = None, reason: str = "", should_retry: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s
        self.committed = committed
        self.reason = reason
        self.should_retry = should_retry


class StreamInterrupted(NetworkError):
    """An endpoint broke off its answer; `text` is what had been given of it."""

    def __init__(self, message: str, *, text: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.text = text


class NoAnswer(NetworkError):
    """No candidate of a routed request gave an answer; `attempts` has each with why, in the order in which they were made."""

    def __init__(
        self,
        message: str,
        *,
        attempts: Sequence[Mapping[str, Any]] = (),
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.attempts = tuple(attempts)
        if exit_code is not None:
            self.exit_code = exit_code


class ProofFailed(EdgeAIError):
    """The converted file is not the model it was made from."""

    exit_code = 9


class LedgerBroken(EdgeAIError):
    """The ledger of routed requests is damaged, or not what was written into it."""

    exit_code = 9


class HashMismatch(InvalidModel):
    """Bytes do not have the sha256 that was promised for them."""


class Interrupted(EdgeAIError):
    """The user pressed Ctrl-C; whatever was finished has been kept."""

    exit_code = 130

    def __init__(self, message: str = "interrupted", *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
